"""Options of `convergence`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError

from .sampling import GuidanceArguments, SamplingArguments


@dataclass
class CurveArguments(Arguments):
    """The curves to compare."""

    group: ClassVar[str] = "Curves"

    curve: list[list[str]] = option(
        MISSING,
        "Name of a tokenizer and its points; repeat the option for each tokenizer.",
        metavar=("NAME", "STEPS=PATH"),
        repeat=True,
    )
    baseline: str | None = option(
        None, "Curve against which speed-ups are computed; the first if unset.", metavar="NAME"
    )
    figure: str | None = option(
        None, "Name of the figure to compare; the gFD or gFID of the results if unset.", metavar="NAME"
    )
    output: Path = option(MISSING, "Folder for convergence.json, a page and the generated samples.", metavar="FOLDER")

    def curves(self) -> dict[str, dict[int, str]]:
        """`{tokenizer: {steps: path}}`."""
        parsed = [parse_curve(words) for words in self.curve]
        curves = dict(parsed)
        if len(curves) < len(parsed):
            raise InputError(f"curves must have different names, got {', '.join(name for name, _ in parsed)}")
        if self.baseline not in (None, *curves):
            raise InputError(f"--baseline {self.baseline!r} is not a curve; expected one of {', '.join(curves)}")
        return curves


@dataclass
class ConvergenceArguments(CurveArguments, GuidanceArguments, SamplingArguments):
    """
    How many DiT steps does each tokenizer need for the same quality? gFD against steps, and the speed-up between
    curves.

    A curve is a list of STEPS=PATH, where PATH is a pipeline folder (samples are generated and measured) or a
    generation.json (or a folder that holds one). The speed-up is the ratio of the steps that two curves need for the
    same figure, interpolated linearly between measured points in the figure and in the logarithm of the steps. A curve
    that does not reach the level has no speed-up, and one that is past it at its first point has only a lower bound;
    both cases are reported.
    """


def parse_curve(words: list[str]) -> tuple[str, dict[int, str]]:
    """`NAME STEPS=PATH [STEPS=PATH ...]`."""
    name, *pairs = words
    points: dict[int, str] = {}
    for pair in pairs:
        steps, separator, path = pair.partition("=")
        if not (separator and steps.isdigit() and int(steps) > 0):
            raise InputError(f"--curve {name}: {pair!r} is not STEPS=PATH, for example 20000=runs/dit/20000")
        if int(steps) in points:
            raise InputError(f"--curve {name}: two points at {steps} steps")
        points[int(steps)] = path
    if not points:
        raise InputError(f"--curve {name} has no points; expected NAME STEPS=PATH ...")
    return name, points
