"""What a measure of single images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ...data.images.image_sets import ImageSet
from ..confidence import MEAN_OF_IMAGES
from ..figure import Baseline, Better


@dataclass(frozen=True)
class ImageMeasureSettings:
    """
    What measures need to be built.

    Args:
        device (`str`): Where networks run.
        lpips (`str`, *optional*): Backbone of LPIPS; `None` for no LPIPS.
        lpips_weights (`Path`, *optional*): File with torchvision's weights of that backbone.
        patch_size (`int`, *optional*): Pixels along a side of the decoder's patches, at least 2; `None` where the
            images show no border between patches.
    """

    device: str | torch.device = "cpu"
    lpips: str | None = None
    lpips_weights: Path | None = None
    patch_size: int | None = None


class ImageMeasure(ABC):
    """
    A measure of image pairs.

    Attributes:
        better (`Mapping[str, str]`): Its columns of `per_image.csv`, each with `"higher"` or `"lower"`; measures that
            come out of one computation belong together.
        if_left_out (`Mapping[str, str]`): What results say of it where [`build`] gives none: `{name: why}`.
        interval_method (`str`): What the spread of a column gives an interval of.
    """

    better: ClassVar[Mapping[str, Better]]
    if_left_out: ClassVar[Mapping[str, str]] = {}
    interval_method: ClassVar[str] = MEAN_OF_IMAGES

    @classmethod
    def build(cls, settings: ImageMeasureSettings) -> ImageMeasure | None:
        """The measure, or `None` if the settings do not ask for it."""
        return cls()

    @abstractmethod
    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values `(B,)` for each column, or what [`over_set`] takes, of uint8 `(B, 3, H, W)` on one device."""

    def over_set(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns `(N,)` of all images, for a measure that must have seen all: of what calls returned."""
        return dict(values)

    @abstractmethod
    def figure_name(self, column: str, height: int, width: int) -> str:
        """What the mean of a column is called, for images of this size."""

    def describe_network(self) -> dict[str, Any] | None:
        """Name and `weights_sha256` of the network that it looks through, for figures; `None` if there is none."""
        return None

    def baseline(self, column: str, images: ImageSet) -> Baseline | None:
        """What can be scored on these images without a model, where that is worth knowing."""
        return None
