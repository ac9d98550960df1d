"""Options of a study."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option


@dataclass
class StudyArguments(Arguments):
    """
    Train and measure every arm of a plan file with every seed, each by the commands of this package.

    Each arm and seed leaves one small JSON file in the folder results beside the plan. What has its file is not run
    again, and an interrupted study goes on where it was, also on another machine that has these files. Two processes
    of one thread each run side by side.
    """

    group: ClassVar[str] = "Study"

    plan: Path = option(MISSING, "YAML file of the study; see docs/studies.md.", positional=True)
    only: list[str] = option([], "Arms to run, by their names; all of them if unset.", metavar="ARM")
    seeds: list[int] = option(
        [], "Seeds to run, of those in the plan; all of them if unset.", metavar="SEED", at_least=0
    )
    page: bool = option(
        False, "Run nothing, and write results.md and its charts beside the plan, from the records that are there."
    )
    claims_page: Path | None = option(
        None,
        "Markdown page, in whose table claims --page then also lists the claims of all studies beside this one, each "
        "with its verdict.",
        metavar="PAGE",
    )
    processes: int = option(
        2, "Arms and seeds that run at the same time, in processes of one thread each.", at_least=1
    )
    work: Path | None = option(
        None,
        "Folder for models, samples and reports, which stay on this machine; runs/NAME OF THE PLAN'S FOLDER if unset.",
        metavar="FOLDER",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_default("only", "seeds", "processes", "work", unless=not self.page, omitted="with --page")
        self._require_default("claims_page", unless=self.page, omitted="unless --page is given")
