"""What gradients train: an autoencoder and the parts of a self-supervised method, in one forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..models.adapters import adapt
from ..objectives.latent_shaping import Shaped, ShapingChain
from .method import StudentOutput


class TokenizerStudent(nn.Module):
    """
    Autoencoder and method under one `forward`, so that a distributed wrapper sees every parameter once.

    Args:
        autoencoder (`nn.Module`): Any autoencoder of diffusers; what is saved at the end.
        parts (`nn.Module`): See [`SelfSupervision`].
        shaping ([`ShapingChain`]): What happens to the latent before it is decoded.
    """

    def __init__(self, autoencoder: nn.Module, parts: nn.Module, shaping: ShapingChain):
        super().__init__()
        self.autoencoder = autoencoder
        self.parts = parts
        self.shaping = shaping

    def forward(
        self,
        images: torch.Tensor,
        views: Any = None,
        generators: list[torch.Generator] | None = None,
        step: int = 0,
    ) -> StudentOutput:
        """
        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): Images to reconstruct, in [-1, 1].
            views: From [`SelfSupervision.prepare`].
            generators (`list[torch.Generator]`, *optional*):
                One per image, for autoencoders that sample their latent, and for its shaping; the mode as it is when
                not given.
            step (`int`, defaults to 0): Completed optimizer steps, for the shaping.
        """
        adapter = adapt(self.autoencoder)
        encoded, outputs = self.parts(adapter, images, views)
        latent, kl = adapter.training_latent(encoded, generators)
        output = self._decode(images, latent, generators, step)
        # Per pixel value, so that the weight means what it does beside a summed reconstruction loss (LDM: 1e-6).
        return replace(output, kl=None if kl is None else kl / images.numel(), method=outputs)

    def reconstruct(self, images: torch.Tensor, generators: list[torch.Generator] | None, step: int) -> StudentOutput:
        """What no view changes of [`forward`]; its graph, if any, begins at the latent."""
        adapter = adapt(self.autoencoder)
        with torch.no_grad():
            latent, _ = adapter.training_latent(adapter.training_encode(images), generators)
        return self._decode(images, latent.requires_grad_(torch.is_grad_enabled()), generators, step)

    def _decode(
        self, images: torch.Tensor, latent: torch.Tensor, generators: list[torch.Generator] | None, step: int
    ) -> StudentOutput:
        shaped = self.shaping(Shaped(latent, images), generators, step)
        return StudentOutput(adapt(self.autoencoder).training_decode(shaped.latent), latent, shaped)
