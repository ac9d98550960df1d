"""How many DiT steps does each tokenizer need for the same quality? gFD against steps, and the factor between curves.

A curve is a list of `STEPS=PATH`, where PATH is a pipeline folder (samples are drawn and measured) or a
generation.json (or a folder that holds one). The factor compares the steps that two curves need for the same figure:
interpolated between measured points, linear in the figure and in the logarithm of the steps. A level that a curve does
not reach has no factor, and one that it has passed at its first point has only a bound; both are said.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json, write_text

from ..results.provenance import provenance
from .measured_samples import add_sampling_arguments, distance_figure, measure_pipeline, plan_of, read_first_set


def steps_to_reach(steps: list[float], values: list[float], level: float) -> tuple[float | None, bool]:
    """Steps after which a falling curve first is at `level`.

    Returns:
        `(steps, exact)`; `(first steps, False)` if the first point is below `level` already, `(None, False)` if no
        point is.
    """
    if values[0] < level:
        return steps[0], False
    for index, value in enumerate(values):
        if value > level:
            continue
        if index == 0 or value == level:
            return steps[index], True
        share = (values[index - 1] - level) / (values[index - 1] - value)
        start, end = math.log(steps[index - 1]), math.log(steps[index])
        return math.exp(start + share * (end - start)), True
    return None, False


def speed_up(curve: list[dict[str, Any]], level: float, baseline_steps: float) -> dict[str, Any]:
    """Factor by which `curve` is faster to `level` than the `baseline_steps` of another curve.

    Returns:
        `reached`, and where it is: `steps`, `factor`, `at_least` (the curve was below the level at its first point)
        and `factor_range`, the factors if the whole curve lay at the upper or lower end of its intervals (`None` where
        that end does not reach the level).
    """
    steps, values = [point["steps"] for point in curve], [point["value"] for point in curve]
    needed, exact = steps_to_reach(steps, values, level)
    if needed is None:
        return {"reached": False, "lowest": min(values)}
    result = {"reached": True, "steps": needed, "factor": baseline_steps / needed, "at_least": not exact}
    if all("interval" in point for point in curve):
        ends = []
        for sign in (1, -1):
            shifted = [point["value"] + sign * point["interval"] for point in curve]
            end, _ = steps_to_reach(steps, shifted, level)
            ends.append(None if end is None else baseline_steps / end)
        result["factor_range"] = ends
    return result


def compare_curves(curves: dict[str, list[dict[str, Any]]], baseline: str) -> list[dict[str, Any]]:
    """Speed-up of every curve over `baseline` at each value that the baseline reaches for the first time.

    Returns:
        Per level `level`, `baseline_steps` and `curves` (`{name: speed_up}`), the last one being the baseline's best.
    """
    levels, lowest = [], math.inf
    for point in curves[baseline]:
        if point["value"] < lowest:
            lowest = point["value"]
            levels.append({"level": lowest, "baseline_steps": point["steps"]})
    for entry in levels:
        entry["curves"] = {
            name: speed_up(curve, entry["level"], entry["baseline_steps"])
            for name, curve in curves.items()
            if name != baseline
        }
    return levels


def build_convergence(entries: dict[str, dict[int, Path]], baseline: str, figure_name: str | None) -> dict[str, Any]:
    """Curves and speed-ups from `{name: {steps: generation.json}}`.

    Raises:
        InputError: If the figures of two points differ in name, number of images, reference or feature weights.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    conditions: dict[str, Any] | None = None
    for name, points in entries.items():
        for steps, path in sorted(points.items()):
            entry = read_first_set(path)
            figure = distance_figure(entry["figures"], figure_name)
            found = {
                "figure": figure["name"],
                "samples": figure["samples"],
                "reference images": figure.get("reference_images"),
                "reference": entry["reference"].get("fingerprint") or entry["reference"]["spec"],
                "feature weights": figure.get("extractor", {}).get("weights_sha256"),
            }
            conditions = conditions or found
            differing = [f"{key} {found[key]} and {conditions[key]}" for key in found if found[key] != conditions[key]]
            if differing:
                raise InputError(f"{path} cannot be compared with the other points: {'; '.join(differing)}")
            point = {"steps": steps, "value": figure["value"], "source": str(path)}
            curves.setdefault(name, []).append(
                point | ({"interval": figure["interval"]} if "interval" in figure else {})
            )
    return {
        "kind": "convergence",
        "figure": conditions["figure"],
        "samples": conditions["samples"],
        "baseline": baseline,
        "curves": curves,
        "levels": compare_curves(curves, baseline),
    }


