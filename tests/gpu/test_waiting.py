"""Inside a training step nothing waits for the device, so the CPU runs ahead and the GPU is never idle."""

from contextlib import nullcontext

import pytest
from torch.utils._python_dispatch import _disable_current_modes

from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.trainer import fit

from ..waiting import forbid_waiting
from .training import COMMANDS

# Allocations, kernels that are tuned or compiled, and the optimizer's state come with the first steps.
WARM_UP = 2


def watch_steps(monkeypatch, device) -> list[int]:
    """From now on a step of any command fails where it waits. Returns the list of watched steps, which grows."""
    take_step, from_mask, watched = fit.take_step, MaskedTokens.from_mask, []

    def watched_step(run, batches, sides, backward, hooks, progress, step):
        if step == 0 and hooks.after_step is not None:
            hooks.after_step = watched_after(hooks.after_step)
        # Loading is the CPU's own business.
        loaded = iter([next(batches) for _ in range(run.arguments.gradient_accumulation_steps)])
        if step < WARM_UP:
            return take_step(run, loaded, sides, backward, hooks, progress, step)
        watched.append(step)
        with forbid_waiting(device):
            return take_step(run, loaded, sides, backward, hooks, progress, step)

    def watched_after(after_step):
        def after(step, skipped):
            with forbid_waiting(device) if step >= WARM_UP else nullcontext():
                after_step(step, skipped)

        return after

    def counted_on_the_cpu(mask):
        assert mask.device.type == "cpu"
        with _disable_current_modes():
            return from_mask(mask)

    monkeypatch.setattr(fit, "take_step", watched_step)
    monkeypatch.setattr(MaskedTokens, "from_mask", counted_on_the_cpu)
    return watched


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_no_step_waits_for_the_device(command, device, tmp_path, monkeypatch):
    watched = watch_steps(monkeypatch, device)
    command(tmp_path / "run", log_steps=100)
    assert watched == [2, 3]
