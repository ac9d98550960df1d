"""Records of several recipes side by side: minutes, and ratios within each seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tcae_diffusers.errors import InputError

from .records import first_crossing

Record = dict[str, Any]


def minutes_text(records: Sequence[Record], level: str, clock: str = "cpu_s") -> str:
    """Mean minutes to a level with the least and most of the seeds, or how many reached it and the best value."""
    crossings = [_crossing(record, level) for record in records]
    reached = [crossing[clock] / 60 for crossing in crossings if crossing]
    if not reached or len(reached) < len(records):
        best = best_value(records, level)
        return f"reached by {len(reached)} of {len(records)}; best {best}" if best else "not measured"
    return _mean_and_range(reached, statistics.fmean(reached))


def best_value(records: Sequence[Record], level: str) -> str:
    """The best value of any check, with its unit; empty if there is none."""
    values = [check["value"] for record in records for check in _checks(record, level)]
    if not values:
        return ""
    return f"{min(values):.0f}" if level.startswith("gFD") else f"{max(values):.2f} dB"


def _checks(record: Record, level: str) -> list[dict[str, float]]:
    """Those of the measure that the level is of."""
    found: list[dict[str, float]] = record["checks"].get("gfd" if level.startswith("gFD") else "psnr", [])
    return found


def _crossing(record: Record, level: str) -> dict[str, float] | None:
    """Where a record reached a level, also one that it was not asked for; `None` if it did not."""
    if level in record["crossings"]:
        stored: dict[str, float] | None = record["crossings"][level]
        return stored
    number = float(level.removeprefix("gFD ").removesuffix(" dB"))
    return first_crossing(_checks(record, level), number, rising=not level.startswith("gFD"))


def speed_up_text(records: Sequence[Record], baseline: Sequence[Record], level: str, clock: str = "cpu_s") -> str:
    """
    How many times sooner than the baseline of the same seed a level is reached: the geometric mean, with the least and
    most of the seeds; `-` where one did not reach it. A baseline that did not is taken to its end, which makes the
    ratio a bound: `over 2.00x`.
    """
    by_seed = {record["seed"]: record for record in baseline}
    ratios, is_bound = [], False
    for record in records:
        ours, other = _crossing(record, level), by_seed.get(record["seed"])
        theirs = None if other is None else _crossing(other, level)
        if theirs is None and other is not None:
            theirs, is_bound = next(reversed(_checks(other, level)), None), True
        if ours and theirs and ours[clock] > 0:
            ratios.append(theirs[clock] / ours[clock])
    if not ratios or len(ratios) < len(records):
        return "-"
    return ("over " if is_bound else "") + _mean_and_range(ratios, statistics.geometric_mean(ratios)) + "x"


def _mean_and_range(values: Sequence[float], mean: float) -> str:
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return f"{mean:.2f}{spread}"


def require_comparable(records: Sequence[Record]) -> None:
    """
    Raises:
        InputError: if records were measured on different images or machines.
    """
    compared: dict[str, Callable[[Record], Any]] = {
        "measures": lambda record: record["measures"],
        "images": _measured_content,
        "machine": lambda record: record["machine"]["processor"],
    }
    for key, of in compared.items():
        found = {str(of(record)): record["recipe"] for record in records}
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            raise InputError(
                f"{first} and {second} differ in {key}: {one} and {other}; times are comparable with the same only"
            )


def _measured_content(record: Record) -> dict[str, str]:
    """Fingerprints of the images that a record was measured on, by the option that names them."""
    return {name: content for name, content in record["settings"].get("content", {}).items() if name != "train_data"}


def table(records: dict[str, list[Record]], levels: Sequence[str]) -> dict[str, dict[str, str]]:
    """
    Rows by recipe, the first of which is the baseline of the ratios.

    Args:
        records: Of each recipe, one for each seed.
        levels: Names of levels, see [`records.level_name`].

    Raises:
        InputError: see [`require_comparable`].
    """
    require_comparable([record for of_recipe in records.values() for record in of_recipe])
    baseline, rows = next(iter(records)), {}
    for name, of_recipe in records.items():
        row = rows[name] = {"seeds": " ".join(str(record["seed"]) for record in of_recipe)}
        for level in levels:
            row[f"CPU min to {level}"] = minutes_text(of_recipe, level)
            row[f"wall min to {level}"] = minutes_text(of_recipe, level, "wall_s")
            if name != baseline:
                row[f"sooner to {level}, CPU"] = speed_up_text(of_recipe, records[baseline], level)
                row[f"sooner to {level}, wall"] = speed_up_text(of_recipe, records[baseline], level, "wall_s")
    return rows
