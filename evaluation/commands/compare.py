"""One table and one page from the results of several tokenizers or generators, and which differences mean something.

Either merges results that are there (`--results NAME=PATH ...`, each a result file or a folder of them), or runs a
whole comparison from a YAML file (`--config`), skipping what is done. A difference is called larger than its interval
if zero lies outside its 95 % interval; with twenty such rows one is expected to be larger by chance. Intervals speak
of the choice of images: that two tokenizers would keep their order with another training seed, only more runs can say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json, write_text

from ..results.figure_differences import comparison_table
from ..results.provenance import provenance
from .comparison_plan import read_plan, run_plan
from .convergence import build_convergence, describe_speed_up
from .named_paths import parse_named_paths
from .report import build_report, collect_results


def equal_budgets(curves: dict[str, dict[int, Path]]) -> dict[str, int]:
    """DiT steps at which generators are set side by side: the most that all have, else each one's own most."""
    common = set.intersection(*(set(points) for points in curves.values())) if curves else set()
    return {name: max(common or points) for name, points in curves.items()}


def named_results(named: dict[str, list[Path]], dit_steps: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """All results below the paths of each name, each with its `subject`.

    Args:
        dit_steps: Per name the steps its generator was trained for; figures of different steps are not subtracted.
    """
    return [
        {**result, "subject": name}
        | ({"dit_steps": (dit_steps or {}).get(name)} if result["kind"] == "generation" else {})
        for name, paths in named.items()
        for result in collect_results(paths)
        if result["kind"] in ("reconstruction", "generation", "probing", "latents")
    ]


def describe_difference(row: dict[str, Any], pair: dict[str, Any]) -> str:
    """One line about one difference."""
    text = f"{row['name']}: {pair['first']} - {pair['second']} = {pair['difference']:.4g}"
    if pair["larger"] is None:
        return f"{text}, no interval known"
    verdict = f"{pair['better']} is better" if pair["larger"] else "not larger than its interval"
    return f"{text} ± {pair['interval']:.2g}, {verdict}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", nargs="+", metavar="[NAME=]PATH", help="result files or folders, one name for each subject"
    )
    parser.add_argument("--config", type=Path, help="YAML file of a whole comparison (see docs/evaluation.md)")
    parser.add_argument("--title", default="Comparison", help="heading of the page (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for comparison.json and comparison.html")


def run(args: argparse.Namespace) -> int:
    if bool(args.results) == bool(args.config):
        raise InputError("pass either --results, to merge results, or --config, to run a comparison")
    convergence, settings, budgets = None, {}, {}
    if args.config:
        plan = read_plan(args.config)
        state = PartialState(cpu=plan.device == "cpu")
        done = run_plan(plan, args.output)
        state.wait_for_everyone()
        settings = {"config": args.config, "seed": plan.seed, "ranks": state.num_processes}
        curves = {name: entry["generation"] for name, entry in done.items() if entry["generation"]}
        budgets = equal_budgets(curves)
        drawn = {name: [points[budgets[name]]] for name, points in curves.items()}
        paths = {name: [*entry["results"], *drawn.get(name, [])] for name, entry in done.items()}
        if any(len(points) > 1 for points in curves.values()):
            convergence = build_convergence(curves, next(iter(curves)), None)
    else:
        state = PartialState()
        paths = {name: [Path(path)] for name, path in parse_named_paths(args.results).items()}
    if not state.is_main_process:
        return 0
    if len(paths) < 2 and not args.config:
        raise InputError(f"a comparison needs at least two names, got {', '.join(paths)}")
    results = named_results(paths, budgets)
    table = comparison_table(results)
    comparison = {
        "kind": "comparison",
        "subjects": list(paths),
        "sources": {name: [str(path) for path in parts] for name, parts in paths.items()},
        "rows": table,
        **provenance(**settings),
    }
    write_json(args.output / "comparison.json", comparison)
    shown = [{**comparison, "folder": args.output}]
    if convergence:
        convergence |= provenance(**settings)
        write_json(args.output / "convergence.json", convergence)
        shown.append({**convergence, "folder": args.output})
    html = build_report([*shown, *results], title=args.title)
    write_text(args.output / "comparison.html", html)
    for row in table:
        for pair in row["differences"]:
            print(describe_difference(row, pair))
    for level in convergence["levels"][-1:] if convergence else []:
        for name, outcome in level["curves"].items():
            print(describe_speed_up(name, outcome, level["level"]))
    print(args.output / "comparison.html")
    return 0
