"""Figures in words."""

from __future__ import annotations

from typing import Any

from tcae_diffusers.metrics.figure import Figure

ARROWS = {"higher": "↑", "lower": "↓"}


def format_number(value: float | None) -> str:
    """Four significant digits; nothing for `None`."""
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def describe_figure(figure: Figure, of: str = "images") -> str:
    """One line: name, value with its interval, number of images, floor and baselines."""
    spread = "" if figure.interval is None else f" ± {figure.interval:.2g}"
    line = f"{figure.name}: {figure.value:.4f}{spread} over {figure.samples} {of}"
    if figure.floor is not None:
        line += f"  (real against real: {figure.floor.value:.4f})"
    if figure.baseline is not None:
        line += f"  ({figure.baseline.name}: {figure.baseline.value:.4f})"
    if figure.linear is not None:
        line += f"  ({figure.linear.name}: {figure.linear.value:.4f})"
    return line


def table_row(subject: str, figure: Figure) -> dict[str, str]:
    """A figure as a row of the report's table: whose, name, value with interval, counts, floor, baselines."""
    spread = figure.interval or figure.std_over_draws or figure.std
    baselines = [each for each in (figure.baseline, figure.linear) if each is not None]
    return {
        "subject": subject,
        "name": figure.name,
        "value": format_number(figure.value),
        "spread": f"± {spread:.2g}" if spread else "",
        "better": ARROWS[figure.better],
        "samples": f"{figure.samples:,}",
        "reference": f"{figure.reference_images:,}" if figure.reference_images else "",
        "floor": format_number(figure.floor.value) if figure.floor else "",
        "baseline": "; ".join(f"{format_number(each.value)} ({each.name})" for each in baselines),
    }


def describe_difference(row: dict[str, Any], pair: dict[str, Any]) -> str:
    """One line about one difference."""
    text = f"{row['name']}: {pair['first']} - {pair['second']} = {pair['difference']:.4g}"
    if pair["larger"] is None:
        return f"{text}, interval unknown"
    verdict = f"{pair['better']} is better" if pair["larger"] else "not significant at 95 %"
    if "p_holm" in pair:
        verdict += f" ({len(pair['seeds'])} seeds, Holm's p {pair['p_holm']:.2g}; could have shown"
        verdict += f" {format_number(pair['smallest_detectable'])})"
    return f"{text} ± {pair['interval']:.2g}, {verdict}"
