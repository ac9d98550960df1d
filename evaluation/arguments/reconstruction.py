"""Options of `reconstruction`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.settings import EFFICIENTNET_LITE0, EXTRACTOR_NAMES

from .groups import Content, FeatureNetworkArguments, ImageArguments, MachineArguments


@dataclass
class ReconstructionMeasureArguments(Arguments):
    """What is measured of reconstructions, and how."""

    group: ClassVar[str] = "Reconstruction"

    lpips: Literal["none", "vgg", "alex", "squeeze"] = option(
        "none", "Backbone of LPIPS, which needs its ImageNet weights; most papers report alex."
    )
    lpips_weights: Path | None = option(
        None, "File with torchvision's weights of the LPIPS backbone; downloaded ones if unset.", metavar="FILE"
    )
    tiling: bool = option(False, "Encode and decode in tiles, for large images.")
    output: Path = option(MISSING, "Folder for reconstruction.json, per_image.csv and pictures.", metavar="FOLDER")


@dataclass
class ReconstructionArguments(
    ImageArguments, ReconstructionMeasureArguments, FeatureNetworkArguments, MachineArguments
):
    """
    How well does an autoencoder reconstruct unseen images? PSNR, SSIM, MS-SSIM, LPIPS, Fréchet distance.

    Works for any autoencoder of diffusers. Only one batch is in memory at a time, so 50,000 images need no more memory
    than 100.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "autoencoder": "folder",
        "data": "source",
        "extractor_weights": "folder",
        "lpips_weights": "folder",
    }

    extractor: str = option(
        EFFICIENTNET_LITE0,
        "Feature network of the Fréchet distance; only inception gives an rFID, and none leaves the distance out.",
        choices=(*EXTRACTOR_NAMES, "none"),
    )
