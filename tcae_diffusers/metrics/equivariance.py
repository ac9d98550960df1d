"""Does the latent of a moved image equal the moved latent?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..data.images.image_sets import ImageSet, uint8_batches
from ..data.images.pixel_range import to_signed
from ..models.adapters import adapt

Motion = Callable[[torch.Tensor], torch.Tensor]
# Standard deviation, in the [-1, 1] range of pixels.
_NOISE = 0.05


def latent_motions(ratio: int) -> dict[str, tuple[Motion, Motion]]:
    """Motions as `(on images, on latents)`; a shift by one latent position is `ratio` pixels."""
    return {
        "flip": (lambda x: x.flip(-1), lambda z: z.flip(-1)),
        "quarter turn": (lambda x: x.rot90(1, (-2, -1)), lambda z: z.rot90(1, (-2, -1))),
        "shift by one position": (lambda x: x.roll(ratio, -1), lambda z: z.roll(1, -1)),
    }


def _matches(queries: torch.Tensor, keys: torch.Tensor) -> tuple[float, float]:
    """Mean cosine of pairs, and the share of queries whose nearest key is their own pair."""
    queries, keys = (F.normalize(part.flatten(1).float(), dim=1) for part in (queries, keys))
    similarity = queries @ keys.T
    own = torch.arange(len(keys), device=keys.device)
    return similarity.diagonal().mean().item(), (similarity.argmax(dim=1) == own).float().mean().item()


@torch.inference_mode()
def equivariance(model: nn.Module, images: ImageSet, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """How the latent moves with the image, for a flip, a turn, a shift and noise on the pixels.

    Returns:
        Per motion `cosine`, between the latent of the moved image and the moved latent, and `nearest`, the share of
        images whose latent finds its own pair among all others.
    """
    parameter = next(model.parameters())
    motions = latent_motions(adapt(model).spatial_ratio)
    generator = torch.Generator().manual_seed(0)
    noise = f"pixel noise {_NOISE}"
    pairs: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {name: ([], []) for name in [*motions, noise]}

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        latent = adapt(model).encode(pixels.to(parameter.device, parameter.dtype))
        return latent.float().cpu()

    for batch in uint8_batches(images, batch_size):
        pixels = to_signed(batch)
        latent = encode(pixels)
        for name, (on_image, on_latent) in motions.items():
            pairs[name][0].append(encode(on_image(pixels)))
            pairs[name][1].append(on_latent(latent))
        noisy = pixels + _NOISE * torch.randn(pixels.shape, generator=generator)
        pairs[noise][0].append(encode(noisy))
        pairs[noise][1].append(latent)
    result = {}
    for name, pair in pairs.items():
        moved, expected = map(torch.cat, pair)
        # A mean that all latents share would flatter every cosine.
        mean = expected.mean(dim=(0, 2, 3), keepdim=True)
        cosine, nearest = _matches(moved - mean, expected - mean)
        result[name] = {"cosine": cosine, "nearest": nearest}
    return result
