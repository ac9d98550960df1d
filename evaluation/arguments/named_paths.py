"""`name=path` on a command line."""

from __future__ import annotations

import os
from pathlib import Path

from tcae_diffusers.data.images.folder import printable_name
from tcae_diffusers.data.images.sources import SCHEMES
from tcae_diffusers.errors import InputError
from tcae_diffusers.existing_paths import scheme_before, split_before_path

# Bytes; what is added to name a file stays within the 255 of file systems.
_LONGEST_NAME = 200


def parse_named_paths(arguments: list[str]) -> dict[str, str]:
    """`name=path` or `path`, which is then called by its last part, to `{name: path}`.

    Names and paths may hold `=` themselves: what is there decides where a path begins.

    Raises:
        InputError: Two paths of one name, or a name that holds a `/`, is empty or too long: files are named after it.
    """
    paths: dict[str, str] = {}
    for argument in arguments:
        # In `openmoji:train?label=subcategory` the sign names no path.
        is_source = scheme_before(argument, SCHEMES) is not None
        name, path = (None, argument) if is_source else split_before_path(argument, "=")
        # Names are drawn into charts, whose fonts know no bytes.
        name = printable_name(_last_part(path) if name is None else name)
        if name in ("", ".", "..") or "/" in name:
            raise InputError(f"{argument} does not exist and is not NAME=PATH: {name!r} is not a name")
        if len(name.encode()) > _LONGEST_NAME:
            raise InputError(
                f"a name of {len(name.encode())} bytes is too long for a file; give {path} a shorter one, as in "
                f"{name[:12]}={path}"
            )
        if name in paths:
            raise InputError(f"two paths are called {name!r}; give each its own name, as in trained=runs/a/samples")
        paths[name] = path
    return paths


def _last_part(path: str) -> str:
    """The name of a folder, or that of a file without its ending."""
    place = Path(os.path.abspath(path))
    return place.name if place.is_dir() else place.stem
