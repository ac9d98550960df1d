"""A sheet of images over what an autoencoder makes of them, tokens and latents in colours."""

from __future__ import annotations

from torch import nn

from tcae_diffusers.data.images.image_sets import ImageSet, uint8_batches
from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.metrics.component_colours import component_colours, feature_maps

from .contact_sheet import contact_sheet, png_bytes


def component_sheet(model: nn.Module, images: ImageSet, indices: list[int]) -> tuple[bytes, list[str]]:
    """PNG with the images in the first row and their maps below, and the name of each row."""
    (originals,) = uint8_batches(images, len(indices), indices)
    parameter = next(model.parameters())
    maps = feature_maps(model, to_signed(originals, parameter.device).to(parameter.dtype))
    colours = [component_colours(values, originals.shape[-2:]) for values in maps.values()]
    rows = [list(row.permute(0, 2, 3, 1).numpy()) for row in (originals, *colours)]
    return png_bytes(contact_sheet(rows)), ["image", *maps]
