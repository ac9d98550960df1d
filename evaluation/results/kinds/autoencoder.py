"""What results about an autoencoder on a set of images have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from tcae_diffusers.data.images.image_sets import ImageSet
from tcae_diffusers.metrics.figure import Figure
from tcae_diffusers.models.model_fingerprint import model_fingerprint

from ..figure_text import describe_figure
from ..result import Result, as_figures


@dataclass(kw_only=True)
class AutoencoderResult(Result):
    """
    Figures of an autoencoder on images.

    Args:
        figures (`list[Figure]`): What was measured.
        autoencoder (`dict`): See [`describe_autoencoder`].
        data (`dict`): See [`describe_images`].
    """

    is_comparable: ClassVar[bool] = True

    figures: list[Figure]
    autoencoder: dict[str, Any]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        self.figures = as_figures(self.figures)

    def describe(self) -> list[str]:
        return [describe_figure(figure) for figure in self.figures]

    def figures_by_subject(self) -> dict[str, list[Figure]]:
        return {f"{self.subject or self.autoencoder['class']} on {self.data['spec']}": self.figures}

    def compared_figures(self) -> dict[str, list[Figure]]:
        return {self.subject: self.figures}

    def measured_on(self) -> Mapping[str, Any]:
        return self.data


def describe_autoencoder(path: str, model: nn.Module) -> dict[str, Any]:
    """Where it came from, its class, and hashes of its config and weights."""
    return {"path": path, "class": type(model).__name__, **model_fingerprint(model)}


def describe_images(spec: str, images: ImageSet) -> dict[str, Any]:
    """What the images are called, how many there are, a hash of their content, and the credit that they ask for."""
    return {
        "spec": spec,
        "images": len(images),
        "fingerprint": images.fingerprint,
        "attribution": images.attribution,
    }
