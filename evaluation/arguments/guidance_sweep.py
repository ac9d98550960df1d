"""Options of `guidance_sweep`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError

from .sampling import GUIDERS, GuidanceArguments, SamplingArguments

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
    guider: str | None = option(
        None, "Class of diffusers.guiders that guides at every point, as in generate.", choices=GUIDERS
    )
    guider_options: dict[str, Any] = option({}, "Arguments of --guider as JSON, as in generate.", needs="guider")
    scales: list[float] = option([1.0, 1.5, 2.0, 3.0], "Guidance scales; 1 means no guidance.", at_least=1)
    intervals: list[str] = option(
        ["0:1"], "Parts of the trajectory that are guided, between 0 and 1.", metavar="FROM:TO"
    )
    output: Path = option(MISSING, "Folder for guidance_sweep.json, a page and the samples.", metavar="FOLDER")


@dataclass
class GuidanceSweepArguments(SweepArguments, SamplingArguments):
    """
    How do samples change with guidance? Generates and measures samples at every scale and interval of
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
        for name in ("start", "stop"):
            if name in self.guider_options:
                raise InputError(f"--guider_options has {name!r}, which --intervals says too; omit it")
        for scale, interval in self.points():
            self.guidance_at(scale, interval)

    def points(self) -> list[tuple[float, tuple[float, float]]]:
        """Every `(scale, interval)` to measure."""
        return sweep_points(self.scales, [parse_interval(text) for text in self.intervals])

    def guidance_at(self, scale: float, interval: tuple[float, float]) -> GuidanceArguments:
        """How the samples of one point are guided."""
        if scale == 1:
            return GuidanceArguments(guidance_scale=1.0)
        return GuidanceArguments(
            guidance_scale=scale,
            # Without an interval, pipelines that know none (diffusers' DiTPipeline) can be swept too.
            guidance_interval=None if interval == WHOLE else interval,
            guider=self.guider,
            guider_options=self.guider_options,
        )


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