def describe_speed_up(name: str, outcome: dict[str, Any], level: float) -> str:
    """One sentence about a speed-up, in words that do not promise more than was measured."""
    if not outcome["reached"]:
        return f"{name} does not reach {level:.4g} (its lowest is {outcome['lowest']:.4g})"
    text = f"{name} reaches {level:.4g} after {outcome['steps']:.0f} steps: "
    text += f"{'at least ' if outcome['at_least'] else ''}{outcome['factor']:.2f}x"
    ends = outcome.get("factor_range")
    if ends:
        slow, fast = ("not reached" if end is None else f"{end:.2f}x" for end in ends)
        text += f" (at the ends of its intervals: {slow} and {fast})"
    return text


def resolve_point(path: str, folder: Path, name: str, args: argparse.Namespace) -> Path:
    """The generation.json of a point, drawn and measured first if `path` is a pipeline."""
    given = Path(path)
    if given.is_file():
        return given
    for candidate in (given / "generation.json", given / "results" / "generation.json"):
        if candidate.is_file():
            return candidate
    if not (given / "model_index.json").is_file():
        raise InputError(f"{path} is neither a generation.json nor a pipeline folder (no model_index.json)")
    if not args.reference:
        raise InputError(f"{path} is a pipeline: pass --reference, the real images to compare its samples with")
    plan = plan_of(args, guidance_scale=args.guidance_scale)
    return measure_pipeline(path, folder, name, plan)


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--curve",
        action="append",
        nargs="+",
        required=True,
        metavar=("NAME", "STEPS=PATH"),
        help="a tokenizer and its points; repeat for each tokenizer",
    )
    parser.add_argument("--baseline", help="curve that the factors refer to (default: the first)")
    parser.add_argument("--figure", help="name of the figure to compare (default: the gFD or gFID of the files)")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="of drawn samples (default: %(default)s)")
    add_sampling_arguments(parser, reference_required=False)
    parser.add_argument("--output", type=Path, required=True, help="folder for convergence.json and .html, samples")


def run(args: argparse.Namespace) -> int:
    from .report import build_report

    parsed = [parse_curve(words) for words in args.curve]
    curves = dict(parsed)
    if len(curves) < len(parsed):
        raise InputError(f"two curves have one name: {', '.join(name for name, _ in parsed)}")
    baseline = args.baseline or next(iter(curves))
    if baseline not in curves:
        raise InputError(f"--baseline {baseline!r} is no curve; there are {', '.join(curves)}")
    state = PartialState(cpu=args.device == "cpu")
    entries = {
        name: {
            steps: resolve_point(path, args.output / f"curve-{place}" / str(steps), f"{name} {steps}", args)
            for steps, path in points.items()
        }
        for place, (name, points) in enumerate(curves.items())
    }
    state.wait_for_everyone()
    if not state.is_main_process:
        return 0
    result = {**build_convergence(entries, baseline, args.figure), **provenance(seed=args.seed)}
    write_json(args.output / "convergence.json", result)
    html = build_report([{**result, "folder": args.output}], title="Convergence of the diffusion transformer")
    write_text(args.output / "convergence.html", html)
    for name, curve in result["curves"].items():
        print(f"{name}: " + ", ".join(f"{point['steps']} {point['value']:.4g}" for point in curve))
    last = result["levels"][-1]
    print(f"level {last['level']:.4g}, {baseline} after {last['baseline_steps']} steps:")
    for name, outcome in last["curves"].items():
        print("  " + describe_speed_up(name, outcome, last["level"]))
    return 0
