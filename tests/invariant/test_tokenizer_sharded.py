"""`train_tcae` with parameters sharded by FSDP2 over two gloo ranks equals `train_tcae` with whole ones."""

import functools
import json

import pytest
import torch
from diffusers import AutoencoderKL

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview
from tcae_diffusers.training import train_tcae

from ..latent_commands import assert_close, assert_equal, fork_ranks, home, signalling, tensors_of, weights
from ..tokenizer_commands import MUON, SHAPINGS, checkpoint, train
from .test_dit_sharded import shard, sharded_state

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

# Clipping is active. The large epsilon keeps weights a smooth function of the gradients, see test_dit_sharded.
SMALL = {"train_batch_size": 2, "max_grad_norm": 0.1, "adam_epsilon": 1e-3}
KL = {
    "_class_name": "AutoencoderKL",
    "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "norm_num_groups": 2,
    "latent_channels": 2,
}
VARIANTS = {
    # iBOT with drop path. The optimizer has no state of the prototypes when a run is stopped after 2 steps.
    "ibot": {**SMALL, "ssl_freeze_last_layer_steps": 3, "heldout_steps": 3},
    "dinov2": {
        **SMALL,
        "ssl": "dinov2",
        "ssl_drop_path": 0,
        # Smaller than the images: the encoder is called three times per step.
        "ssl_global_crop_size": 8,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "max_train_steps": 3,
    },
    "reconstruction": {**SMALL, "ssl": "none", "max_train_steps": 3},
    "muon": {**SMALL, **MUON, "ssl_freeze_last_layer_steps": 3},
    "kl": {
        **SMALL,
        "ssl": "none",
        "ssl_drop_path": 0,
        "autoencoder_overrides": None,
        "kl_weight": 1e-2,
        "max_train_steps": 3,
    },
    "shaped": {**SMALL, "ssl": "none", **SHAPINGS["equivariance"], **SHAPINGS["denoising"], "max_train_steps": 3},
}


def train_on_two_ranks(folder, name, sharded, before=lambda rank: None, **options):
    """`train_tcae` in two forked processes; `before(rank)` is called in each. Returns their exit codes."""
    folder.mkdir(exist_ok=True)
    options = {**VARIANTS[name], "heldout_data": home() / "images", **options}
    if name == "kl":
        options["autoencoder"] = home() / "kl.json"
        options["autoencoder"].write_text(json.dumps(KL))

    def rank_run(rank):
        log = ReconstructionPreview.log

        def written(self, accelerator, autoencoder, ema, step):
            figure = log(self, accelerator, autoencoder, ema, step)
            (folder / f"psnr-{rank}-{step}").write_text(repr(figure))

        ReconstructionPreview.log = written
        before(rank)
        if sharded:
            shard(train_tcae)
        train(folder / "run", **options)

    return fork_ranks(rank_run)


@functools.cache
def uninterrupted(name, sharded):
    folder = home() / f"{name} {'sharded' if sharded else 'whole'}"
    assert train_on_two_ranks(folder, name, sharded) == [0, 0]
    return folder


def whole_state(folder):
    """What a checkpoint of whole parameters holds, under the names of [`full_state`]."""
    state = {f"pytorch_model_fsdp_0/model/{key}": value for key, value in weights(folder).items()}
    for index, name in enumerate(("averages/0", "guard", "teacher", "centres")):
        file = folder / f"custom_checkpoint_{index}.pkl"
        if file.exists():
            state |= tensors_of(torch.load(file, weights_only=True), name)
    return {key: torch.as_tensor(value) for key, value in state.items()}


def full_state(folder, scratch):
    """Everything of a sharded checkpoint, put together, with the teacher and the centres."""
    state = sharded_state(folder, scratch)
    for index, name in ((1, "teacher"), (2, "centres")):
        file = folder / f"custom_checkpoint_{index}.pkl"
        if file.exists():
            state |= tensors_of(torch.load(file, weights_only=True), name)
    return state


def last_checkpoint(folder, name):
    return checkpoint(folder / "run", VARIANTS[name].get("max_train_steps", 6))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_sharded_ranks_train_what_two_whole_ones_train(tmp_path, name):
    whole, sharded = uninterrupted(name, sharded=False), uninterrupted(name, sharded=True)
    state = full_state(last_checkpoint(sharded, name), tmp_path)
    expected = whole_state(last_checkpoint(whole, name))
    has_teacher = VARIANTS[name].get("ssl") != "none"
    for part in ("pytorch_model_fsdp_0", "averages", *(["teacher", "centres"] if has_teacher else [])):
        assert any(key.startswith(part) and value.ndim for key, value in expected.items()), part
    assert_close({key: state[key] for key in expected}, expected)

    assert_close(weights(sharded / "run/model"), weights(whole / "run/model"))
    config = (whole / "run/model/config.json").read_text()
    assert (sharded / "run/model/config.json").read_text() == config
    (AutoencoderKL if name == "kl" else AutoencoderTC).from_pretrained(sharded / "run/model")
    assert (sharded / "run/run.json").read_text() == (whole / "run/run.json").read_text()

    figures = sorted(path.name for path in whole.glob("psnr-*"))
    assert len(figures) == (4 if name == "ibot" else 2)
    for figure in figures:
        assert float((sharded / figure).read_text()) == pytest.approx(float((whole / figure).read_text()), rel=1e-4)


@pytest.mark.parametrize("name", ["ibot", "muon"])
def test_stopped_after_2_of_6_steps_and_resumed_equals_uninterrupted(tmp_path, name):
    def stop_in_second_step(rank):
        training = train_tcae.TokenizerTraining
        training.compute_loss = signalling(training.compute_loss, 2 if rank == 1 else None)

    folder = tmp_path / "stopped"
    assert train_on_two_ranks(folder, name, True, before=stop_in_second_step) == [0, 0]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (folder / "run" / "model").exists()
    assert train_on_two_ranks(folder, name, True, resume="latest") == [0, 0]
    expected = uninterrupted(name, sharded=True)
    ours, theirs = (full_state(last_checkpoint(run, name), tmp_path) for run in (folder, expected))
    assert any("exp_avg" in key for key in ours) and any(key.startswith("teacher") for key in ours)
    assert any("momentum_buffer" in key for key in ours) == (name == "muon")
    assert_equal(ours, theirs)
    assert_equal(weights(folder / "run/model"), weights(expected / "run/model"))
