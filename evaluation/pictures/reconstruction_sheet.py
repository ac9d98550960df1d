"""Originals over their reconstructions."""

from __future__ import annotations

from torch import nn

from tcae_diffusers.data.images.image_sets import ImageSet, uint8_batches
from tcae_diffusers.metrics.reconstruction import reconstruct

from .contact_sheet import contact_sheet, png_bytes

_COLUMNS = 12


def reconstruction_sheet(model: nn.Module, images: ImageSet, indices: list[int]) -> bytes:
    """PNG of the chosen images: rows of originals, each over its row of reconstructions."""
    rows = []
    for originals in uint8_batches(images, _COLUMNS, indices):
        for batch in (originals, reconstruct(model, originals)[0]):
            rows.append(list(batch.permute(0, 2, 3, 1).cpu().numpy()))
    return png_bytes(contact_sheet(rows))
