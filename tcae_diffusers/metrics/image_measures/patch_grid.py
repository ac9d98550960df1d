"""Whether the borders of a decoder's patches show in its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from ..confidence import RATIO_OF_MEANS
from .measure import ImageMeasure, ImageMeasureSettings

# Grey levels that are added to every mean difference, so that flat images count as images without a grid; means of
# images that are not flat are hundreds of times as large.
FLAT = 0.01


def neighbour_differences(images: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean absolute differences of neighbouring pixels in grey levels, horizontal and vertical neighbours together.

    Args:
        images: uint8 `(B, 3, H, W)`, H or W above `patch_size`.
        patch_size: Pixels from one border to the next, counted from the upper left corner; at least 2.

    Returns:
        Of neighbours on the two sides of a border, and of those within a patch: float64 `(B,)` each.
    """
    levels = images.short()
    across = within = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    borders = inner = 0
    for dim in (-2, -1):
        differences = levels.diff(dim=dim).abs().movedim(dim, -1)
        lines = differences.sum(dim=(1, 2)).double()
        pairs = differences.shape[1] * differences.shape[2]
        is_border = torch.arange(1, levels.shape[dim], device=images.device) % patch_size == 0
        across = across + lines[:, is_border].sum(dim=1)
        within = within + lines[:, ~is_border].sum(dim=1)
        crossed = (levels.shape[dim] - 1) // patch_size
        borders += pairs * crossed
        inner += pairs * (lines.shape[1] - crossed)
    return across / borders, within / inner


class PatchGrid(ImageMeasure):
    """
    How much more neighbouring pixels differ across the borders of patches than within patches, as a ratio of means
    over all images, relative to the same ratio of the originals: 1 where no grid shows.

    Of means over all images, because a single flat image has no ratio and nearly flat ones would rule a mean of
    ratios. The value of an image is the ratio plus what the image adds to it to first order: the mean of these values
    is the ratio, and their spread gives its interval and those of paired differences (delta method).

    Args:
        patch_size (`int`): See [`neighbour_differences`].
    """

    better: ClassVar = {"patch_grid": "lower"}
    if_left_out: ClassVar = {"patch grid": "the images show no border between patches of 2 pixels or more"}
    interval_method: ClassVar[str] = RATIO_OF_MEANS

    def __init__(self, patch_size: int):
        self._patch_size = patch_size

    @classmethod
    def build(cls, settings: ImageMeasureSettings) -> PatchGrid | None:
        return None if settings.patch_size is None else cls(settings.patch_size)

    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The four differences of which [`over_set`] makes the ratio."""
        found = {}
        for name, images in (("originals", originals), ("outputs", outputs)):
            found[f"across_{name}"], found[f"within_{name}"] = neighbour_differences(images, self._patch_size)
        return found

    def over_set(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        means = {name: of_images.mean() + FLAT for name, of_images in values.items()}
        parts = {name: (of_images + FLAT) / means[name] - 1 for name, of_images in values.items()}
        ratios = {name: means[f"across_{name}"] / means[f"within_{name}"] for name in ("originals", "outputs")}
        added = (
            parts["across_outputs"] - parts["within_outputs"] - parts["across_originals"] + parts["within_originals"]
        )
        return {"patch_grid": ratios["outputs"] / ratios["originals"] * (1 + added)}

    def figure_name(self, column: str, height: int, width: int) -> str:
        return "patch grid"
