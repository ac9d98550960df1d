"""Options of the commands that draw samples, and of those that draw and measure them at many points."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.settings import SMALLEST_SET

from .groups import FeatureCacheArguments, HeldoutArguments, MachineArguments

# Of diffusers.guiders, those that work with a class-conditional transformer. Importing it would import torch.
GUIDERS = (
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "FrequencyDecoupledGuidance",
    "MagnitudeAwareGuidance",
    "PerturbedAttentionGuidance",
    "SkipLayerGuidance",
    "TangentialClassifierFreeGuidance",
)


@dataclass
class DrawingArguments(Arguments):
    """How a set of samples is drawn."""

    group: ClassVar[str] = "Samples"

    num_images: int = option(
        50_000, "Number of images of a set; FID is defined for 50,000.", metavar="IMAGES", at_least=1
    )
    num_inference_steps: int = option(50, "Denoising steps of each image.", metavar="STEPS", at_least=1)
    timestep_shift: float | None = option(
        None, "Shift of the noise levels during sampling, for flow matching; the scheduler's own if unset.", above=0
    )
    height: int | None = option(
        None, "Height of the images in pixels; that of the pipeline if unset.", metavar="PIXELS", at_least=1
    )
    width: int | None = option(
        None, "Width of the images in pixels; that of the pipeline if unset.", metavar="PIXELS", at_least=1
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

    guidance_scale: float | None = option(
        None,
        "Scale of guidance; 1 means no guidance. If unset, that of --guider, or of the guider saved with the "
        "pipeline; without either, no guidance.",
        at_least=1,
    )
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Part of the trajectory that is guided, between 0 and 1 as in TCDiTPipeline; if unset, that of the guider, or"
        " all of it.",
        metavar=("FROM", "TO"),
        at_least=0,
        at_most=1,
    )
    guider: str | None = option(
        None,
        "Class of diffusers.guiders that guides; the pipeline's own if unset, or classifier-free guidance.",
        choices=GUIDERS,
    )
    guider_options: dict[str, Any] = option({}, "Arguments of --guider as JSON, such as '{\"eta\": 0.5}'.")

    def __post_init__(self) -> None:
        super().__post_init__()
        unguided = "unless --guidance_scale is above 1 or --guider is given"
        self._require_default("guidance_interval", unless=self.is_guided, omitted=unguided)
        self._require_default("guider", unless=self.guidance_scale != 1, omitted="with --guidance_scale 1")
        self._require_default("guider_options", unless=self.guider is not None, omitted="without --guider")
        for name, same in (
            ("guidance_scale", "guidance_scale"),
            ("start", "guidance_interval"),
            ("stop", "guidance_interval"),
        ):
            if name in self.guider_options and getattr(self, same) is not None:
                raise InputError(f"--guider_options has {name!r}, which --{same} says too; omit one of them")

    @property
    def is_guided(self) -> bool:
        """Whether these options guide, whatever the pipeline has by itself."""
        return self.guider is not None if self.guidance_scale is None else self.guidance_scale > 1

    def guidance(self, has_guider: bool) -> dict[str, Any]:
        """
        What a pipeline is called with, where `has_guider` says whether it has one; what is unset is left out, for
        pipelines that know none.
        """
        scale = self.guidance_scale if has_guider or self.guidance_scale is not None else 1.0
        given = {"guidance_scale": scale, "guidance_interval": self.guidance_interval}
        return {name: value for name, value in given.items() if value is not None}


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
