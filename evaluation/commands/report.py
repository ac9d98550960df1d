"""One self-contained HTML file from what the other commands measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_text

from ..arguments.named_paths import parse_named_paths
from ..arguments.report import ReportArguments
from ..report.page import build_report
from ..report.training_curves import read_scalars
from ..results.reading import collect_results


@dataclass
class ReportPage:
    """A report: its HTML, and the file it goes to."""

    html: str
    path: Path

    def save(self, output: Path) -> None:
        write_text(output, self.html)

    def describe(self) -> list[str]:
        return [str(self.path)]


def run(arguments: ReportArguments) -> ReportPage:
    """
    Builds a report.

    Raises:
        InputError: If a result, a run or a picture cannot be read.
    """
    commands = []
    if arguments.commands:
        if not arguments.commands.is_file():
            raise InputError(f"file of commands {arguments.commands} does not exist")
        try:
            commands = [line for line in arguments.commands.read_text().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"file of commands {arguments.commands} is no text: {error}") from error
    results = collect_results(arguments.results)
    runs = {name: read_scalars(path) for name, path in parse_named_paths(arguments.runs).items()}
    html = build_report(results, runs, arguments.title, arguments.note, commands, arguments.credit)
    return ReportPage(html, arguments.output)
