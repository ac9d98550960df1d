"""Options of the commands that draw samples, and of those that draw and measure them at many points."""

from dataclasses import dataclass
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.settings import SMALLEST_SET

from .groups import FeatureCacheArguments, HeldoutArguments, MachineArguments


@dataclass
class DrawingArguments(Arguments):
    """How a set of samples is drawn."""

    group: ClassVar[str] = "Samples"

    num_images: int = option(
        50_000, "Number of images of a set; FID is defined for 50,000.", metavar="IMAGES", at_least=1
    )
    num_inference_steps: int = option(50, "Denoising steps of each image.", metavar="STEPS", at_least=1)
    timestep_shift: float | None = option(
        None, "Shift of the noise levels during sampling, for flow matching; the scheduler's own if unset."
    )
    labels: str = option(
        "balanced",
        "Classes of the images: balanced, or a data source such as openmoji:train, whose class proportions are "
        "used, matched by name.",
        metavar="balanced|SOURCE",
    )
    seed: int = option(0, "Seed of all random numbers; image i of a set is a function of the seed and i.", at_least=0)


@dataclass
class GuidanceArguments(Arguments):
    """How the samples of one set are guided."""

    group: ClassVar[str] = "Samples"

    guidance_scale: float = option(1.0, "Scale of classifier-free guidance; 1 means no guidance.")
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Part of the trajectory that is guided, between 0 and 1 as in TCDiTPipeline; all of it if unset.",
        metavar=("FROM", "TO"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pipelines take what is below 1 for 1, without a word.
        self._require("guidance_scale", self.guidance_scale >= 1, "at least 1, which means no guidance")
        is_guided = self.guidance_scale > 1
        self._require_default("guidance_interval", unless=is_guided, omitted="unless --guidance_scale is above 1")


@dataclass
class SamplingArguments(DrawingArguments, HeldoutArguments, FeatureCacheArguments, MachineArguments):
    """How the samples of every point are drawn and measured; one seed serves both."""

    group: ClassVar[str] = "Real images"

    reference: str | None = option(
        None, "Real images to compare with: a data source, a folder or an ADM .npz.", metavar="SOURCE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_images", self.num_images >= SMALLEST_SET, f"at least {SMALLEST_SET}, to be measured")
