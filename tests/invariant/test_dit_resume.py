"""A DiT run that was stopped, killed, divided over ranks or accumulated equals the plain one, through `train_dit`."""

import functools
import os
import shutil
import signal
import time

import pytest
import torch

from tcae_diffusers.training import train_dit
from tcae_diffusers.training.dit_transformers import build_transformer

from .. import latent_commands
from ..latent_commands import (
    CLASSES,
    SMALL_DIT,
    assert_same_training_state,
    fork_ranks,
    home,
    signalling,
    weights,
    with_tokens,
)

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

VARIANTS = {
    "dit by flow matching": {
        "extra_ema_decays": [0.1, 0.9],
        "posthoc_ema_sigmas": [0.05, 0.1],
        "posthoc_ema_steps": 3,
    },
    "dit by muon": {"optimizer": "muon", "attention_head_dim": 32},
    "tc-dit by v prediction": {"transformer": "tc-dit", "objective": "v_prediction", "min_snr_gamma": 5},
    "dit aligned": {
        "flow_prediction": "sample",
        "repa_weight": 0.5,
        "repa_projector": "conv",
        "repa_spatial_normalization": 0.6,
    },
    "dit from trained weights": {"transformer_weights": "of another run", "timestep_shift_base": 4},
}


@functools.cache
def trained_weights():
    """Of a transformer of these tests; random, since nothing may train before ranks are forked."""
    torch.manual_seed(1)
    sizes = (SMALL_DIT[name] for name in ("num_layers", "num_attention_heads", "attention_head_dim"))
    build_transformer("dit", (4, 2, 2), len(CLASSES), len(CLASSES), *sizes).save_pretrained(home() / "trained weights")
    return home() / "trained weights"


def train(output, **options):
    """With tokens and weights where they are needed; made on first use, as every cache of these tests."""
    latents = {"latents": with_tokens()} if "repa_weight" in options else {}
    start = {"transformer_weights": trained_weights()} if "transformer_weights" in options else {}
    return latent_commands.train(output, **latents, **{**options, **start})


@functools.cache
def uninterrupted(name):
    return train(home() / "runs" / name, **VARIANTS[name])


def last_checkpoint(run):
    return run / "checkpoints" / "step-00000006"


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_by_sigterm_after_2_of_6_steps_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr(train_dit, "compute_losses", signalling(train_dit.compute_losses, 2))
        train(tmp_path / "run", **VARIANTS[name])
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "run" / "pipeline").exists()

    train(tmp_path / "run", **VARIANTS[name], resume="latest")
    assert_same_training_state(last_checkpoint(tmp_path / "run"), last_checkpoint(uninterrupted(name)))
    snapshots = ["ema_snapshots"] if "posthoc_ema_sigmas" in VARIANTS[name] else []
    for part in (
        "pipeline/transformer",
        *snapshots,
        *(f"ema/{decay}" for decay in VARIANTS[name].get("extra_ema_decays", [])),
    ):
        ours, theirs = weights(tmp_path / "run" / part), weights(uninterrupted(name) / part)
        assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    name = "dit by flow matching"
    step = train_dit.compute_losses

    def slowly(*arguments):
        time.sleep(0.1)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_dit, "compute_losses", slowly)
        (child,) = fork_ranks(lambda rank: train(tmp_path / "run", **VARIANTS[name]), world_size=1, wait=False)
    deadline = time.time() + 60
    while not (tmp_path / "run" / "checkpoints" / "step-00000003").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not last_checkpoint(tmp_path / "run").exists()
    train(tmp_path / "run", **VARIANTS[name], resume="latest")
    assert_same_training_state(last_checkpoint(tmp_path / "run"), last_checkpoint(uninterrupted(name)))


def test_snapshots_beyond_the_step_of_a_resume_are_no_part_of_the_run(tmp_path):
    name = "dit by flow matching"
    run = shutil.copytree(uninterrupted(name), tmp_path / "run")
    before = sorted(file.name for file in (run / "ema_snapshots").iterdir())
    # As of a run that went on from here with other options, and was given up.
    shutil.copy(run / "ema_snapshots" / before[-1], run / "ema_snapshots" / "step-00000009_sigma-0.1.safetensors")
    train(run, **VARIANTS[name], resume="latest")
    assert before and sorted(file.name for file in (run / "ema_snapshots").glob("step-*")) == before
    assert [file.name for file in (run / "ema_snapshots" / "given_up").iterdir()] == [
        "step-00000009_sigma-0.1.safetensors"
    ]


