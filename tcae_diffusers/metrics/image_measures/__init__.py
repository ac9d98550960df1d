"""
Measures of single images: each original against what became of it. A new one is a file here and a line in
[`IMAGE_MEASURES`]; it is then a column of `per_image.csv` and a figure of every reconstruction and report.
"""

from .lpips import LPIPS
from .measure import ImageMeasure, ImageMeasureSettings
from .patch_grid import PatchGrid
from .psnr import PSNR
from .structural_similarity import StructuralSimilarity

__all__ = ["IMAGE_MEASURES", "ImageMeasure", "ImageMeasureSettings", "build_image_measures"]

# In the order of results and reports.
IMAGE_MEASURES: list[type[ImageMeasure]] = [PSNR, StructuralSimilarity, LPIPS, PatchGrid]


def build_image_measures(settings: ImageMeasureSettings | None = None) -> list[ImageMeasure]:
    """Every measure of [`IMAGE_MEASURES`] that the settings ask for; without settings, those that need none."""
    built = [measure.build(settings or ImageMeasureSettings()) for measure in IMAGE_MEASURES]
    return [measure for measure in built if measure is not None]
