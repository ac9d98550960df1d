"""Pictures inside a page, so that it is one file."""

from __future__ import annotations

import base64
from pathlib import Path

from tcae_diffusers.errors import InputError


def embed_png(path: Path) -> str:
    """A picture as a `data:` address.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"the report needs the picture {path}, which cannot be read: {error}") from error
