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

    Records of a study (docs/studies.md) have a seed. Their differences are taken seed by seed, with t intervals over
    seeds, and are significant if Holm's correction over all differences in the table says so; each comes with the
    smallest difference that this number of seeds would have shown with 80 % power.
    """

    group: ClassVar[str] = "Comparison"

    results: list[str] = option(
        [],
        "Result files or folders of them, one for each subject, each optionally with a name; records of a study are"
        " named after their arms.",
        metavar="[NAME=]PATH",
    )
    config: Path | None = option(
        None, "YAML file that describes a complete comparison; see docs/evaluation.md.", metavar="FILE"
    )
    figures: list[str] = option(
        [],
        "Names of the figures to compare, such as gFD-efficientnet-lite0; all if unset. Over several seeds, fewer"
        " comparisons need less correction.",
        metavar="NAME",
    )
    title: str = option("Comparison", "Heading of the page.")
    output: Path = option(MISSING, "Folder for comparison.json and comparison.html.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.results) == bool(self.config):
            raise InputError("pass either --results, to merge results, or --config, to run a comparison")
