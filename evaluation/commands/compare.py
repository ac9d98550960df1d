"Several tokenizers or generators side by side, and which differences are significant."

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accelerate import PartialState

from tcae_diffusers.errors import InputError

from ..arguments.compare import CompareArguments
from ..arguments.named_paths import parse_named_paths
from ..report.page import build_report
from ..results.figure_differences import comparison_table
from ..results.kinds.comparison import PAGE, ComparisonResult
from ..results.kinds.convergence import ConvergenceResult
from ..results.kinds.study_unit import StudyUnitResult
from ..results.provenance import provenance
from ..results.reading import collect_results
from ..results.result import Result
from .comparison_plan import ComparisonPlan, MeasuredTokenizer, read_plan, run_plan
from .convergence import build_convergence


def run(arguments: CompareArguments) -> ComparisonResult:
    """
    Sets results side by side, measuring first what a plan asks for and is not done.

    Raises:
        InputError: If results or plan cannot be used, or a subject has two results for one figure.
    """
    if arguments.config:
        return _compare_plan(arguments, read_plan(arguments.config))
    subjects: dict[str, list[Result]] = {}
    for name, path in parse_named_paths(arguments.results).items():
        for result in collect_results([path]):
            # Records of a study know whose they are.
            subject = result.arm if isinstance(result, StudyUnitResult) else name
            subjects.setdefault(subject, []).append(result)
    if len(subjects) < 2:
        raise InputError(f"a comparison needs at least two names, got {', '.join(subjects)}")
    return _comparison(arguments, subjects, None, {})


def _compare_plan(arguments: CompareArguments, plan: ComparisonPlan) -> ComparisonResult:
    state = PartialState(cpu=plan.device == "cpu")
    measured = run_plan(plan, arguments.output)
    settings = {"config": arguments.config, "seed": plan.seed, "ranks": state.num_processes}
    curves = {name: tokenizer.generation for name, tokenizer in measured.items() if tokenizer.generation}
    convergence = None
    if any(len(points) > 1 for points in curves.values()):
        convergence = build_convergence(curves, next(iter(curves)), **settings)
    return _comparison(arguments, results_of_equal_budgets(measured), convergence, settings)


def equal_budgets(curves: Mapping[str, Mapping[int, Any]]) -> dict[str, int]:
    """DiT steps at which generators are set side by side: the most that all have, else each one's own most."""
    common = set.intersection(*(set(points) for points in curves.values())) if curves else set()
    return {name: max(common or points) for name, points in curves.items()}


def results_of_equal_budgets(measured: Mapping[str, MeasuredTokenizer]) -> dict[str, list[Result]]:
    """The results of each tokenizer, and of its generators the one that was trained for as long as the others'."""
    budgets = equal_budgets({name: entry.generation for name, entry in measured.items() if entry.generation})
    results: dict[str, list[Result]] = {}
    for name, entry in measured.items():
        results[name] = list(entry.results)
        if name in budgets:
            drawn = entry.generation[budgets[name]]
            # Figures after different numbers of steps are not subtracted.
            results[name].append(replace(drawn, conditions={"DiT steps": budgets[name]}))
    return results


def _comparison(
    arguments: CompareArguments,
    results: Mapping[str, list[Result]],
    convergence: ConvergenceResult | None,
    settings: Mapping[str, Any],
) -> ComparisonResult:
    for name, parts in results.items():
        if not any(result.is_comparable for result in parts):
            kinds = ", ".join(sorted({result.kind for result in parts})) or "nothing"
            raise InputError(f"--results {name} holds {kinds}, whose figures cannot be set side by side; see `report`")
    named = [
        replace(result, subject=name) for name, parts in results.items() for result in parts if result.is_comparable
    ]
    comparison = ComparisonResult(
        subjects=list(results),
        sources={
            name: [str(result.path) for result in parts if result.is_comparable] for name, parts in results.items()
        },
        rows=comparison_table(named, arguments.figures),
        convergence=convergence,
        **provenance(**settings),
    )
    if PartialState().is_main_process:
        summaries = [comparison] if convergence is None else [comparison, convergence]
        comparison.files[PAGE] = build_report([*summaries, *named], title=arguments.title)
    return comparison
