"""Structural similarity at one scale and at several, on uint8 values, in float64."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from ...errors import InputError
from .measure import ImageMeasure


def _gaussian_window(size: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.exp(-offsets.square() / (2 * sigma**2))
    return window / window.sum()


# Weights of the five scales, from fine to coarse (Wang, Simoncelli and Bovik 2003).
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5


def _similarity(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast-structure part, per image and channel `(B, C)`, of float64 `(B, C, H, W)`."""
    if min(x.shape[-2:]) < _WINDOW:
        raise InputError(f"SSIM needs images of at least {_WINDOW} pixels a side, got {x.shape[-1]}x{x.shape[-2]}")
    batch, channels = x.shape[:2]
    window = _gaussian_window(_WINDOW, _SIGMA).to(x.device)

    # Five moments in one pass of the separable window.
    moments = torch.cat([x, y, x * x, y * y, x * y]).flatten(0, 1).unsqueeze(1)
    moments = F.conv2d(F.conv2d(moments, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = moments.view(5, batch, channels, *moments.shape[-2:])

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    contrast = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean(dim=(2, 3)), contrast.mean(dim=(2, 3))


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair (Wang et al. 2004): Gaussian window of 11 pixels and deviation 1.5,
    population covariance, mean over RGB.

    The same as scikit-image's `structural_similarity(..., gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`.

    Args:
        first, second: uint8 `(B, 3, H, W)`, each side at least 11 pixels.

    Returns:
        float64 `(B,)` in [-1, 1].
    """
    return _similarity(first.double(), second.double())[0].mean(dim=1)


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales that fit an image: five from 176 pixels on, fewer for small images (each halves the sides)."""
    return max(
        scale for scale in range(1, len(_SCALE_WEIGHTS) + 1) if min(height, width) >= _WINDOW * 2 ** (scale - 1)
    )


def structural_similarities(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and multi-scale SSIM of each pair; the finest scale is computed once for both.

    MS-SSIM (Wang, Simoncelli and Bovik 2003) is, per channel, the product over scales of the contrast-structure part
    to the power of the scale's weight, with the luminance at the coarsest; between scales 2x2 pixels are averaged.
    Where fewer than five scales fit ([`ms_ssim_scales`]) the weights of the first ones are scaled to sum to one, which
    is another quantity and must be named with its number of scales. Negative parts count as zero.

    Args:
        first, second: uint8 `(B, 3, H, W)`, each side at least 11 pixels.

    Returns:
        Two float64 `(B,)`.
    """
    x, y = first.double(), second.double()
    single, contrast = _similarity(x, y)
    scales = ms_ssim_scales(*x.shape[-2:])
    total = sum(_SCALE_WEIGHTS[:scales])
    product = torch.ones_like(single)
    similarity = single
    for scale in range(scales):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            similarity, contrast = _similarity(x, y)
        part = similarity if scale == scales - 1 else contrast
        product = product * part.clamp(min=0) ** (_SCALE_WEIGHTS[scale] / total)
    return single.mean(dim=1), product.mean(dim=1)


class StructuralSimilarity(ImageMeasure):
    """SSIM and MS-SSIM of every image."""

    better: ClassVar = {"ssim": "higher", "ms_ssim": "higher"}

    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        single, multiple = structural_similarities(originals, outputs)
        return {"ssim": single, "ms_ssim": multiple}

    def figure_name(self, column: str, height: int, width: int) -> str:
        if column == "ssim":
            return "SSIM"
        scales = ms_ssim_scales(height, width)
        return "MS-SSIM" if scales == len(_SCALE_WEIGHTS) else f"MS-SSIM ({scales} of {len(_SCALE_WEIGHTS)} scales)"
