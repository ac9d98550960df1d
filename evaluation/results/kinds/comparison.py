"""Several subjects side by side, and which differences are significant."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...report.charts import interval_chart
from ..figure_text import ARROWS, describe_difference, format_number
from ..result import UNSTORED, Card, Result
from .convergence import ConvergenceResult

PAGE = "comparison.html"


@dataclass(kw_only=True)
class ComparisonResult(Result):
    """
    Result of `compare`.

    Args:
        subjects (`list[str]`): What is compared.
        sources (`dict[str, list[str]]`): The results of each.
        rows (`list[dict]`): See [`figure_differences.comparison_table`].
        convergence ([`ConvergenceResult`], *optional*): Of the generators, stored beside it.
    """

    kind: ClassVar[str] = "comparison"
    template: ClassVar[str] = "comparison.html"
    is_summary: ClassVar[bool] = True

    subjects: list[str]
    sources: dict[str, list[str]]
    rows: list[dict[str, Any]]
    convergence: ConvergenceResult | None = field(default=None, metadata=UNSTORED)

    def save(self, output: str | Path) -> None:
        super().save(output)
        if self.convergence is not None:
            self.convergence.save(self.folder)

    def _pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(row, pair) for row in self.rows for pair in row["differences"]]

    def describe(self) -> list[str]:
        lines = [describe_difference(row, pair) for row, pair in self._pairs()]
        lines += [describe_difference(row, pair) for row in self.rows for pair in row["differences_from_linear"]]
        if self.convergence is not None:
            lines += self.convergence.describe_speed_ups()
        return [*lines, str(self.folder / PAGE)]

    def cards(self) -> list[Card]:
        larger = [pair["larger"] for _, pair in self._pairs()]
        note = f"between {', '.join(self.subjects)}; {larger.count(None)} have no interval"
        label = "differences are significant at 95 %"
        return [Card(f"{larger.count(True)} of {len(larger)}", label, note)]

    def shown(self) -> dict[str, Any]:
        return {"charts": [_row_chart(row) for row in self.rows if len(row["values"]) > 1]}


def _row_chart(row: dict[str, Any]) -> dict[str, str]:
    baseline = row.get("baseline")
    note = f" ({baseline['name']}: {format_number(baseline['value'])})" if baseline else ""
    values = {name: (entry["value"], entry.get("interval")) for name, entry in row["values"].items()}
    for subject, linear in row["linear"].items():
        dot = (linear["value"], linear.get("interval"))
        # Subjects with equal latents share one, unless it was fitted to other images.
        shared = values.setdefault(linear["name"], dot) == dot
        if not shared:
            values[f"{linear['name']} of {subject}"] = dot
    return {"title": f"{row['name']} {ARROWS[row['better']]}{note}", "svg": interval_chart(values)}
