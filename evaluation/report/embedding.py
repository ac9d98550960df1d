"""Pictures inside a page, so that it is one file."""

from __future__ import annotations

import base64
from pathlib import Path

from tcae_diffusers.errors import InputError


def embed_png(folder: Path, name: str) -> str:
    """
    A picture as a `data:` address.

    Args:
        folder, name: Where it lies, and what its result calls it: a result may be somebody else's.

    Raises:
        InputError: If it cannot be read, or lies elsewhere.
    """
    path = folder / name
    if Path(name).name != name or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the report needs the picture {name!r} of a result in {folder}, which lies elsewhere")
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"the report needs the picture {path}, which cannot be read: {error}") from error
