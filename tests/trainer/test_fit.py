"""The loop calls a script at the moments it promises, for every side that learns by then."""

import pytest
import torch
from accelerate import Accelerator

from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.checkpoint import CheckpointManager
from tcae_diffusers.trainer.fit import Hooks, Side, fit
from tcae_diffusers.trainer.nonfinite import NonFiniteGuard
from tcae_diffusers.trainer.optimizers import adamw
from tcae_diffusers.trainer.run import Run

from ..latent_commands import reset_accelerate


@pytest.fixture
def started(tmp_path):
    """`started(first_step)`: a run of five steps of two accumulated batches, and its two sides."""

    def start(first_step=0):
        reset_accelerate()
        arguments = RunArguments(
            output_dir=str(tmp_path),
            max_train_steps=5,
            train_batch_size=2,
            gradient_accumulation_steps=2,
            checkpointing_steps=4,
            log_steps=2,
            report_to="none",
            learning_rate=0.1,
        )
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        sides = []
        for name, begins in (("", 0), ("_other", 2)):
            module = torch.nn.Linear(1, 1, bias=False)
            model, optimizer = accelerator.prepare(module, adamw(module.parameters(), arguments))
            sides.append(Side(module, model, optimizer, [], name, begins))
        guard = NonFiniteGuard(accelerator, 3)
        checkpoints = CheckpointManager(accelerator, tmp_path / "checkpoints", 9, {}, {})
        return Run("test", arguments, tmp_path, accelerator, guard, checkpoints, 4, first_step), sides

    yield start
    reset_accelerate()


def record(run, sides, spoilt_step=None):
    """`fit` with hooks that note when they are called; the notes, and the weights after each step."""
    notes, weights = [], []

    def backward(batches, step, micro_step):
        notes.append(("backward", step, micro_step, [batch.item() for batch in batches]))
        metrics = {}
        for side in sides:
            if step >= side.first_step:
                loss = side.model(torch.ones(1, 1)).square().mean()
                loss = loss * (float("nan") if step == spoilt_step else 1.0)
                run.accelerator.backward(loss)
                metrics[side.loss] = loss
        return metrics

    def after_step(step, skipped):
        notes.append(("after step", step, skipped.item()))
        weights.append([side.module.weight.item() for side in sides])

    hooks = Hooks(
        finish=lambda: notes.append("finish"),
        after_backward=lambda step: notes.append(("after backward", step)) or {},
        after_step=after_step,
        after_log=lambda step, logged: notes.append(("log", step, sorted(logged))),
        due=[(2, lambda step: notes.append(("due", step)))],
    )
    batches = (torch.tensor(float(number)) for number in range(2 * run.first_step, 100))
    fit(run, batches, sides, lambda step: notes.append(("schedule", step)), backward, hooks)
    return notes, weights


def test_a_step_is_schedule_backward_of_each_batch_then_hooks(started):
    notes, weights = record(*started())
    assert notes[:5] == [
        ("schedule", 0),
        ("backward", 0, 0, [0.0, 1.0]),
        ("backward", 0, 1, [0.0, 1.0]),
        ("after backward", 0),
        ("after step", 0, 0.0),
    ]
    assert [note[1] for note in notes if note[0] == "schedule"] == list(range(5))
    # Every second step, and the last.
    assert [note[1] for note in notes if note[0] == "due"] == [2, 4, 5]
    assert [note[1] for note in notes if note[0] == "log"] == [2, 4, 5] and notes[-1] == "finish"
    # The other side stands still until its first step.
    others = [pair[1] for pair in weights]
    assert others[0] == others[1] != others[2]


def test_what_is_logged_names_each_side_that_learns(started):
    logs = [note[2] for note in record(*started())[0] if note[0] == "log"]
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(logs[0])
    assert "train/loss_other" not in logs[0]
    assert {"train/loss_other", "train/grad_norm_other"} <= set(logs[1])


def test_a_step_that_is_not_finite_moves_no_side(started):
    notes, weights = record(*started(), spoilt_step=3)
    assert [note[2] for note in notes if note[0] == "after step"] == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert weights[2] == weights[3] != weights[4]


def test_a_run_begins_at_its_first_step_and_writes_checkpoints_on_the_way_and_at_the_end(started, tmp_path):
    notes, _ = record(*started(first_step=3))
    assert notes[1] == ("backward", 3, 0, [6.0, 7.0])
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
