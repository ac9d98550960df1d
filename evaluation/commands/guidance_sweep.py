"""How do samples change with classifier-free guidance? Draws and measures at every scale and interval of a grid.

An interrupted sweep goes on where it was: images that are drawn and points that are measured stay. The best point of a
sweep is chosen on the very figure that is then read off it, which flatters it; draw again with another seed before
publishing it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json, write_text

from ..results.provenance import provenance
from .measured_samples import (
    SamplingPlan,
    add_sampling_arguments,
    distance_figure,
    measure_pipeline,
    plan_of,
    read_first_set,
)

WHOLE = (0.0, 1.0)


def sweep_points(scales: list[float], intervals: list[tuple[float, float]]) -> list[tuple[float, tuple[float, float]]]:
    """Every `(scale, interval)`, each once; without guidance (scale 1) the interval does not matter and is whole."""
    points = [(scale, WHOLE if scale == 1 else interval) for interval in intervals for scale in sorted(scales)]
    return list(dict.fromkeys(points))


def sweep(pipeline: str, points, plan: SamplingPlan, output: Path) -> list[dict[str, Any]]:
    """Measures every point; returns `guidance_scale`, `guidance_interval` and `figures` of each."""
    measured = []
    for scale, interval in points:
        name = f"scale-{scale:g}_interval-{interval[0]:g}-{interval[1]:g}"
        # Without an interval, pipelines that know none (diffusers' DiTPipeline) can be swept too.
        passed = None if interval == WHOLE else interval
        result = measure_pipeline(pipeline, output / name, name, plan, scale, passed)
        PartialState().wait_for_everyone()
        entry = read_first_set(result)
        measured.append(
            {"guidance_scale": scale, "guidance_interval": list(interval), "figures": entry["figures"], "folder": name}
        )
    return measured


def parse_interval(text: str) -> tuple[float, float]:
    """`FROM:TO`, a part of the trajectory between 0 and 1."""
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"--intervals {text!r} is not FROM:TO, for example 0.1:0.8") from error
    if not 0 <= start < end <= 1:
        raise InputError(f"--intervals {text!r}: expected 0 <= FROM < TO <= 1")
    return start, end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", required=True, help="pipeline folder or Hub name")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0], help="default: %(default)s")
    parser.add_argument(
        "--intervals", nargs="+", default=["0:1"], metavar="FROM:TO", help="guided parts (default: %(default)s)"
    )
    add_sampling_arguments(parser, reference_required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for guidance_sweep.json and .html, samples")


def run(args: argparse.Namespace) -> int:
    from .report import build_report

    points = sweep_points(args.scales, [parse_interval(text) for text in args.intervals])
    state = PartialState(cpu=args.device == "cpu")
    plan = plan_of(args)
    measured = sweep(args.pipeline, points, plan, args.output)
    if not state.is_main_process:
        return 0
    best = min(measured, key=lambda point: distance_figure(point["figures"])["value"])
    result = {
        "kind": "guidance_sweep",
        "pipeline": args.pipeline,
        "points": measured,
        "best": {key: best[key] for key in ("guidance_scale", "guidance_interval")},
        "reference": {"spec": args.reference},
        **provenance(num_images=args.num_images, steps=args.num_inference_steps, seed=args.seed),
    }
    write_json(args.output / "guidance_sweep.json", result)
    html = build_report([{**result, "folder": args.output}], title="Guidance sweep")
    write_text(args.output / "guidance_sweep.html", html)
    for point in measured:
        figure = distance_figure(point["figures"])
        start, end = point["guidance_interval"]
        spread = f" ± {figure['interval']:.2g}" if "interval" in figure else ""
        setting = f"scale {point['guidance_scale']:g} in {start:g}:{end:g}"
        print(f"{setting}: {figure['name']} {figure['value']:.4f}{spread}{'  <- lowest' if point is best else ''}")
    return 0
