"""Grids of pictures as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# White pixels between pictures, before they are enlarged.
_GAP = 2


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], smallest_side: int = 64) -> Image.Image:
    """Places uint8 `(H, W, 3)` pictures of one size in rows on white; rows may differ in length.

    Pictures whose shorter side has fewer pixels than `smallest_side` are enlarged by a whole factor, nearest
    neighbour, so that every pixel stays what it is.
    """
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            y, x = top * (height + _GAP), left * (width + _GAP)
            sheet[y : y + height, x : x + width] = picture
    factor = -(-smallest_side // min(height, width))
    image = Image.fromarray(sheet)
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )


def png_bytes(image: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
