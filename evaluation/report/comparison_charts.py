"""What a report shows of comparisons, convergence curves and guidance sweeps: cards and charts."""

from __future__ import annotations

from typing import Any

from .charts import interval_chart, line_chart

ARROWS = {"higher": "↑", "lower": "↓"}


def format_number(value: float | None) -> str:
    """Four significant digits; nothing for `None`."""
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def comparison_cards(result: dict[str, Any]) -> list[dict[str, str]]:
    """Cards of a comparison (how many differences hold) or of convergence curves (the factor at the last level)."""
    if result["kind"] == "comparison":
        pairs = [pair for row in result["rows"] for pair in row["differences"]]
        larger = sum(bool(pair["larger"]) for pair in pairs)
        note = f"between {', '.join(result['subjects'])}; {sum(pair['larger'] is None for pair in pairs)} have none"
        label = "differences are larger than their intervals"
        return [{"value": f"{larger} of {len(pairs)}", "label": label, "note": note}]
    last, cards = result["levels"][-1], []
    for name, outcome in last["curves"].items():
        label = f"{name}: fewer DiT steps than {result['baseline']}"
        note = f"to {result['figure']} {format_number(last['level'])}"
        value = "not reached"
        if outcome["reached"]:
            value = f"{'≥ ' if outcome['at_least'] else ''}{outcome['factor']:.1f}×"
        cards.append({"value": value, "label": label, "note": note})
    return cards


def comparison_charts(result: dict[str, Any]) -> list[dict[str, str]]:
    """One chart of dots and intervals per figure that two or more subjects have."""
    return [
        {
            "title": f"{row['name']} {ARROWS[row['better']]}{_baseline_note(row)}",
            "svg": interval_chart(
                {name: (entry["value"], entry.get("interval")) for name, entry in row["values"].items()}
            ),
        }
        for row in result["rows"]
        if len(row["values"]) > 1
    ]


def _baseline_note(row: dict[str, Any]) -> str:
    baseline = row.get("baseline")
    return f" ({baseline['name']}: {format_number(baseline['value'])})" if baseline else ""


def convergence_chart(result: dict[str, Any]) -> str:
    """The figure against DiT steps, one curve per tokenizer, with intervals."""
    curves = result["curves"]
    return line_chart(
        {name: ([p["steps"] for p in curve], [p["value"] for p in curve]) for name, curve in curves.items()},
        "DiT steps",
        {name: [point.get("interval") for point in curve] for name, curve in curves.items()},
    )


def sweep_charts(result: dict[str, Any]) -> list[dict[str, str]]:
    """Every figure against the guidance scale, one curve per interval."""
    points, charts = result["points"], []
    # Without guidance there is no interval: that point begins every curve.
    intervals = list(dict.fromkeys(tuple(p["guidance_interval"]) for p in points if p["guidance_scale"] != 1))
    for name in [figure["name"] for figure in points[0]["figures"]]:
        series, widths = {}, {}
        for interval in intervals or [tuple(points[0]["guidance_interval"])]:
            measured = sorted(
                (
                    (point["guidance_scale"], figure["value"], figure.get("interval"))
                    for point in points
                    for figure in point["figures"]
                    if figure["name"] == name
                    and (point["guidance_scale"] == 1 or tuple(point["guidance_interval"]) == interval)
                ),
                key=lambda point: point[0],
            )
            scales, values, spreads = zip(*measured, strict=True)
            label = f"guided in {interval[0]:g}:{interval[1]:g}"
            series[label], widths[label] = (scales, values), spreads
        charts.append({"title": name, "svg": line_chart(series, "guidance scale", widths)})
    return charts
