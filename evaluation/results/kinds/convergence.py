"""How many DiT steps each tokenizer needs for the same quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...report.charts import line_chart
from ..figure_text import format_number
from ..result import Card, Result
from ..speed_up import describe_speed_up


@dataclass(kw_only=True)
class ConvergenceResult(Result):
    """
    Result of `convergence`.

    Args:
        figure (`str`): Name of what is compared. samples (`int`): Images at every point.
        baseline (`str`): The curve that factors refer to.
        curves (`dict[str, list[dict]]`): Points with `steps`, `value`, `source` and, where known, `interval`.
        levels (`list[dict]`): See [`speed_up.compare_curves`].
    """

    kind: ClassVar[str] = "convergence"
    template: ClassVar[str] = "convergence.html"
    is_summary: ClassVar[bool] = True

    figure: str
    samples: int
    baseline: str
    curves: dict[str, list[dict[str, Any]]]
    levels: list[dict[str, Any]]

    def describe(self) -> list[str]:
        lines = [
            f"{name}: " + ", ".join(f"{point['steps']} {point['value']:.4g}" for point in curve)
            for name, curve in self.curves.items()
        ]
        last = self.levels[-1]
        lines.append(f"level {last['level']:.4g}, {self.baseline} after {last['baseline_steps']} steps:")
        return [*lines, *(f"  {line}" for line in self.describe_speed_ups())]

    def describe_speed_ups(self) -> list[str]:
        """A sentence for each curve at the baseline's best."""
        last = self.levels[-1]
        return [describe_speed_up(name, outcome, last["level"]) for name, outcome in last["curves"].items()]

    def cards(self) -> list[Card]:
        last, cards = self.levels[-1], []
        for name, outcome in last["curves"].items():
            value = "not reached"
            if outcome["reached"]:
                value = f"{'≥ ' if outcome['at_least'] else ''}{outcome['factor']:.1f}×"
            note = f"to {self.figure} {format_number(last['level'])}"
            cards.append(Card(value, f"{name}: fewer DiT steps than {self.baseline}", note))
        return cards

    def shown(self) -> dict[str, Any]:
        series = {
            name: ([point["steps"] for point in curve], [point["value"] for point in curve])
            for name, curve in self.curves.items()
        }
        widths = {name: [point.get("interval") for point in curve] for name, curve in self.curves.items()}
        return {"chart": line_chart(series, "DiT steps", widths)}
