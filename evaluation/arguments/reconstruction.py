"""Options of `reconstruction`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option

from .groups import Content, ImageArguments, MachineArguments, OptionalNetworkArguments


@dataclass
class ReconstructionMeasureArguments(Arguments):
    """What is measured of reconstructions, and how."""

    group: ClassVar[str] = "Reconstruction"

    lpips: Literal["none", "vgg", "alex", "squeeze"] = option(
        "none", "Backbone of LPIPS, which needs its ImageNet weights; most papers report alex."
    )
    lpips_weights: Path | None = option(
        None,
        "File with torchvision's weights of the LPIPS backbone; downloaded ones if unset.",
        metavar="FILE",
        needs="lpips",
    )
    tiling: bool = option(False, "Encode and decode in tiles, for large images.")
    output: Path = option(MISSING, "Folder for reconstruction.json, per_image.csv and pictures.", metavar="FOLDER")


@dataclass
class LinearBaselineArguments(Arguments):
    """The linear autoencoder with a latent of the same size, beside which every figure is shown."""

    group: ClassVar[str] = "Linear baseline"

    baseline_data: str | None = option(
        None,
        "Images that the linear baseline is fitted to, or none for no baseline; if unset, the training split that "
        "belongs to --data, or --data itself where there is none, which favours the baseline.",
        metavar="SOURCE",
    )
    baseline_images: int = option(
        10_000,
        "Most images that the linear baseline is fitted to; they are evenly spaced in their source.",
        at_least=2,
    )
    baseline_basis: Literal["shared", "per_position"] = option(
        "shared",
        "Whether the linear baseline has one basis for all positions of the latent, or one for each, which suits "
        "images with aligned contents.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        has_baseline = self.baseline_data != "none"
        names = ("baseline_images", "baseline_basis")
        self._require_default(*names, unless=has_baseline, omitted="with --baseline_data none")


@dataclass
class ReconstructionArguments(
    ImageArguments,
    ReconstructionMeasureArguments,
    LinearBaselineArguments,
    OptionalNetworkArguments,
    MachineArguments,
):
    """
    How well does an autoencoder reconstruct unseen images? PSNR, SSIM, MS-SSIM, LPIPS, patch grid, Fréchet
    distance, each beside that of the linear autoencoder with a latent of the same size.

    Works for any autoencoder of diffusers. Only one batch is in memory at a time, so 50,000 images need no more memory
    than 100.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "autoencoder": "folder",
        "data": "source",
        "baseline_source": "source",
        "extractor_weights": "folder",
        "lpips_weights": "folder",
    }

    @property
    def baseline_source(self) -> str | None:
        """
        Images that the linear baseline is fitted to; `None` for no baseline.

        Raises:
            InputError: The data set of `--data` cannot be read.
        """
        from tcae_diffusers.data.images.sources import training_split

        if self.baseline_data == "none":
            return None
        return self.baseline_data or training_split(self.data) or self.data
