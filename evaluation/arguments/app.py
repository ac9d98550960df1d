"""Options of `tcae-app`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option

from .groups import MachineArguments


@dataclass
class ShownArguments(Arguments):
    """What the page shows."""

    group: ClassVar[str] = "Shown"

    autoencoder: list[str] = option(
        [],
        "Autoencoders to reconstruct with, each optionally with a name: saved folders, pipeline folders or Hub names; "
        "those of --pipeline if unset.",
        metavar="[NAME=]PATH",
    )
    pipeline: list[str] = option(
        [],
        "Class-conditional pipelines to generate with, each optionally with a name: saved folders or Hub names.",
        metavar="[NAME=]PATH",
    )
    results: Path | None = option(None, "Folder whose reports and results are shown.", metavar="FOLDER")
    images: str | None = option(
        None,
        "Images that visitors can pick instead of uploading one: openmoji:SPLIT, datasets:NAME[:SPLIT], or a folder "
        "of root/class/img.png.",
        metavar="SOURCE",
    )
    demo_output: Path = option(
        Path("demo_output"),
        "Folder that `make demo` wrote; it is shown if none of --autoencoder, --pipeline and --results is given.",
        metavar="FOLDER",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Data type of the autoencoders and pipelines."
    )

    @property
    def shows_demo(self) -> bool:
        """Whether nothing else was asked for."""
        return not (self.autoencoder or self.pipeline or self.results)

    def __post_init__(self) -> None:
        super().__post_init__()
        others = "with --autoencoder, --pipeline or --results"
        self._require_default("demo_output", unless=self.shows_demo, omitted=others)


@dataclass
class LimitArguments(Arguments):
    """How much one visitor may ask for."""

    group: ClassVar[str] = "Limits"

    max_side: int = option(
        1024, "Largest side of an image that a visitor has reconstructed.", metavar="PIXELS", at_least=1
    )
    max_images: int = option(64, "Largest number of images that one request generates.", metavar="IMAGES", at_least=1)
    max_steps: int = option(
        250, "Largest number of denoising steps that one request takes.", metavar="STEPS", at_least=1
    )
    max_waiting: int = option(
        20,
        "Largest number of requests that wait while one is being answered; further ones are refused.",
        metavar="REQUESTS",
        at_least=1,
    )


@dataclass
class ServerArguments(Arguments):
    """Where the page is served."""

    group: ClassVar[str] = "Server"

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.", metavar="ADDRESS")
    port: int = option(7860, "Port to listen on.", at_least=1, at_most=65535)


@dataclass
class AppArguments(ShownArguments, LimitArguments, ServerArguments, MachineArguments):
    """
    A page in the browser to try autoencoders and pipelines on: reconstruct images, generate, read results. Without
    arguments it shows what `make demo` wrote.

    Requests run one after the other. Nothing but the page itself, uploads and what was made of them is served, and
    both are deleted when the command ends.
    """
