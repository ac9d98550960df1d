"""Settings as records hold them, and whether a record that is there was measured with those of now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tcae_diffusers.arguments import Arguments, default_of
from tcae_diffusers.errors import InputError


def options_set(arguments: Arguments) -> dict[str, Any]:
    """Options that are not what they are by default, whether a preset or a recipe says so, as JSON has them."""
    found = {}
    for each in fields(arguments):
        if (value := getattr(arguments, each.name)) != default_of(each):
            found[each.name] = list(value) if isinstance(value, tuple) else value
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def local_weights(commands: Mapping[str, Any]) -> dict[str, str]:
    """
    Files and folders of weights on this machine that commands start from, by `command.option`: records hold their
    content, since others may take their place.

    Args:
        commands (`Mapping`): Options of each command, by its name.
    """
    given = {
        f"{command}.{entry.name}": getattr(arguments, entry.name)
        for command, arguments in commands.items()
        for entry in fields(arguments)
        if entry.name in ("autoencoder", "object_finder") or entry.name.endswith(("_weights", "_weights_path"))
    }
    return {name: str(path) for name, path in given.items() if path and Path(path).exists()}


def require_same_settings(path: Path, found: dict[str, Any], now: dict[str, Any], remedy: str) -> None:
    """
    Args:
        path (`Path`): Of the record. found (`dict`): What it says that it was measured with.
        now (`dict`): What it would be measured with. remedy (`str`): What the user can do.

    Raises:
        InputError: They differ; the message names the first difference.
    """
    before, after = _flat(found), _flat(now)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            values = f"{before.get(key)!r}, now it is {after.get(key)!r}"
            raise InputError(f"{path} was measured with {key} {values} (None: as by default); {remedy}")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with those of a command as `command.option`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{key}.") if isinstance(value, dict) and not prefix else {prefix + key: value}
    return flat
