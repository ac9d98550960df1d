"""One self-contained HTML file from what the other commands measured."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_text

from ..report.page import DEFAULT_TITLE, build_report
from ..report.training_curves import read_scalars
from ..results.reading import collect_results
from .named_paths import parse_named_paths


@dataclass
class ReportArguments(Arguments):
    """
    One self-contained HTML file from what the other commands measured: pictures, curves, figures, commands and
    attributions. It can be mailed, archived and opened without a network.
    """

    group: ClassVar[str] = "Report"

    results: list[Path] = option(MISSING, "Result files, or folders that are searched for them.", metavar="PATH")
    runs: list[str] = option(
        [], "Training runs whose TensorBoard curves are shown, which may be named.", metavar="[NAME=]FOLDER"
    )
    title: str = option(DEFAULT_TITLE, "Heading of the page.")
    note: str = option("", "A paragraph under the heading.")
    commands: Path | None = option(
        None, "Text file of commands, one in a line, that are listed before the measuring ones.", metavar="FILE"
    )
    credit: list[str] = option([], "An attribution besides those of the results; repeatable.", repeat=True)
    output: Path = option(Path("report.html"), "File of the page.", metavar="FILE")


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
        commands = [line for line in arguments.commands.read_text().splitlines() if line.strip()]
    results = collect_results(arguments.results)
    runs = {name: read_scalars(path) for name, path in parse_named_paths(arguments.runs).items()}
    html = build_report(results, runs, arguments.title, arguments.note, commands, arguments.credit)
    return ReportPage(html, arguments.output)
