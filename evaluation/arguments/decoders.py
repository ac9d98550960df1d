"""Options of `decoders`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option

from .generate import GenerateArguments
from .groups import MachineArguments
from .sampling import DrawingArguments, GuidanceArguments, SamplingArguments


@dataclass
class DecoderSetArguments(Arguments):
    """The decoders to compare, and what draws the latents."""

    group: ClassVar[str] = "Pipeline and decoders"

    pipeline: str = option(MISSING, "Pipeline folder or Hub name, which draws the latents.", metavar="PATH")
    decoders: list[str] = option(
        MISSING,
        "Autoencoders whose decoders are compared with that of the pipeline, each optionally with a name; encoder and "
        "latent statistics must be those of the pipeline's autoencoder.",
        metavar="[NAME=]PATH",
    )
    guidance_transformer: str | None = option(
        None,
        "Weaker transformer that --guidance_scale leads away from (autoguidance), as in generate.",
        metavar="FOLDER",
    )
    output: Path = option(MISSING, "Folder for generation.json, its pictures and the samples.", metavar="FOLDER")


@dataclass
class DecodersArguments(DecoderSetArguments, GuidanceArguments, SamplingArguments):
    """
    How do decoders of the same latents compare on generated latents? Draws latents once, decodes them with each
    decoder and measures the images against real ones.

    The decoders see the same latents, from the same noise and labels, so the differences between their Fréchet
    distances have paired intervals, which are much narrower than those of the distances. The samples of each decoder
    are an ordinary set in OUTPUT/samples/NAME; that of the pipeline's own decoder is called "pipeline". After an
    interruption, the same command draws what is missing.
    """

    reference: str = option(
        MISSING, "Real images to compare with: a data source, a folder or an ADM .npz.", metavar="SOURCE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # What cannot be drawn is refused before anything is loaded.
        self.drawing("pipeline")

    def drawing(self, name: str) -> GenerateArguments:
        """How the samples of one decoder are drawn."""
        shared = self.values_of(GuidanceArguments, DrawingArguments, MachineArguments)
        return GenerateArguments(
            pipeline=self.pipeline,
            guidance_transformer=self.guidance_transformer,
            output=self.output / "samples" / name,
            **shared,
        )
