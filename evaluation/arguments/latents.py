"""Options of `latents`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.settings import NOISE_LEVELS

from .groups import Content, ImageArguments, MachineArguments, OptionalNetworkArguments


@dataclass
class LatentSpaceArguments(Arguments):
    """The noise added to the latent."""

    group: ClassVar[str] = "Latent space"

    noise_levels: list[float] = option(
        list(NOISE_LEVELS), "Sizes of the noise, in units of each channel's standard deviation.", at_least=0
    )
    seed: int = option(0, "Seed of the noise.", at_least=0)
    output: Path = option(MISSING, "Folder for latents.json and a picture.", metavar="FOLDER")


@dataclass
class LatentsArguments(ImageArguments, LatentSpaceArguments, OptionalNetworkArguments, MachineArguments):
    """
    The shape of a latent space: does it use its channels, how does it move with the image, what does noise in it cost?

    Channel statistics come from all positions of all images; equivariance compares the latent of a transformed image
    with the transformed latent; the noise curve decodes latents with increasing Gaussian noise, to estimate what the
    errors of a diffusion model will cost.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "autoencoder": "folder",
        "data": "source",
        "extractor_weights": "folder",
    }
