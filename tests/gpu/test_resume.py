"""A run goes on from its checkpoint on the device that it was on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ..tokenizer_commands import checkpoint
from .training import COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_run_resumes_on_its_device(command, device, tmp_path):
    run = tmp_path / "run"
    command(run, checkpointing_steps=2)
    shutil.move(checkpoint(run, step=4), tmp_path / "whole")
    command(run, checkpointing_steps=2, resume="latest")
    start, whole, resumed = (
        load_file(folder / "model.safetensors")
        for folder in (checkpoint(run, step=2), tmp_path / "whole", checkpoint(run, step=4))
    )
    assert start.keys() == whole.keys() == resumed.keys()
    if device == "cpu":
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())
        return
    # Kernels of a GPU do not always add in the same order; the way that two steps go is the same but for that.
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in whole]).norm()
    apart = torch.cat([(whole[name] - resumed[name]).flatten() for name in whole]).norm()
    assert moved > 0 and apart < 0.2 * moved
