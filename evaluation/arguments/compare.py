"""Options of `compare`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError


@dataclass
class CompareArguments(Arguments):
    """
    One table and one page from the results of several tokenizers or generators, and which differences are significant.

    Either merges existing results (--results), or runs the comparison that a YAML file describes (--config), skipping
    what is already measured. A difference is significant at 95 % if its interval excludes zero; of twenty such rows,
    one is expected to be significant by chance. Intervals reflect the choice of images only: whether the order would
    be the same with another training seed, only more runs can tell.
    """

    group: ClassVar[str] = "Comparison"

    results: list[str] = option(
        [],
        "Result files or folders of them, one for each subject, each optionally with a name.",
        metavar="[NAME=]PATH",
    )
    config: Path | None = option(
        None, "YAML file that describes a complete comparison; see docs/evaluation.md.", metavar="FILE"
    )
    title: str = option("Comparison", "Heading of the page.")
    output: Path = option(MISSING, "Folder for comparison.json and comparison.html.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.results) == bool(self.config):
            raise InputError("pass either --results, to merge results, or --config, to run a comparison")
