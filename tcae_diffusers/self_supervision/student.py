"""What gradients train: an autoencoder and the parts of a self-supervised method, in one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..models.adapters import adapt
from .method import StudentOutput


class TokenizerStudent(nn.Module):
    """
    Autoencoder and method under one `forward`, so that a distributed wrapper sees every parameter once.

    Args:
        autoencoder (`nn.Module`): Any autoencoder of diffusers; what is saved at the end.
        parts (`nn.Module`): See [`SelfSupervision`].
    """

    def __init__(self, autoencoder: nn.Module, parts: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder
        self.parts = parts

    def forward(
        self, images: torch.Tensor, views: Any = None, generators: list[torch.Generator] | None = None
    ) -> StudentOutput:
        """
        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): Images to reconstruct, in [-1, 1].
            views: From [`SelfSupervision.prepare`].
            generators (`list[torch.Generator]`, *optional*):
                One per image, for autoencoders that sample their latent; its mode when not given.
        """
        adapter = adapt(self.autoencoder)
        encoded, outputs = self.parts(adapter, images, views)
        latent, kl = adapter.training_latent(encoded, generators)
        return StudentOutput(
            reconstruction=adapter.training_decode(latent),
            latent=latent,
            # Per pixel value, so that the weight means what it does beside a summed reconstruction loss (LDM: 1e-6).
            kl=None if kl is None else kl / images.numel(),
            method=outputs,
        )

    def reconstruct(self, images: torch.Tensor, generators: list[torch.Generator] | None = None) -> torch.Tensor:
        """The reconstruction of [`forward`] alone, which no view changes."""
        adapter = adapt(self.autoencoder)
        return adapter.training_decode(adapter.training_latent(adapter.training_encode(images), generators)[0])
