"""
The shape of a latent space: does it use its channels, how does it move with the image, what does noise in it cost?

Channel statistics come from all positions of all images; equivariance asks whether the latent of a moved image is the
moved latent; the noise curve decodes latents with Gaussian noise of growing size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import EvenlySpacedImages, ImageSet
from ..data.images.pixel_range import to_signed
from ..errors import InputError
from ..models.adapters import adapt
from .equivariance import equivariance
from .features import FeatureNetwork
from .figure import Figure
from .frechet import FrechetStatistics
from .latent_noise import noise_curve
from .latent_shape import channel_figures
from .rank_batches import rank_batches
from .settings import NOISE_LEVELS

# Evenly spaced images of the equivariance measures, which keep all latents in memory.
_MOTION_IMAGES = 500


@dataclass
class LatentDiagnostics:
    """The shape of a latent space.

    Args:
        figures (`list[Figure]`): What can be compared between autoencoders: effective rank, isotropy, PSNR with noise.
        channels (`dict`): See [`channel_figures`].
        equivariance (`dict`): See [`equivariance`].
        noise (`list[dict]`): See [`noise_curve`].
    """

    figures: list[Figure]
    channels: dict[str, Any]
    equivariance: dict[str, dict[str, float]]
    noise: list[dict[str, float]]


@torch.inference_mode()
def evaluate_latents(
    model: nn.Module,
    images: ImageSet,
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    seed: int = 0,
) -> LatentDiagnostics:
    """All diagnostics of one autoencoder on one image set.

    Args:
        model, images, network: As in [`reconstruction.evaluate_reconstruction`].
        noise_levels: Sizes of the noise in units of each channel's standard deviation.
        seed: Of the noise; every image has its own.

    Raises:
        InputError: Fewer than two images, or a size that does not fit.
    """
    if len(images) < 2:
        raise InputError(f"{images.name} holds {len(images)} image, too few to evaluate; at least 2 are needed")
    adapt(model).check_image_size(*images[0].shape[:2])
    channels = channel_figures(latent_moments(model, images, batch_size))
    std = torch.tensor(channels["channel_std"])
    noise = noise_curve(model, images, std, noise_levels, network, batch_size, seed)
    subset = images if len(images) <= _MOTION_IMAGES else EvenlySpacedImages(images, _MOTION_IMAGES)
    motions = equivariance(model, subset, batch_size)
    return LatentDiagnostics(_figures(channels, noise, len(images)), channels, motions, noise)


def latent_moments(model: nn.Module, images: ImageSet, batch_size: int = 32) -> FrechetStatistics:
    """Mean and covariance of the channels, over all positions of all images, on every rank."""
    parameter = next(model.parameters())
    moments: FrechetStatistics | None = None
    for _, batch in rank_batches(images, batch_size, "latent statistics"):
        latent = adapt(model).encode(to_signed(batch, parameter.device).to(parameter.dtype))
        moments = moments or FrechetStatistics(latent.shape[1])
        moments.update(latent.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy())
    first, *others = (part for part in gather_in_rank_order(moments, PartialState()) if part is not None)
    for other in others:
        first.merge(other)
    return first


def _figures(channels: dict[str, Any], noise: list[dict[str, float]], samples: int) -> list[Figure]:
    values = {
        "effective rank of the latent": channels["effective_rank"],
        "isotropy of the latent": channels["isotropy"],
    }
    for point in noise:
        if point["level"] > 0:
            values[f"PSNR (dB) with noise {point['level']:g} in the latent"] = point["psnr"]
    return [Figure(name=name, value=value, samples=samples, better="higher") for name, value in values.items()]
