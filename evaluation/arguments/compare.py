"""Options of `compare`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError


@dataclass
class CompareArguments(Arguments):
    """
    One table and one page from the results of several tokenizers or generators, and which differences mean something.

    Either merges results that are there (--results), or runs a whole comparison from a YAML file (--config), skipping
    what is done. A difference is called larger than its interval if zero lies outside its 95 % interval; with twenty
    such rows one is expected to be larger by chance. Intervals speak of the choice of images: that two tokenizers
    would keep their order with another training seed, only more runs can say.
    """

    group: ClassVar[str] = "Comparison"

    results: list[str] = option(
        [], "Result files or folders of them, one for each subject, which may be named.", metavar="[NAME=]PATH"
    )
    config: Path | None = option(
        None, "YAML file of a whole comparison, as docs/evaluation.md describes it.", metavar="FILE"
    )
    title: str = option("Comparison", "Heading of the page.")
    output: Path = option(MISSING, "Folder for comparison.json and comparison.html.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.results) == bool(self.config):
            raise InputError("pass either --results, to merge results, or --config, to run a comparison")
