"""Options of `report`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option


@dataclass
class ReportArguments(Arguments):
    """
    One self-contained HTML file from what the other commands measured: pictures, curves, figures, commands and
    attributions. It can be mailed, archived and opened offline.
    """

    group: ClassVar[str] = "Report"

    results: list[Path] = option(MISSING, "Result files, or folders that are searched for them.", metavar="PATH")
    runs: list[str] = option(
        [], "Training runs whose TensorBoard curves are shown, each optionally with a name.", metavar="[NAME=]FOLDER"
    )
    title: str = option("TC-AE: tokenizer and generator", "Heading of the page.")
    note: str = option("", "A paragraph under the heading.")
    commands: Path | None = option(
        None, "Text file with one command per line, listed before the evaluation commands.", metavar="FILE"
    )
    credit: list[str] = option([], "Attribution to add to those of the results; repeatable.", repeat=True)
    output: Path = option(Path("report.html"), "HTML file to write.", metavar="FILE")
