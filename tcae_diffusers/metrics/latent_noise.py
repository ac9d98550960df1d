"""What noise in the latent costs in the image, which is what a diffusion model's errors will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import ImageSet
from ..data.images.pixel_range import from_signed, to_signed
from ..data.sample_labels import image_seed
from ..models.adapters import adapt
from .features import FeatureNetwork
from .grouped_moments import StreamedFrechet
from .image_measures.psnr import psnr
from .names import metric_name
from .rank_batches import rank_batches


@torch.inference_mode()
def noise_curve(
    model: nn.Module,
    images: ImageSet,
    channel_std: torch.Tensor,
    noise_levels: Sequence[float],
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """
    Decodes latents with Gaussian noise.

    Args:
        model, images, network, batch_size: As in [`reconstruction.evaluate_reconstruction`].
        channel_std: `(c,)`, the deviation of each channel, in units of which the noise is measured.
        noise_levels: Sizes of the noise.
        seed: Of the noise; every image has its own.

    Returns:
        Per level `level`, `psnr`, the mean in dB against the originals, and the Fréchet distance to them under its
        name, where there is a network.
    """
    state, parameter = PartialState(), next(model.parameters())
    totals = np.zeros(len(noise_levels))
    # Moments per group and level would not stay below a few GB: no intervals here.
    streams = [StreamedFrechet(network.dimensions, len(images), False) for _ in noise_levels] if network else []
    for chosen, originals in rank_batches(images, batch_size, "noise in the latent"):
        originals = originals.to(parameter.device)
        latent = adapt(model).encode(to_signed(originals).to(parameter.dtype))
        generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in chosen]
        noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in generators])
        noise = (noise * channel_std.view(-1, 1, 1)).to(latent)
        features = network(originals)["features"].numpy() if network else None
        for level_index, level in enumerate(noise_levels):
            output = from_signed(adapt(model).decode(latent + level * noise))
            totals[level_index] += psnr(originals, output).sum().item()
            if network and features is not None:
                streams[level_index].update(features, network(output)["features"].numpy(), chosen)
    totals = sum(gather_in_rank_order(totals, state))
    curve = []
    for level_index, level in enumerate(noise_levels):
        point = {"level": level, "psnr": float(totals[level_index] / len(images))}
        if network:
            name = metric_name("FID", network.name, len(images), prefix="r")
            point[name] = streams[level_index].result(state).value
        curve.append(point)
    return curve
