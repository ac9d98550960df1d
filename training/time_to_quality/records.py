"""What was measured of one recipe and seed: a small JSON file of every check and the first crossing of each level."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError

# What a check holds beside its value.
PLACES = ("step", "cpu_s", "wall_s")


def first_crossing(checks: Sequence[dict[str, float]], level: float, rising: bool) -> dict[str, float] | None:
    """
    Where a curve first reaches a level, by linear interpolation between the two checks around it.

    Args:
        checks: In the order of steps, each with `step`, `cpu_s`, `wall_s` and `value`.
        rising (`bool`): Whether larger values are better.

    Returns:
        `step`, `cpu_s` and `wall_s`, or `None` if no check reached the level.
    """

    def reached(check: dict[str, float]) -> bool:
        return check["value"] >= level if rising else check["value"] <= level

    if checks and reached(checks[0]):
        return {place: checks[0][place] for place in PLACES}
    for before, after in pairwise(checks):
        if reached(after):
            share = (level - before["value"]) / (after["value"] - before["value"])
            return {place: before[place] + share * (after[place] - before[place]) for place in PLACES}
    return None


def level_name(level: float, measure: str = "dB") -> str:
    """`20 dB`, or `gFD 350` for a Fréchet distance."""
    return f"{level:g} dB" if measure == "dB" else f"{measure} {level:g}"


def record_path(folder: Path, recipe: str, seed: int) -> Path:
    return folder / f"{recipe}-seed{seed}.json"


def format_record(record: dict[str, Any]) -> str:
    """JSON with a line for each entry: indented, each check would take a screen."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_record(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: if the file is not a record.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a record of time_to_quality ({error}); delete it") from error
    if not isinstance(record, dict) or not {"settings", "crossings", "checks"} <= record.keys():
        raise InputError(f"{path} is no record of time_to_quality; move it elsewhere")
    return record
