"""Sizes to which images of several aspect ratios are cropped, and at several resolutions each, in buckets of one size.

Aspect ratio buckets are those of NovelAI and SDXL (arXiv 2307.01952, section 2.3), with diffusers' own sizes.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets
from tqdm.auto import tqdm

from .sources import BrokenImageError, ImageSource

# What stands for an image whose size cannot be read: it goes to the square, and is met as broken when it is decoded.
_UNKNOWN_SIZE = (1, 1)


@dataclass(frozen=True)
class SizeBuckets:
    """
    Samples are images at one size each; an image has as many samples as there are resolutions.

    Args:
        sizes (`list[tuple[int, int]]`): Height and width of each bucket in pixels; none is without samples.
        bucket_of (`np.ndarray`): The bucket of each sample, int64 `(N,)`.
        image_of (`np.ndarray`): The image of each sample, an index into its source, int64 `(N,)`.
    """

    sizes: list[tuple[int, int]]
    bucket_of: np.ndarray
    image_of: np.ndarray

    def __len__(self) -> int:
        return len(self.bucket_of)

    def size(self, sample: int) -> tuple[int, int]:
        """Height and width of `sample`."""
        return self.sizes[self.bucket_of[sample]]

    @property
    def counts(self) -> list[int]:
        """Samples in each bucket."""
        return np.bincount(self.bucket_of, minlength=len(self.sizes)).tolist()

    @property
    def description(self) -> str:
        """Such as `2 sizes from 32x32 to 48x32`; empty where there is one, which is square."""
        if len(self.sizes) == 1 and self.sizes[0][0] == self.sizes[0][1]:
            return ""
        smallest, largest = (
            "x".join(map(str, each)) for each in (min(self.sizes, key=np.prod), max(self.sizes, key=np.prod))
        )
        return f"{len(self.sizes)} sizes from {smallest} to {largest}"

    def in_order(self) -> "SizeBuckets":
        """The same samples, one bucket after the other."""
        order = np.argsort(self.bucket_of, kind="stable")
        return SizeBuckets(self.sizes, self.bucket_of[order], self.image_of[order])


def bucket_sizes(resolution: int, divisor: int, aspect_ratios: bool) -> list[tuple[int, int]]:
    """
    Heights and widths at one resolution, the square first: with `aspect_ratios` those of
    [`~diffusers.training_utils.generate_aspect_ratio_buckets`], about `resolution**2` pixels each, whose sides are
    multiples of `divisor`.
    """
    if not aspect_ratios:
        return [(resolution, resolution)]
    return generate_aspect_ratio_buckets(resolution, divisor)


def build_size_buckets(
    source: ImageSource, resolutions: Sequence[int], divisor: int, aspect_ratios: bool
) -> SizeBuckets:
    """
    Every image of `source` at each of `resolutions`, as a square or, with `aspect_ratios`, in the bucket that is
    nearest to it by [`~diffusers.training_utils.find_nearest_bucket`].

    For aspect ratios the header of each image is read once: 6,000 images/s on two cores that had other work too, of
    JPEG files of 115 kB in the page cache.

    Args:
        source ([`ImageSource`]): The images.
        resolutions (`Sequence[int]`): Sides of the squares in pixels.
        divisor (`int`), aspect_ratios (`bool`): See [`bucket_sizes`].
    """
    count = len(source)
    shapes, shape_of = _shapes(source) if aspect_ratios else ([_UNKNOWN_SIZE], np.zeros(count, dtype=np.int64))
    sizes: list[tuple[int, int]] = []
    bucket_of = []
    for resolution in resolutions:
        ladder = bucket_sizes(resolution, divisor, aspect_ratios)
        nearest = np.array([find_nearest_bucket(height, width, ladder) for height, width in shapes], dtype=np.int64)
        bucket_of.append(nearest[shape_of] + len(sizes))
        sizes += ladder
    used, renumbered = np.unique(np.concatenate(bucket_of), return_inverse=True)
    return SizeBuckets(
        [sizes[bucket] for bucket in used], renumbered.astype(np.int64), np.tile(np.arange(count), len(resolutions))
    )


def _shapes(source: ImageSource) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The different heights and widths of the images, and which of them each image has."""

    def shape(index: int) -> tuple[int, int]:
        try:
            return source.image_size(index)
        except BrokenImageError:
            return _UNKNOWN_SIZE

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(shape, range(len(source))), "reading sizes", len(source), unit="image", delay=3))
    different, shape_of = np.unique(np.array(found, dtype=np.int64), axis=0, return_inverse=True)
    return [(int(height), int(width)) for height, width in different], shape_of.reshape(-1)
