"""`name=path` on a command line."""

from __future__ import annotations

from pathlib import Path

from tcae_diffusers.errors import InputError


def parse_named_paths(arguments: list[str]) -> dict[str, str]:
    """`name=path` or `path` (whose last part becomes the name) to `{name: path}`.

    Names and paths may hold `=` themselves: what is there decides where a path begins.

    Raises:
        InputError: If two have one name.
    """
    paths: dict[str, str] = {}
    for argument in arguments:
        name, path = _name_and_path(argument)
        if name in paths:
            raise InputError(f"two paths are called {name!r}; give them names, as in trained=runs/a/samples")
        paths[name] = path
    return paths


def _name_and_path(argument: str) -> tuple[str, str]:
    if "=" not in argument or Path(argument).exists():
        return Path(argument).stem, argument
    parts = argument.split("=")
    splits = [("=".join(parts[:place]), "=".join(parts[place:])) for place in range(1, len(parts))]
    return next((split for split in splits if Path(split[1]).exists()), splits[0])
