"""Builds the report: one HTML document with everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..results.figure_text import table_row
from ..results.provenance import command_line, describe_machine, library_versions
from ..results.result import Card, Result
from .training_curves import Curve, run_charts


def headline(results: Sequence[Result]) -> list[Card]:
    """The few numbers that a report opens with: those of summaries, where there are some."""
    # A summary's table says it for all subjects; cards of each would say it again, out of order.
    summaries = [result for result in results if result.is_summary]
    return [card for result in summaries or results for card in result.cards()]


def attributions(results: Sequence[Result]) -> list[str]:
    """Credits that the licences of the shown images ask for, each once."""
    credits = [result.measured_on().get("attribution") for result in results]
    return list(dict.fromkeys(credit for credit in credits if credit))


def build_report(
    results: Sequence[Result],
    runs: Mapping[str, Mapping[str, Curve]] | None = None,
    title: str = "Results",
    note: str = "",
    commands: Sequence[str] = (),
    credits: Sequence[str] = (),
) -> str:
    """The report as one HTML document.

    Args:
        results: In the order of their sections.
        runs: `{name: scalars}` from [`training_curves.read_scalars`].
        title, note: Heading, and a paragraph under it.
        commands: Commands to list before those of the results (training, for example).
        credits: Attributions to show besides those found in the results.

    Raises:
        InputError: If a picture of a result cannot be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: list[dict[str, Any]] = [{"result": result, "shown": result.shown()} for result in results]
    measured = [result.command for result in results if result.command]
    return environment.get_template("report.html").render(
        title=title,
        note=note,
        cards=headline(results),
        sections=[entry for entry in shown if entry["result"].template],
        tables=[entry for entry in shown if entry["result"].table_template],
        rows=[
            table_row(subject, figure)
            for result in results
            for subject, figures in result.figures_by_subject().items()
            for figure in figures
        ],
        runs={name: run_charts(scalars) for name, scalars in (runs or {}).items()},
        commands=list(dict.fromkeys([*commands, *measured, command_line()])),
        settings=[(result.kind, result.settings) for result in results if result.settings],
        credits=list(dict.fromkeys([*credits, *attributions(results)])),
        machine=next((result.machine for result in results if result.machine), None) or describe_machine(),
        versions=next((result.versions for result in results if result.versions), None) or library_versions(),
        date=max((result.date for result in results), default=""),
    )
