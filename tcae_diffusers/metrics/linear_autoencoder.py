"""
The best linear autoencoder with a latent of a given size, in closed form: what a trained one has to beat.

A block of f x f pixels is a vector of 3 f^2 numbers. Of all affine maps of a block to c numbers and back, the
projection onto the c leading principal components of blocks has the least squared error; a linear autoencoder that is
trained to the end finds the same (Baldi and Hornik 1989). A nonlinear one can do better for two reasons: it is not
linear, and it sees beyond the block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn

from ..data.images.image_sets import ImageSet
from ..data.images.pixel_range import to_signed
from ..errors import InputError
from .frechet import FrechetStatistics
from .grouped_moments import merged_over_ranks
from .rank_batches import rank_batches

# Numbers in all covariances together, 1 GiB in float64: blocks of up to 61 pixels a side with one basis.
_MOST_COVARIANCES = 2**27
# Least number of blocks for each number of a block. On 3,357 OpenMoji images of 32 pixels (f8c32) the held-out PSNR is
# 20.1 dB with 1, 20.9 with 5, 21.1 with 10, and 21.3 from 80 on.
_FEWEST_BLOCKS = 10
# Blocks that are converted to float64 at a time.
_BLOCKS = 4096


class NoLinearAutoencoder(InputError):
    """There is no linear autoencoder to compare with; the message says why."""


class LinearAutoencoder(nn.Module):
    """
    Principal components of pixel blocks, with the interface of diffusers' autoencoders.

    Args:
        mean (`torch.Tensor`): `(P, D)` of blocks in [-1, 1], `D = 3 * block**2` in the order of `pixel_unshuffle`; `P`
            is 1, or the number of positions where each has its own basis, row by row.
        components (`torch.Tensor`): `(P, c, D)`, orthonormal rows.
        block (`int`): Side of a block in pixels.
    """

    def __init__(self, mean: torch.Tensor, components: torch.Tensor, block: int):
        super().__init__()
        self.mean = nn.Parameter(mean.unsqueeze(-1), requires_grad=False)
        self.components = nn.Parameter(components, requires_grad=False)
        self.spatial_compression_ratio = block

    @property
    def name(self) -> str:
        """Such as `linear f8c32`."""
        return f"linear f{self.spatial_compression_ratio}c{self.components.shape[1]}"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to the latent `(B, c, h, w)`."""
        blocks = F.pixel_unshuffle(images, self.spatial_compression_ratio)
        latent = self.components @ (blocks.flatten(2).permute(2, 1, 0) - self.mean)
        return latent.permute(2, 1, 0).unflatten(2, blocks.shape[-2:])

    def decode(self, latent: torch.Tensor) -> DecoderOutput:
        """Latent `(B, c, h, w)` to images `(B, 3, H, W)` in about [-1, 1], not clamped."""
        blocks = self.components.mT @ latent.flatten(2).permute(2, 1, 0) + self.mean
        blocks = blocks.permute(2, 1, 0).unflatten(2, latent.shape[-2:])
        return DecoderOutput(sample=F.pixel_shuffle(blocks, self.spatial_compression_ratio))


def fit_linear_autoencoder(
    images: ImageSet,
    latent_shape: Sequence[int],
    per_position: bool = False,
    batch_size: int = 32,
) -> LinearAutoencoder:
    """
    Fits the linear autoencoder whose latent has a given shape, in one pass and memory that does not depend on the
    number of images. Under several ranks each takes its own index range; every rank returns the same.

    Args:
        images: Of the size that the latent is of.
        latent_shape: `(c, h, w)`. Where `c` is more than a block has numbers, the latent has as many as the block, and
            gives back every image.
        per_position: Whether each position of the latent has a basis of its own. Images of which all show the same
            thing at the same place profit; a shared one is the same everywhere, as a convolution is.
        batch_size: Images at a time.

    Raises:
        NoLinearAutoencoder: The latent is no grid of square blocks, the covariances would take more than 1 GiB, or
            there are fewer than ten blocks for each number of a block.
    """
    height, width = images[0].shape[:2]
    block = _block_side(latent_shape, height, width)
    values, grid = 3 * block**2, latent_shape[1] * latent_shape[2]
    positions = grid if per_position else 1
    if positions * values**2 > _MOST_COVARIANCES:
        raise NoLinearAutoencoder(
            f"blocks of {block}x{block} pixels have {values:,} numbers, and {positions} covariance(s) of as many rows "
            f"and columns would take {positions * values**2 / 2**27:.1f} GiB, more than 1 GiB"
        )
    blocks = len(images) * grid // positions
    if blocks < _FEWEST_BLOCKS * values:
        raise NoLinearAutoencoder(
            f"{len(images):,} images of {images.name} have {blocks:,} blocks of {block}x{block} pixels"
            f"{' at each position' * per_position}; at least {_FEWEST_BLOCKS * values:,} are needed, {_FEWEST_BLOCKS} "
            "for each number of a block, so fit it to more images"
        )
    statistics = _block_statistics(images, block, positions, batch_size)
    count = min(latent_shape[0], values)
    components = np.stack([_leading_components(each.covariance, count) for each in statistics])
    mean = np.stack([each.mean for each in statistics])
    return LinearAutoencoder(torch.from_numpy(mean).float(), torch.from_numpy(components).float(), block)


def _block_side(latent_shape: Sequence[int], height: int, width: int) -> int:
    if len(latent_shape) != 3:
        raise NoLinearAutoencoder(
            f"a latent of shape {'x'.join(map(str, latent_shape))} is not a grid of positions, (c, h, w)"
        )
    (rows, rest_of_rows), (columns, rest_of_columns) = divmod(height, latent_shape[1]), divmod(width, latent_shape[2])
    if rest_of_rows or rest_of_columns or rows != columns:
        raise NoLinearAutoencoder(
            f"the {latent_shape[1]}x{latent_shape[2]} positions of the latent do not divide an image of "
            f"{height}x{width} pixels (height x width) into squares"
        )
    return rows


def _block_statistics(images: ImageSet, block: int, positions: int, batch_size: int) -> list[FrechetStatistics]:
    """Mean and covariance of blocks in [-1, 1], over all positions or at each, and over all ranks."""
    statistics = [FrechetStatistics(3 * block**2) for _ in range(positions)]
    for _, batch in rank_batches(images, batch_size, "linear baseline"):
        blocks = F.pixel_unshuffle(to_signed(batch), block).flatten(2).permute(2, 0, 1)
        for each, part in zip(statistics, blocks.flatten(0, 1).chunk(positions), strict=True):
            for piece in part.split(_BLOCKS):
                each.update(piece)
    return merged_over_ranks(statistics, PartialState())


def _leading_components(covariance: np.ndarray, count: int) -> np.ndarray:
    """`(count, D)`: orthonormal eigenvectors of the largest eigenvalues, in falling order."""
    size = len(covariance)
    _, vectors = scipy.linalg.eigh(covariance, subset_by_index=(size - count, size - 1))
    return vectors.T[::-1].copy()
