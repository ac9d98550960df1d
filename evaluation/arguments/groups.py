"""Options that several commands have, and what a command opens by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.settings import EFFICIENTNET_LITE0, EXTRACTOR_NAMES

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import nn

    from tcae_diffusers.data.images.image_sets import ImageSet
    from tcae_diffusers.metrics.features import FeatureNetwork

# What an argument names that has content, see [`results.resumption`].
Content = Literal["folder", "source", "labels", "reference", "sample sets", "networks"]


class MeasuringArguments(Protocol):
    """
    Arguments of a command that stores a result in `output`.

    Attributes:
        content (`Mapping[str, Content]`): The attributes that name models or data, each with what it names.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    content: ClassVar[Mapping[str, Content]]
    output: Path


def usable_device(name: str) -> torch.device:
    """
    Raises:
        InputError: There is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    # A build without CUDA asserts that it has it.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--device {name} cannot be used here: {reason}") from error
    return device


@dataclass
class MachineArguments(Arguments):
    """Device and batch size."""

    group: ClassVar[str] = "Speed and memory"

    batch_size: int = option(32, "Images in one forward pass; figures do not depend on it.", at_least=1)
    device: str | None = option(
        None, "Device to run on, such as cpu or cuda; chosen by accelerate if unset.", metavar="DEVICE"
    )

    def process_state(self) -> PartialState:
        """The ranks of this process, on the CPU if that is the device."""
        from accelerate import PartialState

        return PartialState(cpu=self.device == "cpu")

    def chosen_device(self) -> str | torch.device:
        """Where to run."""
        return self.process_state().device if self.device is None else usable_device(self.device)


@dataclass
class AutoencoderArguments(Arguments):
    """The autoencoder to measure."""

    group: ClassVar[str] = "Autoencoder"

    autoencoder: str = option(
        MISSING,
        "Any autoencoder of diffusers: a saved folder, a pipeline folder, or a Hub name.",
        metavar="PATH",
    )


@dataclass
class MeasuredSizeArguments(AutoencoderArguments):
    """The size of its images."""

    resolution: int | None = option(
        None, "Side of the images in pixels; the autoencoder's sample_size if unset.", metavar="PIXELS", at_least=1
    )
    width: int | None = option(
        None,
        "Width of the images in pixels where they are not square, whose height is then --resolution.",
        metavar="PIXELS",
        needs="resolution",
        at_least=1,
    )

    def image_size(self, model: nn.Module) -> int | tuple[int, int] | None:
        """
        Side, or height and width, that was asked for; else what the model is made for, `None` where that is any size.

        Raises:
            InputError: Images that are not square, for a model that decodes squares only.
        """
        from tcae_diffusers.models.adapters import adapt

        adapter, size = adapt(model), self.resolution or adapt(model).image_size
        if not size or not self.width or self.width == size:
            return size
        if not adapter.decodes_any_size:
            raise InputError(f"{adapter.class_name} decodes square images of one size only; omit --width")
        return size, self.width


@dataclass
class ImageArguments(MeasuredSizeArguments):
    """The images to measure it on."""

    group: ClassVar[str] = "Images"

    data: str = option(
        MISSING,
        "Images to encode: openmoji:SPLIT, datasets:NAME[:SPLIT], or a folder of root/class/img.png.",
        metavar="SOURCE",
    )
    max_images: int | None = option(
        None,
        "Number of images to use, evenly spaced in the source; all of them if unset.",
        metavar="IMAGES",
        at_least=2,
    )

    def open_images(self, model: nn.Module) -> ImageSet:
        """
        The images, of [`image_size`].

        Raises:
            InputError: They cannot be read, or are not square and the model decodes squares only.
        """
        from tcae_diffusers.data.images.image_sets import EvenlySpacedImages, open_data_source

        images: ImageSet = open_data_source(self.data, self.image_size(model))
        if self.max_images and self.max_images < len(images):
            images = EvenlySpacedImages(images, self.max_images)
        return images


@dataclass
class FeatureNetworkArguments(Arguments):
    """The features in which distances are measured."""

    group: ClassVar[str] = "Feature network"

    extractor: str = option(
        EFFICIENTNET_LITE0,
        "Feature network of the Fréchet distance and similar measures; only inception gives an FID.",
        choices=EXTRACTOR_NAMES,
    )
    extractor_weights: Path | None = option(
        None, "Weights of the feature network; installed or downloaded ones if unset."
    )

    def feature_network(self, device: str | torch.device) -> FeatureNetwork:
        """The network."""
        from tcae_diffusers.metrics.features import FeatureNetwork

        return FeatureNetwork(self.extractor, self.extractor_weights, device)


@dataclass
class HeldoutArguments(Arguments):
    """Real images that no training saw, beside which samples are judged."""

    group: ClassVar[str] = "Held-out images"

    heldout: str | None = option(
        None,
        "Labelled real images that no training saw; small classifiers are trained on the samples and tested on them"
        " (classification accuracy score). The score is omitted if unset.",
        metavar="SOURCE",
    )
    fdr_networks: list[str] = option(
        [],
        "Feature networks of FDr, the Fréchet distance of the samples to --reference over that of --heldout, averaged "
        f"over these networks: {', '.join(EXTRACTOR_NAMES)}, each optionally with its weights. FDr is omitted if"
        " unset; if set, images may lack labels, and classification accuracy is omitted where they do.",
        metavar="NAME[=WEIGHTS]",
        needs="heldout",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for given in self.fdr_networks:
            known = given.partition("=")[0] in EXTRACTOR_NAMES
            self._require("fdr_networks", known, f"some of {', '.join(EXTRACTOR_NAMES)}")

    def opened_fdr_networks(self, device: str | torch.device) -> list[FeatureNetwork]:
        """The networks of `fdr_networks`, in order."""
        from tcae_diffusers.metrics.features import FeatureNetwork

        parts = [given.partition("=") for given in self.fdr_networks]
        return [FeatureNetwork(name, Path(weights) if weights else None, device) for name, _, weights in parts]


@dataclass
class OptionalNetworkArguments(FeatureNetworkArguments):
    """The features in which distances are measured, where a command can do without."""

    extractor: str = option(
        EFFICIENTNET_LITE0,
        "Feature network of the Fréchet distance; only inception gives an FID, and none leaves the distance out.",
        choices=(*EXTRACTOR_NAMES, "none"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        has_network = self.extractor != "none"
        self._require_default("extractor_weights", unless=has_network, omitted="with --extractor none")

    def network_if_any(self, device: str | torch.device) -> FeatureNetwork | None:
        """The network; `None` for `--extractor none`."""
        return None if self.extractor == "none" else self.feature_network(device)


@dataclass
class FeatureCacheArguments(FeatureNetworkArguments):
    """Caching of computed features."""

    feature_cache: Path | None = option(
        None, "Folder in which computed features are cached; the package's cache folder if unset.", metavar="FOLDER"
    )
    no_feature_cache: bool = option(False, "Recompute features and do not cache them.")

    def cache_folder(self) -> Path | None:
        """Where features are kept; `None` for nowhere."""
        from tcae_diffusers.metrics.feature_cache import default_cache_folder

        return None if self.no_feature_cache else self.feature_cache or default_cache_folder()
