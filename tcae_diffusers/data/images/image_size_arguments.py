"""Options of the sizes to which images are cropped."""

from dataclasses import dataclass
from typing import ClassVar

from ...arguments import Arguments, option


@dataclass
class ImageSizeArguments(Arguments):
    """To which sizes images are cropped and scaled."""

    group: ClassVar[str] = "Image sizes"

    resolution: int | None = option(
        None,
        "Side in pixels of the images; the autoencoder's sample_size if unset.",
        metavar="PIXELS",
        at_least=1,
    )
    extra_resolutions: list[int] = option(
        [],
        "Further sides in pixels, at each of which every image is used as well. All images of a batch have one size.",
        metavar="PIXELS",
        at_least=1,
    )
    aspect_ratio_buckets: bool = option(
        False,
        "Crop each image to the nearest of diffusers' aspect ratios, from 1:2 to 2:1, with about as many pixels as a"
        " square of --resolution and of --extra_resolutions each, instead of to the square.",
    )
    data_resolution: int | None = option(
        None,
        "Side in pixels at which vector images are drawn; twice the largest resolution if unset.",
        metavar="PIXELS",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_extra_resolutions()

    def check_extra_resolutions(self) -> None:
        """
        Raises:
            InputError: two sizes are the same; to be asked again once `resolution` is known.
        """
        for each in self.extra_resolutions:
            is_new = each != self.resolution and self.extra_resolutions.count(each) == 1
            self._require("extra_resolutions", is_new, "all different, and none of them --resolution")

    @property
    def image_size(self) -> int:
        """`resolution`, once [`~trainer.build_autoencoder.resolve_sizes`] has filled it in."""
        assert self.resolution is not None
        return self.resolution

    @property
    def resolutions(self) -> list[int]:
        """All of them."""
        return [self.image_size, *self.extra_resolutions]

    @property
    def has_several_sizes(self) -> bool:
        """Whether images may have another size than the square of `resolution`."""
        return bool(self.extra_resolutions) or self.aspect_ratio_buckets
