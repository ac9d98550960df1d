"""Options of `guidance_sweep`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError

from .sampling import SamplingArguments

WHOLE = (0.0, 1.0)


@dataclass
class SweepArguments(Arguments):
    """The settings of guidance to try."""

    group: ClassVar[str] = "Sweep"

    pipeline: str = option(MISSING, "Pipeline folder or Hub name.", metavar="PATH")
    guidance_transformer: str | None = option(
        None,
        "Weaker transformer that the scales lead away from (autoguidance), as in generate.",
        metavar="FOLDER",
    )
    scales: list[float] = option([1.0, 1.5, 2.0, 3.0], "Guidance scales; 1 means no guidance.")
    intervals: list[str] = option(
        ["0:1"], "Parts of the trajectory that are guided, between 0 and 1.", metavar="FROM:TO"
    )
    output: Path = option(MISSING, "Folder for guidance_sweep.json, a page and the samples.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("scales", all(scale >= 1 for scale in self.scales), "at least 1 each; 1 means no guidance")


@dataclass
class GuidanceSweepArguments(SweepArguments, SamplingArguments):
    """
    How do samples change with classifier-free guidance? Generates and measures samples at every scale and interval of
    a grid.

    An interrupted sweep resumes: images already generated and points already measured are kept. The best point of a
    sweep is selected by the very figure that is reported for it, which is optimistic; confirm it with another seed
    before publishing it.
    """

    reference: str = option(
        MISSING, "Real images to compare with: a data source, a folder or an ADM .npz.", metavar="SOURCE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.points()

    def points(self) -> list[tuple[float, tuple[float, float]]]:
        """Every `(scale, interval)` to measure."""
        return sweep_points(self.scales, [parse_interval(text) for text in self.intervals])


def sweep_points(scales: list[float], intervals: list[tuple[float, float]]) -> list[tuple[float, tuple[float, float]]]:
    """Every `(scale, interval)`, each once; without guidance (scale 1) there is only the full interval."""
    points = [(scale, WHOLE if scale == 1 else interval) for interval in intervals for scale in sorted(scales)]
    return list(dict.fromkeys(points))


def parse_interval(text: str) -> tuple[float, float]:
    """`FROM:TO`, a part of the trajectory between 0 and 1."""
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"--intervals {text!r} is not FROM:TO, for example 0.1:0.8") from error
    if not 0 <= start < end <= 1:
        raise InputError(f"--intervals {text!r}: expected 0 <= FROM < TO <= 1")
    return start, end
