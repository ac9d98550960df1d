"""Reconstruction alone: the paper's ablation, and the only choice for autoencoders without known tokens."""

import torch
from torch import nn

from ..method import SelfSupervision


class ReconstructionAlone(nn.Module):
    """Encodes the images to reconstruct and nothing else."""

    def forward(self, adapter, images, views):
        return adapter.training_encode(images), {}


class NoSelfSupervision(SelfSupervision):
    description = "without self-supervision"

    def loss(self, output, views, step, with_diagnostics):
        return torch.zeros((), device=output.latent.device), {}


def build(arguments, adapter, options) -> NoSelfSupervision:
    return NoSelfSupervision(ReconstructionAlone())
