"""What trains an autoencoder to reconstruct images: all of it with a method beside, or its decoder alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from ..data.images.streamed_images import StreamedImages
from ..data.images.training_dataset import TokenizerTrainingDataset
from ..objectives.reconstruction import ReconstructionLoss
from .adversary import Adversary, Pass
from .averages import kept_batch_statistics
from .fit import Hooks, Side, fit
from .image_batches import image_loader
from .reconstruction_preview import ReconstructionPreview
from .run import Run, begin_run
from .tokenizer_arguments import AdversarialArguments

SomePass = TypeVar("SomePass", bound=Pass)


@dataclass
class ReconstructionTraining(ABC, Generic[SomePass]):
    """
    Everything that is trained and measured.

    Args:
        autoencoder: Unwrapped; `side.model` is what contains it, as accelerate prepared it.
        ema: Average of what is trained of the autoencoder.
        adversary: `None` unless asked for.
        preview: `None` without held-out images.
    """

    run: Run
    arguments: AdversarialArguments
    autoencoder: ModelMixin
    side: Side
    ema: EMAModel
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    dataset: TokenizerTrainingDataset | StreamedImages
    preview: ReconstructionPreview | None

    @abstractmethod
    def forward(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> SomePass:
        """The forward pass that is trained by."""

    @torch.no_grad()
    def forward_without_graph(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> Pass:
        """The reconstructions of [`forward`], before it: accumulated batches share one adaptive weight."""
        with kept_batch_statistics(self.autoencoder):
            return self.forward(batch, step, micro_step)

    @abstractmethod
    def save(self) -> str:
        """Write the result; a sentence for the log. All ranks must call this."""

    @property
    def sides(self) -> list[Side]:
        return [self.side] if self.adversary is None else [self.side, self.adversary.side]

    def describe_run(self, losses: str, size: str, **facts: Any) -> dict[str, Any]:
        """For `describe`: losses and size in words, and what else there is to know of the script."""
        data = f"{self.arguments.train_data}: {self.dataset.description}"
        return {
            "losses": losses,
            "autoencoder": type(self.autoencoder).__name__,
            **facts,
            "data": data,
            "total_batch": self.run.total_batch,
            "summary": f"{size}; {data}",
        }

    def train(self) -> None:
        self.side.model.train()
        batches = image_loader(self.dataset, self.arguments, self.run.accelerator, self.run.first_step)
        fit(self.run, batches, self.sides, self.schedule, self.backward, self.hooks())

    def schedule(self, step: int) -> None:
        """Learning rates are functions of the step alone, so a resume needs nothing else."""
        for group in self.side.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(step)
        if self.adversary is not None:
            self.adversary.schedule(step, self.arguments)

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        """Gradients of one forward pass, of the discriminator's too if there is one; its terms for the log."""
        adversary = self.adversary
        if adversary is not None and micro_step == 0:
            passes = (self.forward_without_graph(batch, step, index) for index, batch in enumerate(batches))
            adversary.begin_step(passes, len(batches), self.reconstruction_loss, step)
        seen = self.forward(batches[micro_step], step, micro_step)
        loss, metrics = self.compute_loss(seen, step)
        self.run.accelerator.backward(loss)
        return metrics if adversary is None else metrics | adversary.backward(seen, step)

    def compute_loss(self, seen: SomePass, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one forward pass, and its terms for the log."""
        reconstruction = self.reconstruction_loss(seen.sample, seen.images)
        loss, metrics = reconstruction.loss, {"train/loss_rec": reconstruction.loss}
        metrics |= {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
        if self.adversary is not None:
            adversarial, logged = self.adversary.generator_loss(seen, reconstruction.loss, step)
            loss, metrics = loss + adversarial, metrics | logged
        return loss, {"train/loss": loss, **metrics}

    def hooks(self) -> Hooks:
        return Hooks(
            self.save,
            after_step=None if self.adversary is None else self.adversary.after_step,
            due=[(self.arguments.heldout_steps, self.look_at_heldout_images)],
        )

    def look_at_heldout_images(self, step: int) -> None:
        """Figures and pictures for the log, if images are held out. All ranks must call this."""
        if self.preview is not None:
            self.preview.log(self.run.accelerator, self.autoencoder, self.ema, step)


def begin_reconstruction_run(
    name: str,
    arguments: AdversarialArguments,
    accelerator: Accelerator,
    side: Side,
    reconstruction_loss: ReconstructionLoss,
    adversary: Adversary | None,
    dataset: TokenizerTrainingDataset | StreamedImages,
    state: Sequence[Any],
    identity: dict[str, Any],
) -> Run:
    """[`begin_run`] with images, losses and adversary in the checkpoints; `state` and `identity` are the script's."""
    identity = {
        "data": dataset.fingerprint,
        "losses": reconstruction_loss.description,
        "discriminator": "none" if adversary is None else arguments.discriminator,
        **identity,
    }
    if adversary is not None:
        state = [*state, adversary.loss, adversary.average]
    if isinstance(dataset, StreamedImages):
        dataset.register_for_checkpointing(accelerator)
    return begin_run(name, arguments, accelerator, side.module, side.averages, state, identity)
