"""One self-contained HTML file from what the other commands measured: pictures, curves, figures, commands,
attribution.

Everything is embedded (pictures as base64, curves as SVG), so the file can be mailed, archived and opened without a
network.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_text

from ..report.charts import bar_chart, line_chart, scatter_chart
from ..report.comparison_charts import (
    ARROWS,
    comparison_cards,
    comparison_charts,
    convergence_chart,
    format_number,
    sweep_charts,
)
from ..report.training_curves import Curve, read_scalars, run_charts
from ..results.provenance import command_line, describe_machine, library_versions
from .named_paths import parse_named_paths

_KINDS = (
    "comparison",
    "convergence",
    "reconstruction",
    "generation",
    "guidance_sweep",
    "probing",
    "latents",
    "cost",
    "bench",
)


def embed_png(path: Path) -> str:
    """A picture as a `data:` address."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"the report needs the picture {path}, which cannot be read: {error}") from error


def collect_results(paths: list[Path]) -> list[dict[str, Any]]:
    """Reads result files; folders are searched. Each result gets its `folder`, where its pictures lie.

    Raises:
        InputError: If a path does not exist, a file is no result, or nothing is found.
    """
    results = []
    for path in paths:
        if not path.exists():
            raise InputError(f"result {path} does not exist; run the command that writes it first")
        files = [path] if path.is_file() else sorted(path.rglob("*.json"))
        for file in files:
            try:
                content = json.loads(file.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if path.is_dir():
                    continue  # a folder may hold JSON of others
                raise InputError(f"{file} is not a JSON result: {error}") from error
            if isinstance(content, dict) and content.get("kind") in _KINDS:
                results.append({**content, "folder": file.parent})
            elif path.is_file():
                kinds = ", ".join(_KINDS)
                raise InputError(f"{file} is not a result of this package; expected a kind of {kinds}")
    if not results:
        searched = ", ".join(map(str, paths))
        raise InputError(f"no results below {searched}; expected reconstruction.json or the like")
    return sorted(results, key=lambda result: _KINDS.index(result["kind"]))


def figure_rows(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Every figure as a row of the table: what it is of, name, value with interval, N, floor, baseline, extractor."""
    rows = []
    for result in results:
        if result["kind"] == "reconstruction":
            groups = [(_subject(result), result["figures"])]
        elif result["kind"] == "generation":
            groups = [(entry["name"], entry["figures"]) for entry in result["sets"]]
        elif result["kind"] == "probing":
            groups = [(_subject(result), result["figures"])]
        else:
            continue
        for subject, figures in groups:
            for figure in figures:
                spread = figure.get("interval") or figure.get("std_over_draws") or figure.get("std")
                floor, baseline = figure.get("floor"), figure.get("baseline")
                rows.append(
                    {
                        "subject": subject,
                        "name": figure["name"],
                        "value": format_number(figure["value"]),
                        "spread": f"± {spread:.2g}" if spread else "",
                        "better": ARROWS[figure["better"]],
                        "samples": f"{figure['samples']:,}",
                        "reference": f"{figure['reference_images']:,}" if figure.get("reference_images") else "",
                        "floor": format_number(floor["value"]) if floor else "",
                        "baseline": f"{format_number(baseline['value'])} ({baseline['name']})" if baseline else "",
                    }
                )
    return rows


def _subject(result: dict[str, Any]) -> str:
    return f"{result.get('subject') or result['autoencoder']['class']} on {result['data']['spec']}"


def _find_figure(figures: list[dict[str, Any]], beginnings: tuple[str, ...]) -> dict[str, Any] | None:
    return next((figure for figure in figures if figure["name"].startswith(beginnings)), None)


def headline(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The few numbers that the report opens with: `value`, `label`, `note`."""
    cards = []
    if any(result["kind"] == "comparison" for result in results):
        # The table says it for all subjects; cards of each would say it again, out of order.
        results = [result for result in results if result["kind"] in ("comparison", "convergence")]
    for result in results:
        if result["kind"] in ("comparison", "convergence"):
            cards += comparison_cards(result)
        elif result["kind"] == "reconstruction":
            figure = _find_figure(result["figures"], ("PSNR",))
            if figure is None:
                continue
            baseline = figure.get("baseline", {}).get("value")
            unseen = "heldout" in result["data"]["spec"]
            what = "images it was not trained on" if unseen else f"images of {result['data']['spec']}"
            note = f"on {figure['samples']:,} {what}"
            if baseline is not None:
                note += f"; showing the mean image gives {baseline:.1f} dB"
            cards.append({"value": f"{figure['value']:.1f} dB", "label": "reconstruction, PSNR", "note": note})
        elif result["kind"] == "generation":
            distances = [(entry["name"], _find_figure(entry["figures"], ("gFD", "gFID"))) for entry in result["sets"]]
            distances = [(name, figure) for name, figure in distances if figure]
            if not distances:
                continue
            (_, first), *others = distances
            note = f"{first['samples']:,} samples"
            if "floor" in first:
                note += f"; real against real {format_number(first['floor']['value'])}"
            cards.append({"value": format_number(first["value"]), "label": first["name"], "note": note})
            for name, figure in others:
                ratio = figure["value"] / first["value"] if first["value"] > 0 else float("inf")
                note = f"{name}: {format_number(figure['value'])}, samples: {format_number(first['value'])}"
                value, relation = (ratio, "closer to") if ratio >= 1 else (1 / ratio, "further from")
                cards.append({"value": f"{value:.1f}×", "label": f"{relation} real images than {name}", "note": note})
    return cards


def distance_chart(result: dict[str, Any]) -> dict[str, str] | None:
    """Bars of the Fréchet distance of every sample set, with the floor as a line."""
    figures = {entry["name"]: _find_figure(entry["figures"], ("gFD", "gFID")) for entry in result["sets"]}
    figures = {name: figure for name, figure in figures.items() if figure}
    if not figures:
        return None
    first = next(iter(figures.values()))
    marker = ("real against real", first["floor"]["value"]) if "floor" in first else None
    return {
        "title": first["name"],
        "svg": bar_chart({name: figure["value"] for name, figure in figures.items()}, marker),
    }


def latent_charts(result: dict[str, Any]) -> list[dict[str, str]]:
    """Charts of the latent diagnostics: the spectrum, and what noise costs."""
    spectrum, noise = result["channels"]["spectrum"], result["noise"]
    cumulative = [sum(spectrum[: index + 1]) for index in range(len(spectrum))]
    levels = [point["level"] for point in noise]
    charts = [
        {
            "title": "Spectrum of the channels",
            "caption": "Share of variance in the first k principal directions of a latent vector. A straight line "
            "means that all directions are used alike; an early bend means that few do the work.",
            "svg": line_chart({"share": (list(range(1, len(spectrum) + 1)), cumulative)}, "directions"),
        }
    ]
    for name in [key for key in noise[0] if key != "level"]:
        charts.append(
            {
                "title": f"{'PSNR (dB)' if name == 'psnr' else name} against noise in the latent",
                "caption": "Noise in units of each channel's deviation. The flatter, the more of a diffusion model's "
                "error the decoder forgives.",
                "svg": line_chart({name: (levels, [point[name] for point in noise])}, "noise level"),
            }
        )
    return charts


def _with_pictures(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    prepared = []
    for result in results:
        folder = result["folder"]
        result = dict(result)
        if result["kind"] == "reconstruction":
            names = ("grid", "best", "worst")
            result["pictures"] = {name: embed_png(folder / f"reconstruction_{name}.png") for name in names}
        elif result["kind"] == "generation":
            result["sets"] = [{**entry, "picture": embed_png(folder / entry["grid"])} for entry in result["sets"]]
            result["chart"] = distance_chart(result)
        elif result["kind"] == "probing":
            charts = {
                name: scatter_chart(picture["points"], result["labels"], result["classes"])
                for name, picture in result["pictures"].items()
                if name in ("tokens", "latent")
            }
            neighbours = {
                name: scatter_chart(picture["tsne"], result["labels"], result["classes"])
                for name, picture in result["pictures"].items()
                if "tsne" in picture and name in ("tokens", "latent")
            }
            result["neighbour_charts"] = neighbours
            result["charts"] = charts
        elif result["kind"] == "comparison":
            result["charts"] = comparison_charts(result)
        elif result["kind"] == "convergence":
            result["chart"] = convergence_chart(result)
        elif result["kind"] == "guidance_sweep":
            result["charts"] = sweep_charts(result)
        elif result["kind"] == "latents":
            result["charts"] = latent_charts(result)
            if "picture" in result:
                result["picture"] = embed_png(folder / result["picture"])
        prepared.append(result)
    return prepared


def attributions(results: list[dict[str, Any]]) -> list[str]:
    """Credits that the licences of the shown images ask for, each once."""
    credits = [result.get(key, {}).get("attribution") for result in results for key in ("data", "reference")]
    return list(dict.fromkeys(credit for credit in credits if credit))


def build_report(
    results: list[dict[str, Any]],
    runs: dict[str, dict[str, Curve]] | None = None,
    title: str = "TC-AE: tokenizer and generator",
    note: str = "",
    commands: list[str] | None = None,
    credits: list[str] | None = None,
) -> str:
    """The report as one HTML document.

    Args:
        results: From [`collect_results`].
        runs: `{name: scalars}` from [`training_curves.read_scalars`].
        title, note: Heading, and a paragraph under it.
        commands: Commands to list before those of the results (training, for example).
        credits: Attributions to show besides those found in the results.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "report" / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    measured = [result["command"] for result in results if result.get("command")]
    settings = [(result["kind"], result["settings"]) for result in results if result.get("settings")]
    return environment.get_template("report.html").render(
        title=title,
        note=note,
        cards=headline(results),
        results=_with_pictures(results),
        rows=figure_rows(results),
        runs={name: run_charts(scalars) for name, scalars in (runs or {}).items()},
        commands=list(dict.fromkeys([*(commands or []), *measured, command_line()])),
        settings=settings,
        credits=list(dict.fromkeys([*(credits or []), *attributions(results)])),
        machine=next((result["machine"] for result in results if result.get("machine")), None) or describe_machine(),
        versions=next((result["versions"] for result in results if result.get("versions")), None)
        or library_versions(),
        date=max((result.get("date", "") for result in results), default=""),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", nargs="+", type=Path, required=True, help="result files, or folders that are searched for them"
    )
    parser.add_argument(
        "--runs",
        nargs="*",
        default=[],
        metavar="[NAME=]FOLDER",
        help="training runs whose TensorBoard curves are shown",
    )
    parser.add_argument("--title", default="TC-AE: tokenizer and generator", help="heading (default: %(default)s)")
    parser.add_argument("--note", default="", help="a paragraph under the heading")
    parser.add_argument(
        "--commands", type=Path, help="text file with one command a line, listed before the measuring commands"
    )
    parser.add_argument(
        "--credit", action="append", default=[], help="attribution besides those of the results (repeatable)"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    results = collect_results(args.results)
    runs = {name: read_scalars(path) for name, path in parse_named_paths(args.runs).items()}
    commands = []
    if args.commands:
        if not args.commands.is_file():
            raise InputError(f"file of commands {args.commands} does not exist")
        commands = [line for line in args.commands.read_text().splitlines() if line.strip()]
    html = build_report(results, runs, args.title, args.note, commands, args.credit)
    write_text(args.output, html)
    print(args.output)
    return 0
