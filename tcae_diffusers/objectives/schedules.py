"""
Schedules as pure functions of the step, so that a resumed run needs one integer and no scheduler state.

A step is counted in optimizer steps from 0; `total_steps` is the length of the run. Steps outside the run are clamped
to its ends, so a run extended beyond its end keeps the final values.
"""

import math


def _check_total(total_steps: int) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; expected at least 1 optimizer step")


def cosine_with_warmup(
    step: int,
    total_steps: int,
    base_value: float,
    final_value: float,
    warmup_steps: int = 0,
) -> float:
    """
    Linear warm-up from 0 to `base_value`, then half a cosine down (or up) to `final_value`.

    The first of `warmup_steps` steps is already one increment above 0: the release of iBOT spends its first step on a
    learning rate of exactly 0.

    Args:
        step (`int`): optimizer step, from 0.
        total_steps (`int`): optimizer steps of the whole run.
        base_value (`float`): value at the end of the warm-up.
        final_value (`float`): value at the last step.
        warmup_steps (`int`, defaults to 0): optimizer steps of warm-up.

    Raises:
        ValueError: `total_steps` below 1 or `warmup_steps` outside [0, total_steps].
    """
    _check_total(total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; expected 0 to total_steps = {total_steps}")
    step = min(max(step, 0), total_steps - 1)
    if step < warmup_steps:
        return base_value * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps - 1, 1)
    return final_value + 0.5 * (base_value - final_value) * (1.0 + math.cos(math.pi * progress))


def teacher_momentum(step: int, total_steps: int, base_value: float = 0.996, final_value: float = 1.0) -> float:
    """Momentum of the teacher: cosine from 0.996 to 1 (iBOT release; 0.9995 for batches under 512)."""
    return cosine_with_warmup(step, total_steps, base_value, final_value)


def weight_decay(step: int, total_steps: int, base_value: float = 0.04, final_value: float = 0.4) -> float:
    """Weight decay: cosine from 0.04 to 0.4 (iBOT release)."""
    return cosine_with_warmup(step, total_steps, base_value, final_value)


def teacher_temperature(
    step: int,
    total_steps: int,
    warmup_value: float = 0.04,
    final_value: float = 0.07,
    warmup_fraction: float = 0.3,
) -> float:
    """
    Teacher temperature: linear from `warmup_value` to `final_value` over the first `warmup_fraction` of the run, then
    constant. Call it once per kind of token where class and patch tokens have different temperatures.

    The release steps once an epoch (30 of 100 epochs); this one moves every step, which a run shorter than an epoch
    needs.
    """
    _check_total(total_steps)
    if not 0.0 <= warmup_fraction <= 1.0:
        raise ValueError(f"warmup_fraction is {warmup_fraction}; expected a fraction of the run in [0, 1]")
    warmup_steps = warmup_fraction * total_steps
    progress = 1.0 if warmup_steps == 0 else min(max(step, 0) / warmup_steps, 1.0)
    return warmup_value + (final_value - warmup_value) * progress
