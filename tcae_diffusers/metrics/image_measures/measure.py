"""What a measure of single images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ...data.images.image_sets import ImageSet
from ..figure import Baseline, Better


@dataclass(frozen=True)
class ImageMeasureSettings:
    """
    What measures need to be built.

    Args:
        device (`str`): Where networks run.
        lpips (`str`, *optional*): Backbone of LPIPS; `None` for no LPIPS.
        lpips_weights (`Path`, *optional*): File with torchvision's weights of that backbone.
    """

    device: str | torch.device = "cpu"
    lpips: str | None = None
    lpips_weights: Path | None = None


class ImageMeasure(ABC):
    """
    A measure of image pairs.

    Attributes:
        better (`Mapping[str, str]`): Its columns of `per_image.csv`, each with `"higher"` or `"lower"`; measures that
            come out of one computation belong together.
        if_left_out (`Mapping[str, str]`): What results say of it where [`build`] gives none: `{name: why}`.
    """

    better: ClassVar[Mapping[str, Better]]
    if_left_out: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def build(cls, settings: ImageMeasureSettings) -> ImageMeasure | None:
        """The measure, or `None` if the settings do not ask for it."""
        return cls()

    @abstractmethod
    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values `(B,)` for each column, of uint8 `(B, 3, H, W)` on one device."""

    @abstractmethod
    def figure_name(self, column: str, height: int, width: int) -> str:
        """What the mean of a column is called, for images of this size."""

    def baseline(self, column: str, images: ImageSet) -> Baseline | None:
        """What can be scored on these images without a model, where that is worth knowing."""
        return None
