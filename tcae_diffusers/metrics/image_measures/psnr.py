"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from ...data.images.image_sets import ImageSet, uint8_batches
from ..figure import Baseline
from .measure import ImageMeasure

# An identical pair has infinite PSNR, which no mean survives; 100 dB is beyond anything a uint8 image can show
# otherwise.
PSNR_OF_IDENTICAL = 100.0
_BASELINE_IMAGES = 1000


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each pair, over all pixels and channels; peak 255.

    Args:
        first, second: uint8 `(B, 3, H, W)`.

    Returns:
        float64 `(B,)`; [`PSNR_OF_IDENTICAL`] where the pair is identical.
    """
    mse = (first.double() - second.double()).square().mean(dim=(1, 2, 3))
    value = 10.0 * torch.log10(255.0**2 / mse)
    return value.clamp(max=PSNR_OF_IDENTICAL)


def mean_image_psnr(images: ImageSet) -> float:
    """Mean PSNR in dB of answering every image with the mean image: what a reconstruction has to beat.

    Over at most 1,000 evenly spaced images.
    """
    count = min(len(images), _BASELINE_IMAGES)
    chosen = [index * len(images) // count for index in range(count)]
    sums = [batch.double().sum(dim=0) for batch in uint8_batches(images, 100, chosen)]
    mean = (torch.stack(sums).sum(dim=0) / count).round()
    return float(
        np.mean([value for batch in uint8_batches(images, 100, chosen) for value in psnr(batch, mean).tolist()])
    )


class PSNR(ImageMeasure):
    """[`psnr`] of every image, beside that of the mean image."""

    better: ClassVar = {"psnr": "higher"}

    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"psnr": psnr(originals, outputs)}

    def figure_name(self, column: str, height: int, width: int) -> str:
        return "PSNR (dB)"

    def baseline(self, column: str, images: ImageSet) -> Baseline:
        return Baseline("the mean image for every image", mean_image_psnr(images))
