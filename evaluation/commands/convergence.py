"""How many DiT steps does each tokenizer need for the same quality?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.figure import Figure

from ..arguments.convergence import ConvergenceArguments
from ..report.page import build_report
from ..results.kinds.convergence import ConvergenceResult
from ..results.kinds.generation import GenerationResult, SampleSet, distance_figure
from ..results.provenance import provenance
from ..results.reading import read_result
from ..results.speed_up import compare_curves
from .measured_samples import measure_pipeline


def build_convergence(
    points: Mapping[str, Mapping[int, GenerationResult]],
    baseline: str,
    figure_name: str | None = None,
    **settings: Any,
) -> ConvergenceResult:
    """Curves and speed-ups from `{name: {steps: result}}`; `settings` are those of [`provenance`].

    Raises:
        InputError: If the figures of two points differ in name, number of images, reference or feature weights.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    conditions: dict[str, Any] = {}
    for name, of_curve in points.items():
        for steps, result in sorted(of_curve.items()):
            figure = distance_figure(_set_of(result, name).figures, figure_name)
            if figure.better == "higher":
                raise InputError(
                    f"--figure {figure.name} is better when higher, and curves are compared where they fall; choose a "
                    "distance, such as gFD or gKID"
                )
            found = _conditions(figure, result)
            conditions = conditions or found
            differing = [f"{key} {found[key]} and {conditions[key]}" for key in found if found[key] != conditions[key]]
            if differing:
                raise InputError(f"{result.path} cannot be compared with the other points: {'; '.join(differing)}")
            point = {"steps": steps, "value": figure.value, "source": str(result.path)}
            interval = {} if figure.interval is None else {"interval": figure.interval}
            curves.setdefault(name, []).append(point | interval)
    return ConvergenceResult(
        figure=conditions["figure"],
        samples=conditions["samples"],
        baseline=baseline,
        curves=curves,
        levels=compare_curves(curves, baseline),
        **provenance(**settings),
    )


def _set_of(result: GenerationResult, curve: str) -> SampleSet:
    """The set that a point of `curve` is: the only one, or that of the same name."""
    named = [each for each in result.sets if each.name == curve]
    if len(result.sets) > 1 and len(named) != 1:
        names = ", ".join(each.name for each in result.sets)
        raise InputError(
            f"{result.path} holds several sets of samples ({names}), and none is called {curve} like the curve; give "
            "the curve the name of one"
        )
    return named[0] if named else result.sets[0]


def _conditions(figure: Figure, result: GenerationResult) -> dict[str, Any]:
    return {
        "figure": figure.name,
        "samples": figure.samples,
        "reference images": figure.reference_images,
        "reference": result.reference.get("fingerprint") or result.reference["spec"],
        "feature weights": (figure.extractor or {}).get("weights_sha256"),
        "held-out images": figure.details.get("heldout_fingerprint"),
    }


def resolve_point(path: str, folder: Path, name: str, arguments: ConvergenceArguments) -> GenerationResult:
    """The result of a point, drawn and measured first if `path` is a pipeline."""
    given = Path(path)
    for candidate in (given, given / "generation.json", given / "results" / "generation.json"):
        if candidate.is_file():
            return read_result(candidate, GenerationResult)
    if not (given / "model_index.json").is_file():
        raise InputError(f"{path} is neither a generation.json nor a pipeline folder (no model_index.json)")
    return measure_pipeline(path, folder, name, arguments, arguments)


def curve_folder(name: str) -> str:
    """Folder of a curve that may be called anything; it does not depend on the other curves or their order."""
    readable = re.sub("[^A-Za-z0-9]+", "-", name)[:40].strip("-")
    return f"curve-{readable}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def run(arguments: ConvergenceArguments) -> ConvergenceResult:
    """
    Draws and measures every point that is not done, and compares the curves.

    Raises:
        InputError: If a point cannot be used, or points cannot be compared.
    """
    state, curves = arguments.process_state(), arguments.curves()
    points: dict[str, dict[int, GenerationResult]] = {}
    for name, of_curve in curves.items():
        folder = arguments.output / curve_folder(name)
        points[name] = {
            steps: resolve_point(path, folder / str(steps), f"{name} {steps}", arguments)
            for steps, path in of_curve.items()
        }
    baseline = arguments.baseline or next(iter(curves))
    result = build_convergence(points, baseline, arguments.figure, seed=arguments.seed)
    if state.is_main_process:
        page = build_report([result], title="Convergence of the diffusion transformer")
        result.files["convergence.html"] = page
    return result
