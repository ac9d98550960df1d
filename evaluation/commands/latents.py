"""The shape of a latent space: does it use its channels, how does it move with the image, what does noise cost?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS
from tcae_diffusers.metrics.latent_diagnostics import NOISE_LEVELS, evaluate_latents
from tcae_diffusers.models.adapters import load_autoencoder

from ..pictures.chosen_images import spread_indices
from ..pictures.component_pictures import component_sheet
from ..results.kinds.autoencoder import describe_autoencoder, describe_images
from ..results.kinds.latents import LatentsResult
from ..results.provenance import provenance
from ..results.resumption import folder_content, source_content
from .argument_groups import FeatureNetworkArguments, ImageArguments, MachineArguments

_PICTURE = "latent_components.png"


@dataclass
class LatentSpaceArguments(Arguments):
    """What is done to the latent."""

    group: ClassVar[str] = "Latent space"

    noise_levels: list[float] = option(
        list(NOISE_LEVELS), "Sizes of the noise, in units of each channel's standard deviation."
    )
    seed: int = option(0, "Seed of the noise.")
    output: Path = option(MISSING, "Folder for latents.json and a picture.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("noise_levels", min(self.noise_levels) >= 0, "0 or more each")


@dataclass
class LatentsArguments(ImageArguments, LatentSpaceArguments, FeatureNetworkArguments, MachineArguments):
    """
    The shape of a latent space: does it use its channels, how does it move with the image, what does noise in it cost?

    Channel statistics come from all positions of all images; equivariance asks whether the latent of a moved image is
    the moved latent; the noise curve decodes latents with Gaussian noise of growing size, which is what a diffusion
    model's errors will cost.
    """

    content: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "autoencoder": folder_content,
        "data": source_content,
        "extractor_weights": folder_content,
    }

    extractor: str = option(
        EFFICIENTNET_LITE0,
        "Feature network of the noise curve's Fréchet distance; none leaves the distance out.",
        choices=(*EXTRACTORS, "none"),
    )


def run(arguments: LatentsArguments) -> LatentsResult:
    """
    Measures the latent space of an autoencoder.

    Raises:
        InputError: If the model or its images cannot be used; the message says why.
    """
    state, device = arguments.process_state(), arguments.chosen_device()
    model = load_autoencoder(arguments.autoencoder, device)
    images = arguments.open_images(model)
    network = arguments.feature_network(device)
    found = evaluate_latents(model, images, network, arguments.batch_size, arguments.noise_levels, seed=arguments.seed)
    result = LatentsResult(
        figures=found.figures,
        autoencoder=describe_autoencoder(arguments.autoencoder, model),
        data=describe_images(arguments.data, images),
        channels=found.channels,
        equivariance=found.equivariance,
        noise=found.noise,
        picture=_PICTURE,
        **provenance(seed=arguments.seed, resolution=images[0].shape[0], ranks=state.num_processes),
    )
    if state.is_main_process:
        result.files[_PICTURE], result.picture_rows = component_sheet(model, images, spread_indices(images, 12))
    return result
