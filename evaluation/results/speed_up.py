"""
How many times fewer steps one falling curve needs than another for the same value.

The factor compares the steps that two curves need for the same figure: interpolated between measured points, linear in
the figure and in the logarithm of the steps. A level that a curve does not reach has no factor, and one that it has
passed at its first point has only a bound; both are said.
"""

from __future__ import annotations

import math
from typing import Any


def steps_to_reach(steps: list[float], values: list[float], level: float) -> tuple[float | None, bool]:
    """Steps after which a falling curve first is at `level`.

    Returns:
        `(steps, exact)`; `(first steps, False)` if the first point is below `level` already, `(None, False)` if no
        point is.
    """
    if values[0] < level:
        return steps[0], False
    for index, value in enumerate(values):
        if value > level:
            continue
        if index == 0 or value == level:
            return steps[index], True
        share = (values[index - 1] - level) / (values[index - 1] - value)
        start, end = math.log(steps[index - 1]), math.log(steps[index])
        return math.exp(start + share * (end - start)), True
    return None, False


def speed_up(curve: list[dict[str, Any]], level: float, baseline_steps: float) -> dict[str, Any]:
    """Factor by which `curve` is faster to `level` than the `baseline_steps` of another curve.

    Returns:
        `reached`, and where it is: `steps`, `factor`, `at_least` (the curve was below the level at its first point)
        and `factor_range`, the factors if the whole curve lay at the upper or lower end of its intervals (`None` where
        that end does not reach the level), and whether each is a bound, `factor_range_at_least`.
    """
    steps, values = [point["steps"] for point in curve], [point["value"] for point in curve]
    needed, exact = steps_to_reach(steps, values, level)
    if needed is None:
        return {"reached": False, "lowest": min(values)}
    result: dict[str, Any] = {
        "reached": True,
        "steps": needed,
        "factor": baseline_steps / needed,
        "at_least": not exact,
    }
    if all("interval" in point for point in curve):
        ends, bounds = [], []
        for sign in (1, -1):
            shifted = [point["value"] + sign * point["interval"] for point in curve]
            end, is_exact = steps_to_reach(steps, shifted, level)
            ends.append(None if end is None else baseline_steps / end)
            bounds.append(end is not None and not is_exact)
        result["factor_range"], result["factor_range_at_least"] = ends, bounds
    return result


def compare_curves(curves: dict[str, list[dict[str, Any]]], baseline: str) -> list[dict[str, Any]]:
    """Speed-up of every curve over `baseline` at each value that the baseline reaches for the first time.

    Returns:
        Per level `level`, `baseline_steps` and `curves` (`{name: speed_up}`), the last one being the baseline's best.
    """
    levels, lowest = [], math.inf
    for point in curves[baseline]:
        if point["value"] < lowest:
            lowest = point["value"]
            levels.append({"level": lowest, "baseline_steps": point["steps"]})
    for entry in levels:
        entry["curves"] = {
            name: speed_up(curve, entry["level"], entry["baseline_steps"])
            for name, curve in curves.items()
            if name != baseline
        }
    return levels


def describe_speed_up(name: str, outcome: dict[str, Any], level: float) -> str:
    """One sentence about a speed-up, in words that do not promise more than was measured."""
    if not outcome["reached"]:
        return f"{name} does not reach {level:.4g} (its lowest is {outcome['lowest']:.4g})"
    text = f"{name} reaches {level:.4g} after {outcome['steps']:.0f} steps: "
    text += f"{'at least ' if outcome['at_least'] else ''}{outcome['factor']:.2f}x"
    ends = outcome.get("factor_range")
    if ends:
        bounds = outcome.get("factor_range_at_least", [False, False])
        slow, fast = (
            "not reached" if end is None else f"{'at least ' if is_bound else ''}{end:.2f}x"
            for end, is_bound in zip(ends, bounds, strict=True)
        )
        text += f" (at the ends of its intervals: {slow} and {fast})"
    return text
