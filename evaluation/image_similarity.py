"""PSNR and SSIM of image pairs, per image, on uint8 values, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .errors import EvaluationError

# An identical pair has infinite PSNR, which no mean survives; 100 dB is beyond anything a uint8 image can show
# otherwise.
PSNR_OF_IDENTICAL = 100.0


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


def _gaussian_window(size: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.exp(-offsets.square() / (2 * sigma**2))
    return window / window.sum()


def ssim(first: torch.Tensor, second: torch.Tensor, window_size: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """Structural similarity of each pair (Wang et al. 2004): Gaussian window, population covariance, mean over RGB.

    The same as scikit-image's `structural_similarity(..., gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`.

    Args:
        first, second: uint8 `(B, 3, H, W)`, each side at least `window_size` pixels.

    Returns:
        float64 `(B,)` in [-1, 1].
    """
    if min(first.shape[-2:]) < window_size:
        raise EvaluationError(
            f"SSIM needs images of at least {window_size} pixels a side, got {first.shape[-1]}x{first.shape[-2]}"
        )
    x, y = first.double(), second.double()
    batch, channels = x.shape[:2]
    window = _gaussian_window(window_size, sigma).to(x.device)

    # Five moments in one pass of the separable window.
    moments = torch.cat([x, y, x * x, y * y, x * y]).flatten(0, 1).unsqueeze(1)
    moments = F.conv2d(F.conv2d(moments, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = moments.view(5, batch, channels, *moments.shape[-2:])

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean(dim=(1, 2, 3))
