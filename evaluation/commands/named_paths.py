"""`name=path` on a command line."""

from __future__ import annotations

from pathlib import Path

from tcae_diffusers.errors import InputError


def parse_named_paths(arguments: list[str]) -> dict[str, str]:
    """`name=path` or `path` (whose last part becomes the name) to `{name: path}`."""
    paths: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            name, path = Path(argument).stem, argument
        if name in paths:
            raise InputError(f"two paths are called {name!r}; give them names, as in trained=runs/a/samples")
        paths[name] = path
    return paths
