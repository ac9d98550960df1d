"""The seam between the training of a tokenizer and a self-supervised method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..charts import Chart


@dataclass
class StudentOutput:
    """
    Args:
        reconstruction (`torch.Tensor` of shape `(B, 3, H, W)`): Decoded images.
        latent (`torch.Tensor` of shape `(B, c, h, w)`): Un-normalised latent of the reconstructed images.
        kl (`torch.Tensor`, *optional*): Divergence of a sampled latent per pixel value, where the autoencoder has one.
        method (`dict[str, torch.Tensor]`): What the method's own parts returned.
    """

    reconstruction: torch.Tensor
    latent: torch.Tensor
    kl: torch.Tensor | None = None
    method: dict[str, torch.Tensor] = field(default_factory=dict)


class SelfSupervision(ABC):
    """
    A method: which views it needs, what it trains, its loss, and what it does around an optimizer step.

    Args:
        parts (`nn.Module`):
            What is trained together with the autoencoder and not saved with it, such as a head. Called once per
            forward pass as `parts(adapter, images, views)`, it runs the encoder over all that the step needs, images
            to reconstruct included (equal sizes can share a pass), and returns what the encoder says of these, for
            `adapter.training_latent`, and a `dict` of tensors for [`loss`].
    """

    # What the method logs.
    charts: ClassVar[tuple[Chart, ...]] = ()

    def __init__(self, parts: nn.Module):
        self.parts = parts

    @property
    @abstractmethod
    def description(self) -> str:
        """The method in a few words, for the log and the folder of a run."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to continue a run."""
        return {}

    def crops(self) -> dict[str, Any]:
        """Options of [`~data.images.multi_crop.MultiCropTransform`] that say which views an image gives."""
        return {}

    def prepare(self, batch: dict[str, torch.Tensor], generators: list[torch.Generator], device: torch.device) -> Any:
        """
        The views of a batch on the device, as `parts` and [`loss`] take them.

        Args:
            batch (`dict[str, torch.Tensor]`): From the loader, on the CPU: uint8 views and masks.
            generators (`list[torch.Generator]`):
                One per image, on the CPU, each a function of (seed, step, slot): what is drawn from them does not
                depend on how a step is divided over ranks and forward passes.
        """
        return None

    @abstractmethod
    def loss(
        self, output: StudentOutput, views: Any, step: int, with_diagnostics: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The loss of one forward pass, fp32 without dimensions, and what is logged of it. Called inside autocast.

        Args:
            step (`int`): Optimizer steps done.
            with_diagnostics (`bool`): Whether this step ends with a log entry, which may cost more.
        """

    def after_backward(self, step: int) -> None:
        """Called when the gradients of a step are complete, before they are clipped."""
        return

    def after_step(self, step: int, skipped: torch.Tensor) -> None:
        """
        Called after the optimizer.

        Args:
            skipped (`torch.Tensor` of shape `()`): 1.0 where the step was not finite and nothing moved, on the device.
        """
        return

    def state(self) -> list[nn.Module]:
        """Modules besides `parts` that belong into a checkpoint, such as a teacher."""
        return []

    def warning(self, step: int, logged: dict[str, float]) -> str | None:
        """A sentence for the log about what was logged after `step` steps, where a reader must not miss it."""
        return None
