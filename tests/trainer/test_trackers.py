"""What goes to the trackers besides TensorBoard, through the real command; each is tried where it is installed."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.trackers import require_tracker, tracker_options

from ..latent_commands import home
from ..tokenizer_commands import OPTIONS, with_effect

SCRIPT = "import sys; from tcae_diffusers.training.train_tcae import main; main(sys.argv[1:])"


def train_in_a_process(output, environment, **options):
    # wandb and trackio keep threads and services for the life of a process.
    options = {
        **with_effect(OPTIONS, options),
        "train_data": home() / "images",
        "output_dir": output,
        "log_steps": 1,
        **options,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, env=environment, timeout=300)


def interrupted_at_step_3_and_resumed(folder, tracker, environment):
    options = {
        "heldout_data": home() / "images",
        "heldout_steps": 3,
        "report_to": tracker,
        "checkpoints_total_limit": 9,
    }
    train_in_a_process(folder, environment, **options)
    # As after a kill at step 6: the last checkpoint is that of step 3, the log is ahead of it.
    for part in ("model", "checkpoints/step-00000006"):
        shutil.rmtree(folder / part)
    train_in_a_process(folder, environment, **options, resume="latest")


def test_wandb_gets_figures_and_pictures_under_one_id(tmp_path):
    pytest.importorskip("wandb")
    interrupted_at_step_3_and_resumed(tmp_path / "run", "wandb", {**os.environ, "WANDB_MODE": "offline"})
    entries = sorted((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*"))
    assert len(entries) == 2 and len({entry.name.rsplit("-", 1)[1] for entry in entries}) == 1
    # wandb puts the step into the name of a picture.
    steps = [{picture.stem.rsplit("_", 2)[1] for picture in entry.rglob("*.png")} for entry in entries]
    assert steps == [{"3", "6"}, {"6"}]
    assert len(list(entries[0].rglob("*.png"))) == 4


def test_trackio_gets_figures_and_pictures_under_one_name(tmp_path):
    pytest.importorskip("trackio")
    interrupted_at_step_3_and_resumed(tmp_path / "run", "trackio", {**os.environ, "TRACKIO_DIR": str(tmp_path / "t")})
    with sqlite3.connect(tmp_path / "t" / "train_tcae.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert {step for _, step, _ in rows} == set(range(1, 7))
    losses = {}
    for _, step, metrics in rows:
        if "train/loss" in (values := json.loads(metrics)):
            losses.setdefault(step, set()).add(values["train/loss"])
    # What the resumed run logs again is what was there.
    assert all(len(values) == 1 for values in losses.values())
    assert len(list((tmp_path / "t" / "media").rglob("*.png"))) >= 4


@pytest.mark.parametrize(("tracker", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_run_that_goes_on_is_opened_under_its_old_id_and_a_new_one_under_a_new(tmp_path, tracker, key):
    arguments = RunArguments(output_dir=str(tmp_path), report_to=tracker)
    opened = [tracker_options(arguments, first_step)[key] for first_step in (0, 3, 6, 0)]
    assert opened[0] == opened[1] == opened[2] != opened[3]


def test_tensorboard_drops_what_is_done_again_and_needs_no_id(tmp_path):
    assert tracker_options(RunArguments(output_dir=str(tmp_path)), 3) == {"purge_step": 4}
    assert tracker_options(RunArguments(output_dir=str(tmp_path), report_to="none"), 3) == {}
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_an_error_and_not_silence(monkeypatch):
    monkeypatch.setattr("tcae_diffusers.trainer.trackers.get_available_trackers", lambda: ["tensorboard"])
    require_tracker("tensorboard")
    require_tracker("none")
    with pytest.raises(ValueError, match="--report_to wandb: its package is not installed; run pip install wandb"):
        require_tracker("wandb")
