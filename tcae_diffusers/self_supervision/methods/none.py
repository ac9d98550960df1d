"""Reconstruction alone: the paper's ablation, and the only choice for autoencoders without known tokens."""

from typing import Any

import torch
from torch import nn

from ...models.adapters import AutoencoderAdapter
from ..arguments import SelfSupervisionArguments
from ..method import SelfSupervision, StudentOutput


class ReconstructionAlone(nn.Module):
    """Encodes the images to reconstruct and nothing else."""

    def forward(
        self, adapter: AutoencoderAdapter, images: torch.Tensor, views: None
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        return adapter.training_encode(images), {}


class NoSelfSupervision(SelfSupervision):
    description = "without self-supervision"

    def loss(
        self, output: StudentOutput, views: None, step: int, with_diagnostics: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.zeros((), device=output.latent.device), {}


def build(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, options: None) -> NoSelfSupervision:
    return NoSelfSupervision(ReconstructionAlone())
