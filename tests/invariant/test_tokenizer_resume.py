"""A tokenizer run that was stopped and resumed equals the uninterrupted one, through `train_tcae`."""

import json
import os
import shutil
import signal

import pytest
import torch

from tcae_diffusers.files import sha256_of_file
from tcae_diffusers.training import train_tcae

from ..latent_commands import assert_same_training_state, signalling, weights
from ..tokenizer_commands import MUON, SMOOTH, assert_close_state, checkpoint, train, uninterrupted


def stop_at_call(monkeypatch, number, signal_number):
    training = train_tcae.TokenizerTraining
    monkeypatch.setattr(training, "compute_loss", signalling(training.compute_loss, number, signal_number))


# 22 images in batches of 4: step 4 is in epoch 0, the 6th step crosses into epoch 1.
VARIANTS = {
    "ibot": {},
    "dinov2 in accumulated halves": {"ssl": "dinov2", "train_batch_size": 2, "gradient_accumulation_steps": 2},
    "dino on the first stage": {"ssl": "dino", "ssl_features": "first_stage"},
    "reconstruction alone": {"ssl": "none"},
    "muon": {**MUON, "ssl_hidden_dim": 64},
}


@pytest.mark.parametrize(("name", "number"), [*((name, signal.SIGTERM) for name in VARIANTS), ("ibot", signal.SIGINT)])
def test_stopped_by_a_signal_within_a_step_and_resumed_equals_uninterrupted(
    tmp_path, monkeypatch, caplog, name, number
):
    options = VARIANTS[name]
    calls = 2 * options.get("gradient_accumulation_steps", 1)
    # A shell starts what it puts into the background with SIGINT ignored.
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at_call(patch, calls, number)
        # Returning is exit code 0; the handlers of this process are back afterwards.
        train(tmp_path / "run", **options)
    assert f"{signal.Signals(number).name}: saved at step 2; resume with --resume latest" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "run" / "model").exists()

    train(tmp_path / "run", **options, resume="latest")
    whole = uninterrupted() if name == "ibot" else train(tmp_path / "whole", **options)
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))
    ours, theirs = weights(tmp_path / "run" / "model"), weights(whole / "model")
    assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_the_state_that_is_compared_holds_teacher_centres_optimizer_and_average():
    folder = checkpoint(uninterrupted())
    parts = [torch.load(file, weights_only=True) for file in sorted(folder.glob("custom_checkpoint_*.pkl"))]
    assert len(parts) == 4
    ema, guard, teacher, loss = parts
    assert ema["optimization_step"] == 6 and set(guard) == {"skipped", "in_a_row"}
    assert any(key.startswith("encoder.") for key in teacher) and any(key.startswith("head.") for key in teacher)
    assert loss["class_center"].abs().sum() > 0 and loss["patch_center"].abs().sum() > 0
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
    assert all({"step", "exp_avg", "exp_avg_sq"} <= set(state) for state in optimizer["state"].values())


def test_a_run_from_a_named_checkpoint_equals_the_whole_one(tmp_path):
    named = checkpoint(shutil.copytree(uninterrupted(), tmp_path / "old"), step=3)
    train(tmp_path / "run", resume=named)
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(uninterrupted()))


@pytest.mark.parametrize("damage", ["shorter", "altered", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, damage):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    shutil.rmtree(run / "model")
    victim = checkpoint(run) / "model.safetensors"
    if damage == "missing":
        victim.unlink()
    elif damage == "shorter":
        os.truncate(victim, victim.stat().st_size - 1)
    else:
        with open(victim, "r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last[0] ^ 1]))
    train(run, resume="latest")
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))
    assert (run / "model" / "config.json").exists()


def test_resuming_a_finished_run_writes_the_same_model_again(tmp_path):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    shutil.rmtree(run / "model")
    (run / ".model-left-by-a-killed-process").mkdir()
    train(run, resume="latest")
    ours, theirs = weights(run / "model"), weights(uninterrupted() / "model")
    assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not list(run.glob(".model*"))


def test_workers_change_nothing(tmp_path):
    run = train(tmp_path / "run", dataloader_num_workers=2)
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"learning_rate": 1e-3}, "learning_rate 0.01 before and 0.001 now"),
        ({"horizontal_flip": False, "ssl_weight": 0.5}, "horizontal_flip True before and False now, ssl_weight 1.0"),
        ({"log_steps": 3, "dataloader_num_workers": 1}, None),
    ],
)
def test_an_option_that_changes_within_a_run_is_named(tmp_path, caplog, changed, words):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    shutil.rmtree(checkpoint(run))
    train(run, resume="latest", **changed)
    warnings = [record.message for record in caplog.records if "options changed since" in record.message]
    assert len(warnings) == (1 if words else 0) and all(words in warning for warning in warnings)


def test_options_of_optimizer_and_average_change_within_a_run(tmp_path):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    shutil.rmtree(checkpoint(run))
    train(run, resume="latest", adam_beta1=0.8, adam_beta2=0.7, adam_epsilon=1e-5, weight_decay=0.3, ema_decay=0.25)
    optimizer = torch.load(checkpoint(run) / "optimizer.bin", weights_only=True)
    constant = next(group for group in optimizer["param_groups"] if group["name"] == "constant")
    assert (constant["betas"], constant["eps"], constant["weight_decay"]) == ((0.8, 0.7), 1e-5, 0.3)
    average = torch.load(checkpoint(run) / "custom_checkpoint_0.pkl", weights_only=True)
    assert average["decay"] == 0.25 and average["optimization_step"] == 6


def test_batches_may_be_accumulated_otherwise_within_a_run(tmp_path):
    whole = train(tmp_path / "whole", **SMOOTH)
    # An odd number of forward passes so far: with two for each step, every step would end between two of them.
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(checkpoint(run))
    assert checkpoint(run, step=3).exists()
    train(run, **SMOOTH, resume="latest", train_batch_size=2, gradient_accumulation_steps=2)
    assert_close_state(run, whole)


def test_damaged_checkpoints_do_not_push_out_those_of_the_run(tmp_path):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    (checkpoint(run) / "model.safetensors").unlink()
    train(run, resume="latest", max_train_steps=6, checkpointing_steps=4, checkpoints_total_limit=1)
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000006"]
    assert [path.name for path in (run / "checkpoints" / "given_up").iterdir()] == ["step-00000006"]

    for damaged in run.glob("checkpoints/step-*/model.safetensors"):
        damaged.unlink()
    train(run, resume="latest")
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))


class RunsCode:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('ran').touch()",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shared = shutil.copytree(checkpoint(uninterrupted(), step=3), tmp_path / "shared" / "step-00000003")
    file = shared / "custom_checkpoint_1.pkl"
    torch.save(RunsCode(), file)
    manifest = json.loads((shared / "manifest.json").read_text())
    manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
    (shared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", resume=shared, learning_rate=1e-3)
    assert stopped.value.code == 2 and "custom_checkpoint_1.pkl may run code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_an_option_that_the_state_of_a_run_does_not_fit_is_named(tmp_path, capsys):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        train(run, resume="latest", ssl_out_dim=32)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert "does not fit this run, whose options are not those it was written with: ssl_out_dim 16 before" in error
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path, capsys):
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        train(run)
    assert stopped.value.code == 2 and "--resume latest" in capsys.readouterr().err
    assert_same_training_state(checkpoint(run), checkpoint(uninterrupted()))
