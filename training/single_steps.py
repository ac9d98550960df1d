"""`train_tcae` or `finetune_decoder` one optimizer step at a time, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch

from tcae_diffusers.trainer.fit import take_step
from tcae_diffusers.trainer.image_batches import image_loader
from tcae_diffusers.trainer.progress import TrainingProgress
from tcae_diffusers.trainer.reconstruction_training import ReconstructionTraining
from tcae_diffusers.trainer.run import reset_accelerate
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

SomeTraining = TypeVar("SomeTraining", bound=ReconstructionTraining)


class SteppedTraining(Generic[SomeTraining]):
    """
    A run of a command, started and without a progress bar.

    Args:
        start (`Callable`): `train_tcae.start` or `finetune_decoder.start`.
        arguments (`TokenizerArguments` or `DecoderArguments`): Those of the command.
    """

    def __init__(self, start: Callable[[Any], SomeTraining], arguments: TokenizerArguments | DecoderArguments):
        reset_accelerate()
        self.training = start(arguments)
        self.training.side.model.train()
        run = self.training.run
        self.progress = TrainingProgress(
            run.accelerator, "bench", arguments.max_train_steps, 0, run.total_batch, arguments.log_steps
        )
        self.progress.bar.disable = True
        self.batches = iter(image_loader(self.training.dataset, arguments, run.accelerator, 0))

    def step(self, step: int, batches: Iterator[dict[str, torch.Tensor]] | None = None) -> torch.Tensor:
        """
        The whole optimizer step after `step` others, on `batches` or on the next of the run: weights, average and
        teacher. Returns 1.0 where it was not finite.
        """
        training, hooks = self.training, self.training.hooks()
        training.schedule(step)
        skipped = take_step(
            training.run, batches or self.batches, training.sides, training.backward, hooks, self.progress, step
        )
        if hooks.after_step is not None:
            hooks.after_step(step, skipped)
        return skipped
