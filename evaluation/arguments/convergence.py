"""Options of `convergence`."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError

from .sampling import SamplingArguments


@dataclass
class CurveArguments(Arguments):
    """What is compared."""

    group: ClassVar[str] = "Curves"

    curve: list[list[str]] = option(
        MISSING,
        "A tokenizer's name and its points; given once for each tokenizer.",
        metavar=("NAME", "STEPS=PATH"),
        repeat=True,
    )
    baseline: str | None = option(None, "Curve that the factors refer to; the first if unset.", metavar="NAME")
    figure: str | None = option(
        None, "Name of the figure to compare; the gFD or gFID of the results if unset.", metavar="NAME"
    )
    guidance_scale: float = option(1.0, "Scale of classifier-free guidance for drawn samples; 1 is none.")
    output: Path = option(MISSING, "Folder for convergence.json, a page and drawn samples.", metavar="FOLDER")

    def curves(self) -> dict[str, dict[int, str]]:
        """`{tokenizer: {steps: path}}`."""
        parsed = [parse_curve(words) for words in self.curve]
        curves = dict(parsed)
        if len(curves) < len(parsed):
            raise InputError(f"two curves have one name: {', '.join(name for name, _ in parsed)}")
        if self.baseline not in (None, *curves):
            raise InputError(f"--baseline {self.baseline!r} is no curve; there are {', '.join(curves)}")
        return curves


@dataclass
class ConvergenceArguments(CurveArguments, SamplingArguments):
    """
    How many DiT steps does each tokenizer need for the same quality? gFD against steps, and the factor between curves.

    A curve is a list of STEPS=PATH, where PATH is a pipeline folder (samples are drawn and measured) or a
    generation.json (or a folder that holds one). The factor compares the steps that two curves need for the same
    figure: interpolated between measured points, linear in the figure and in the logarithm of the steps. A level that
    a curve does not reach has no factor, and one that it has passed at its first point has only a bound; both are
    said.
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
