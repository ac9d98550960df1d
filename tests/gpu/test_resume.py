"""A run goes on from its checkpoint on the device that it was on."""

import shutil

import pytest
import torch

from ..latent_commands import weights
from ..tokenizer_commands import checkpoint
from .training import COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_run_resumes_on_its_device(command, device, tmp_path):
    command(tmp_path / "run", checkpointing_steps=2)
    names = ("model", "pipeline/transformer")
    (result,) = (tmp_path / "run" / name for name in names if (tmp_path / "run" / name).is_dir())
    whole = weights(result)
    shutil.rmtree(checkpoint(tmp_path / "run", step=4))
    shutil.rmtree(result)
    command(tmp_path / "run", checkpointing_steps=2, resume="latest")
    resumed = weights(result)
    assert whole.keys() == resumed.keys()
    # Kernels of a GPU do not always add in the same order, and these runs are in bf16.
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0.05, atol=0.02)
