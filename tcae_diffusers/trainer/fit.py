"""The one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate.logging import get_logger
from torch.nn.utils import clip_grad_norm_

from ..data.whole_tensor import whole_tensor
from .arguments import RunArguments
from .averages import trained_parameters
from .progress import TrainingProgress
from .run import Run
from .signals import StopSignal

logger = get_logger(__name__)


class Average(Protocol):
    """What follows the weights, such as an exponential moving average."""

    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...


@dataclass
class Side:
    """
    What one optimizer trains: the model, or the adversary that it plays against.

    Args:
        module (`nn.Module`): Unwrapped; its parameters with gradient are clipped together and averaged.
        model (`nn.Module`): The same, or what contains it, as accelerate prepared it.
        optimizer (`torch.optim.Optimizer`): As accelerate prepared it.
        averages: Each takes a step after the optimizer.
        name (`str`, defaults to `""`): Behind `train/loss` and `train/grad_norm` in the log.
        first_step (`int`, defaults to 0): Optimizer step at which this side begins to learn.
    """

    module: torch.nn.Module
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    averages: Sequence[Average] = ()
    name: str = ""
    first_step: int = 0

    @property
    def loss(self) -> str:
        return f"train/loss{self.name}"

    @property
    def grad_norm(self) -> str:
        return f"train/grad_norm{self.name}"


@dataclass
class Hooks:
    """
    What a script does at certain moments beside the losses; every moment but `finish` may be left out.

    Args:
        finish: `() -> sentence for the log`: writes the result, after the last step. All ranks call it.
        after_backward: `(step) -> terms for the log`: gradients are complete, unscaled and not yet clipped.
        after_step: `(step, skipped)`: `skipped` is 1.0, on the device, where the step was not finite.
        after_log: `(steps done, what was logged)`.
        due: `(every, what)` pairs: `what(steps done)` is called every so many steps and after the last one.
    """

    finish: Callable[[], str]
    after_backward: Callable[[int], dict[str, torch.Tensor]] | None = None
    after_step: Callable[[int, torch.Tensor], None] | None = None
    after_log: Callable[[int, dict[str, float]], None] | None = None
    due: Sequence[tuple[int, Callable[[int], object]]] = field(default_factory=list)


def fit(
    run: Run,
    batches: Iterable[dict[str, torch.Tensor]],
    sides: Sequence[Side],
    schedule: Callable[[int], None],
    backward: Callable[[list[dict[str, torch.Tensor]], int, int], dict[str, torch.Tensor]],
    hooks: Hooks,
) -> None:
    """
    Train from `run.first_step` to `max_train_steps`, or to a signal; then a checkpoint, and the result once it is
    finished. Everything about a step is a function of its number, so a resumed run repeats an uninterrupted one.

    Args:
        run ([`Run`]): Of the script.
        batches: This rank's, from `run.first_step` on, `gradient_accumulation_steps` for each step.
        sides: The first is the model. All learn in the same step or, where it is not finite, none does.
        schedule: `(step)`: sets learning rates and the like in the optimizers.
        backward:
            `(batches of the step, step, which of them) -> terms for the log`: the forward and backward passes of one
            batch for every side that learns in this step. The terms are tensors of shape `()`, among them the
            [`Side.loss`] of each such side.
        hooks ([`Hooks`]): The rest.

    Raises:
        NonFiniteError: too many steps in a row were not finite.
        CheckpointError: a checkpoint could not be written.
    """
    arguments, accelerator = run.arguments, run.accelerator
    total, step = arguments.max_train_steps, run.first_step
    progress = TrainingProgress(accelerator, run.name, total, step, run.total_batch, arguments.log_steps)
    batches = iter(batches)
    with StopSignal() as stop:
        while step < total and not stop.agreed():
            schedule(step)
            skipped = take_step(run, batches, sides, backward, hooks, progress, step)
            if hooks.after_step is not None:
                hooks.after_step(step, skipped)
            step += 1
            logged = progress.step(step, {"train/learning_rate": sides[0].optimizer.param_groups[0]["lr"]})
            if logged is not None:
                warn_of_skipped_steps(run)
                if hooks.after_log is not None:
                    hooks.after_log(step, logged)
            started = time.perf_counter()
            for every, what in hooks.due:
                if step % every == 0 or step == total:
                    what(step)
            if step % arguments.checkpointing_steps == 0 and step < total:
                run.save_checkpoint(step)
            progress.pause(time.perf_counter() - started)
        run.save_checkpoint(step)
    progress.close()
    if step == total:
        logger.info(f"finished; {hooks.finish()}")
    else:
        logger.warning(f"{stop.reason}: saved at step {step}; resume with --resume latest")
    accelerator.end_training()


def take_step(
    run: Run,
    batches: Iterator[dict[str, torch.Tensor]],
    sides: Sequence[Side],
    backward: Callable,
    hooks: Hooks,
    progress: TrainingProgress,
    step: int,
) -> torch.Tensor:
    """One optimizer step of every side that learns by now, and its averages. Returns 1.0 where it was not finite."""
    accelerator, accumulated = run.accelerator, run.arguments.gradient_accumulation_steps
    started = time.perf_counter()
    micro_batches = [next(batches) for _ in range(accumulated)]
    progress.waited(time.perf_counter() - started)
    sides = [side for side in sides if step >= side.first_step]
    for micro_step in range(accumulated):
        with accelerator.accumulate(*(side.model for side in sides)):
            metrics = backward(micro_batches, step, micro_step)
            if accelerator.sync_gradients:
                accelerator.unscale_gradients([side.optimizer for side in sides])
                if hooks.after_backward is not None:
                    metrics |= hooks.after_backward(step)
                metrics |= {side.grad_norm: clip_gradients(side, run.arguments) for side in sides}
                # If only one side skipped, the other would train against a frozen opponent: all skip or none does.
                skipped = run.guard.mark(
                    [side.optimizer for side in sides],
                    sum(metrics[side.loss] for side in sides),
                    sum(metrics[side.grad_norm] for side in sides),
                )
            for side in sides:
                side.optimizer.step()
                side.optimizer.zero_grad()
        progress.add(metrics)
    for side in sides:
        for average in side.averages:
            average.step(trained_parameters(side.module))
    return skipped


def clip_gradients(side: Side, arguments: RunArguments) -> torch.Tensor:
    """
    Clip the gradients of a side together, or each tensor by itself as iBOT's release does.

    Returns:
        `torch.Tensor` of shape `()`: the norm of all of them before it, gathered where they are sharded.
    """
    parameters = [parameter for parameter in trained_parameters(side.model) if parameter.grad is not None]
    if arguments.grad_clipping == "norm":
        return whole_tensor(clip_grad_norm_(parameters, arguments.max_grad_norm))
    norms = [whole_tensor(clip_grad_norm_(parameter, arguments.max_grad_norm)) for parameter in parameters]
    return torch.stack(norms).norm()


def warn_of_skipped_steps(run: Run) -> None:
    if skipped := run.guard.check():
        logger.warning(f"{skipped} steps skipped so far because the loss or a gradient was not finite")


def is_log_step(step: int, arguments: RunArguments) -> bool:
    """Whether the step after `step` completed steps is logged, with costly diagnostics."""
    return (step + 1) % arguments.log_steps == 0 or step + 1 == arguments.max_train_steps
