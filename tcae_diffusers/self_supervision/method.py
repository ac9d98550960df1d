"""The interface between tokenizer training and a self-supervised method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..charts import Chart
from ..objectives.latent_shaping import Shaped


@dataclass
class StudentOutput:
    """
    Args:
        reconstruction (`torch.Tensor` of the shape of `shaped.target`): Decoded images.
        latent (`torch.Tensor` of shape `(B, c, h, w)`): Un-normalised latent of the images, as the encoder gives it.
        shaped ([`~objectives.latent_shaping.Shaped`]): What was decoded, and what it was to be reconstructed to.
        kl (`torch.Tensor`, *optional*): Divergence of a sampled latent per pixel value, where the autoencoder has one.
        method (`dict[str, torch.Tensor]`): Outputs of the method's own modules.
    """

    reconstruction: torch.Tensor
    latent: torch.Tensor
    shaped: Shaped
    kl: torch.Tensor | None = None
    method: dict[str, torch.Tensor] = field(default_factory=dict)


class SelfSupervision(ABC):
    """
    A self-supervised method: the views it needs, the modules it trains, its loss, and what it does around an optimizer
    step.

    Args:
        parts (`nn.Module`):
            Modules trained together with the autoencoder but not saved with it, such as a head. Called once per
            forward pass as `parts(adapter, images, views)`, it runs the encoder over everything that the step needs,
            including the images to reconstruct (equal sizes can share a pass), and returns the encoder's output for
            these, for `adapter.training_latent`, and a `dict` of tensors for [`loss`].
    """

    # Charts of what the method logs.
    charts: ClassVar[tuple[Chart, ...]] = ()

    def __init__(self, parts: nn.Module):
        self.parts = parts

    @property
    @abstractmethod
    def description(self) -> str:
        """The method in a few words, for the log and for `run.json`."""

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that must match those of a checkpoint to resume from it."""
        return {}

    def crops(self) -> dict[str, Any]:
        """Options of [`~data.images.multi_crop.MultiCropTransform`] for the views of an image."""
        return {}

    def prepare(self, batch: dict[str, torch.Tensor], generators: list[torch.Generator], device: torch.device) -> Any:
        """
        The views of a batch on the device, as `parts` and [`loss`] take them.

        Args:
            batch (`dict[str, torch.Tensor]`): From the loader, on the CPU: uint8 views and masks.
            generators (`list[torch.Generator]`):
                One per image, on the CPU, each a function of (seed, step, slot): random numbers drawn from them do not
                depend on how a step is divided over ranks and forward passes.
        """
        return None

    @abstractmethod
    def loss(
        self, output: StudentOutput, views: Any, step: int, with_diagnostics: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The loss of one forward pass, an fp32 scalar, and the values to log. Called inside autocast.

        Args:
            step (`int`): Completed optimizer steps.
            with_diagnostics (`bool`): Whether this step is logged, so that costlier diagnostics are worth computing.
        """

    def after_backward(self, step: int) -> None:
        """Called when the gradients of a step are complete, before they are clipped."""
        return

    def after_step(self, step: int, skipped: torch.Tensor) -> None:
        """
        Called after the optimizer.

        Args:
            skipped (`torch.Tensor` of shape `()`): 1.0 if the step was not finite and was skipped, on the device.
        """
        return

    def state(self) -> list[nn.Module]:
        """Modules besides `parts` to store in a checkpoint, such as a teacher."""
        return []

    def warning(self, step: int, logged: dict[str, float]) -> str | None:
        """A warning for the log about the values logged after `step` steps, or `None`."""
        return None