def test_an_earlier_checkpoint_gives_up_what_the_run_saved_after_it(tmp_path):
    first, last = "step-00000003", "step-00000006"
    runs = {name: train(tmp_path / name, pipeline_steps=2) for name in ("resumed", "expected")}
    shutil.rmtree(runs["expected"] / "checkpoints" / last)
    (runs["resumed"] / "pictures").mkdir()
    (runs["resumed"] / "pictures" / "step-00000004-samples.png").touch()
    for run in runs.values():
        train(run, resume=run / "checkpoints" / first, learning_rate=1e-1, pipeline_steps=5)
    assert_same_training_state(*(run / "checkpoints" / last for run in runs.values()))
    pipelines = sorted(folder.name for folder in (runs["resumed"] / "pipelines").glob("step-*"))
    assert pipelines == ["step-00000002", "step-00000005"]
    assert not list((runs["resumed"] / "pictures").glob("step-*"))
    # Given up, not deleted; a second time beside the first.
    given_up = [runs["resumed"] / folder / "given_up" for folder in ("checkpoints", "pipelines", "pictures")]
    assert [sorted(path.name for path in folder.iterdir()) for folder in given_up] == [
        [last],
        ["step-00000004"],
        ["step-00000004-samples.png"],
    ]
    train(runs["resumed"], resume=runs["resumed"] / "checkpoints" / first, learning_rate=1e-1, pipeline_steps=5)
    assert sorted(path.name for path in given_up[0].iterdir()) == [f"2-{last}", last]


def test_averages_of_an_earlier_run_in_the_folder_are_not_those_of_the_next(tmp_path):
    run = train(tmp_path / "run", extra_ema_decays=[0.9], max_train_steps=1)
    shutil.rmtree(run / "checkpoints")
    train(run, seed=5, extra_ema_decays=[0.8], max_train_steps=1)
    assert sorted(path.name for path in (run / "ema").iterdir()) == ["0.8", "given_up"]
    assert (run / "ema" / "given_up" / "0.9" / "config.json").is_file()
    # One that goes on replaces its own.
    train(run, seed=5, extra_ema_decays=[0.8], max_train_steps=1, resume="latest")
    assert sorted(path.name for path in (run / "ema").iterdir()) == ["0.8", "given_up"]


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    name = "dit by flow matching"
    run = shutil.copytree(uninterrupted(name), tmp_path / "run")
    shutil.rmtree(run / "pipeline")
    with open(last_checkpoint(run) / "model.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    train(run, **VARIANTS[name], resume="latest")
    assert_same_training_state(last_checkpoint(run), last_checkpoint(uninterrupted(name)))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_and_accumulation_train_what_one_rank_trains(tmp_path, name):
    half = {**VARIANTS[name], "train_batch_size": 2}
    # Before there are two processes that would both make it.
    with_tokens()
    assert fork_ranks(lambda rank: train(tmp_path / "two", **half)) == [0, 0]
    train(tmp_path / "accumulated", **half, gradient_accumulation_steps=2, gradient_checkpointing=True)
    expected = weights(last_checkpoint(uninterrupted(name)))
    for run in ("two", "accumulated"):
        found = weights(last_checkpoint(tmp_path / run))
        for key, value in expected.items():
            # Softmax ignores a bias of the keys: its gradient is rounding noise, which AdamW blows up.
            if not (key.endswith("to_k.bias") and name.startswith("dit")):
                torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("transformer", ["dit", "tc-dit"])
def test_half_precision_keeps_weights_averages_and_optimizer_in_fp32(tmp_path, transformer):
    run = train(tmp_path / "half", transformer=transformer, mixed_precision="bf16")
    plain = train(tmp_path / "plain", transformer=transformer)
    for part in ("checkpoints/step-00000006", "pipeline/transformer"):
        ours, theirs = weights(run / part), weights(plain / part)
        assert all(value.dtype == torch.float32 for value in ours.values())
        assert any(not torch.equal(value, theirs[key]) for key, value in ours.items())
    state = torch.load(run / "checkpoints/step-00000006/optimizer.bin", weights_only=True)["state"]
    assert all(entry["exp_avg"].dtype == torch.float32 for entry in state.values())
