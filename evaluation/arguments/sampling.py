"""Options of the commands that draw and measure samples at many points."""

from dataclasses import dataclass
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.settings import SMALLEST_SET

from .groups import FeatureCacheArguments, MachineArguments


@dataclass
class PointArguments(Arguments):
    """Settings that all points share, so that they can be compared."""

    group: ClassVar[str] = "Samples of every point"

    reference: str | None = option(
        None, "Real images to compare with: a data source, a folder or an ADM .npz.", metavar="SOURCE"
    )
    num_images: int = option(50_000, "Number of images generated at each point.", metavar="IMAGES")
    num_inference_steps: int = option(50, "Denoising steps of each image.", metavar="STEPS")
    timestep_shift: float | None = option(
        None, "Shift of the noise levels during sampling, for flow matching; the scheduler's own if unset."
    )
    labels: str = option(
        "balanced",
        "Classes of the images: balanced, or a data source such as openmoji:train, whose class proportions are "
        "used, matched by name.",
        metavar="balanced|SOURCE",
    )
    seed: int = option(0, "Seed of the samples and of the random draws from the real images.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_images", self.num_images >= SMALLEST_SET, f"at least {SMALLEST_SET}, to be measured")


@dataclass
class SamplingArguments(PointArguments, FeatureCacheArguments, MachineArguments):
    """How the samples of every point are generated and measured."""
