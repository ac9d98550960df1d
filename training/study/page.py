"""
The page `results.md` of a study, and its charts, from the records.

Tables stand between marks, so that a reading of them can be written around and is kept.
"""

from __future__ import annotations

import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.figure_text import ARROWS, format_number
from tcae_diffusers.evaluation.results.kinds.study_unit import StudyUnitResult
from tcae_diffusers.evaluation.results.seed_statistics import LEVEL, POWER
from tcae_diffusers.evaluation.results.speed_up import steps_to_reach
from tcae_diffusers.files import write_atomically, write_text
from tcae_diffusers.metrics.figure import Estimate, Figure
from tcae_diffusers.training.markdown_tables import markdown_table, with_table
from tcae_diffusers.training.study.charts import curve_chart, distance_chart
from tcae_diffusers.training.study.claims import Verdict, judge_claims, level_of
from tcae_diffusers.training.study.plan import StudyPlan
from tcae_diffusers.training.study.records import MeasuredFigure, StudyRecords, read_records

PAGE = "results.md"
DISTANCE_CHART, CURVE_CHART = "results-distances.png", "results-curves.png"
# Names of distances between images, not extrapolated.
GENERATED, RECONSTRUCTED = r"gF(D|ID)(?!-inf)", r"rF(D|ID)"
# Figures of the table of arms: what a reader calls them, and how their names begin.
SHOWN = {
    "PSNR": r"PSNR \(dB\)$",
    "rFD": RECONSTRUCTED,
    "A1": r"linear probe, tokens",
    "A2": r"linear probe, latent",
    "structure loss": r"structure loss",
    "gFD": GENERATED,
    "KID": r"g?KID",
    "MIND": r"g?MIND",
    "FDr": r"FDr\d",
    "CAS": r"CAS",
}
_READING = """\
Filled marks are seeds, open ones the mean of an arm. Of two arms one above the other, both reconstruct equally well,
and the latent of the lower one is better to generate from. Of two arms at the same height, the right one generates as
well from worse reconstructions."""
_SPEED_UP = """\
How many times fewer DiT steps an arm needs for the {figure} that {baseline} has after {steps:,} with the same seed,
interpolated between the measured points, linear in the distance and in the logarithm of the steps:"""
_HEAD_START = """\
How many times as many DiT steps {baseline} needs for the {figure} that an arm has after {steps:,} with the same seed,
interpolated likewise:"""
_FAMILY = """\
The effect is the mean over seeds of the first arm minus the second, paired by seed, with its 95 % t interval over
seeds. A claim is decided if Holm's p-value among the {tested} claims that have two seeds or more is below {level:.3g}.
The last column is the smallest effect that as many seeds of this spread would have shown with {power:.0f} % power at
the strictest level of that family, {level:.3g}/{tested}."""
_LOOKS = """ Seeds were added
when the verdicts without them were known: the claims are judged {looks} times, at {level:.3g} each, so that the chance
of a false one in all is {whole}."""
_ONE_SEED = """\
The effect is that of a single seed, the first arm minus the second. With fewer than two seeds nothing is decided."""
_SECTIONS = {
    "units": "What was run",
    "claims": "Claims of the paper",
    "arms": "Arms",
    "distances": "Reconstruction or latent",
    "curves": "Convergence",
    "seeds": "Every figure of every seed",
}


def write_page(plan_path: Path) -> list[str]:
    """
    Write the page and its charts beside the plan.

    Returns:
        What was written, and which units are missing, in lines.

    Raises:
        InputError: See [`read_records`] and [`judge_claims`]; or the page that is there lacks a mark.
    """
    records = read_records(plan_path)
    files = render_page(records, plan_path)
    for path, content in files.items():
        if isinstance(content, str):
            write_text(path, content)
        else:
            write_atomically(path, content)
    return [_units_section(records), *map(str, files)]


def write_claims(page: Path, studies: Path) -> None:
    """
    Put the claims of all studies in the folder `studies` that have a page into the table `claims` of the Markdown
    file `page`.

    Raises:
        InputError: `page` cannot be read or lacks the marks; see [`read_records`] and [`judge_claims`].
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{page} cannot be read: {error.strerror}") from error
    write_text(page, with_table(page, text, "claims", claims_table(page, studies)))


def claims_table(page: Path, studies: Path) -> str:
    """The table of [`write_claims`], with links from `page` to the studies."""
    rows = {}
    for plan in sorted(studies.glob("*/plan.yaml")):
        if (plan.parent / PAGE).exists():
            link = Path(os.path.relpath(plan.parent.resolve() / PAGE, page.resolve().parent)).as_posix()
            records = read_records(plan)
            for verdict in judge_claims(records):
                row = {"study": records.plan.title, **_verdict_row(verdict)}
                del row["expected"]
                rows[f"[{verdict.statement}]({link}#claims-of-the-paper)"] = row
    return markdown_table(rows)


def render_page(records: StudyRecords, plan_path: Path) -> dict[Path, str | bytes]:
    """The page and its charts by path; of a page that is there, text outside the marks is kept."""
    page = plan_path.parent / PAGE
    charts = {DISTANCE_CHART: _distance_chart(records), CURVE_CHART: _curve_chart(records)}
    sections = {
        "units": _units_section(records),
        "claims": _claims_section(records.plan, judge_claims(records)),
        "arms": _arms_section(records),
        "distances": _distances_section(records, charts[DISTANCE_CHART] is not None),
        "curves": _curves_section(records, charts[CURVE_CHART] is not None),
        "seeds": _seeds_section(records),
    }
    text = page.read_text(encoding="utf-8") if page.exists() else _empty_page(records.plan.title, plan_path)
    for name, section in sections.items():
        text = with_table(page, text, name, section)
    pictures = {plan_path.parent / name: picture for name, picture in charts.items() if picture is not None}
    return {page: text, **pictures}


def _empty_page(title: str, plan_path: Path) -> str:
    plan = f"docs/studies/{plan_path.resolve().parent.name}/{plan_path.name}"
    marks = "\n".join(
        f"\n## {heading}\n\n<!-- table: {name} -->\n<!-- end: {name} -->" for name, heading in _SECTIONS.items()
    )
    return (
        f"# {title}: results\n\n`python -m tcae_diffusers.training.study {plan} --page` writes what stands between the"
        f" marks of this page from the\nrecords (`results/`) of [the plan]({plan_path.name}). What stands outside them"
        f" is kept.\n{marks}\n"
    )


def _units_section(records: StudyRecords) -> str:
    plan = records.plan
    total, missing = len(plan.arms) * len(plan.seeds), records.missing
    done = total - sum(map(len, missing.values()))
    text = f"{done} of {total} units (an arm with a seed) are done."
    if missing:
        text += " Missing: " + "; ".join(f"{arm}, {_seeds_text(seeds)}" for arm, seeds in missing.items()) + "."
    units = [unit for by_seed in records.units.values() for unit in by_seed.values()]
    commits = ", ".join(sorted({unit.commit for unit in units}))
    return f"{text} Commit {commits}, on {_machines_text(units)}."


def _machines_text(units: Sequence[StudyUnitResult]) -> str:
    """Processors and GPUs, each with the number of its units if there are several."""
    counts = Counter(
        " and ".join([str(unit.machine.get("processor", "an unknown processor")), *sorted(_gpus(unit))])
        for unit in units
    )
    return "; ".join(f"{name} ({count})" if len(counts) > 1 else name for name, count in sorted(counts.items()))


def _gpus(unit: StudyUnitResult) -> set[str]:
    return set(unit.machine.get("accelerators", [])) - {"none"}


def _seeds_text(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _claims_section(plan: StudyPlan, verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "The plan has no claims."
    tested = sum(verdict.difference is not None for verdict in verdicts)
    note = _ONE_SEED
    if tested:
        note = _FAMILY.format(tested=tested, level=level_of(plan), power=100 * POWER)
        note += _LOOKS.format(looks=plan.looks, whole=LEVEL, level=level_of(plan)) if plan.looks > 1 else ""
    return f"{markdown_table({verdict.statement: _verdict_row(verdict) for verdict in verdicts})}\n\n{note}"


def _verdict_row(verdict: Verdict) -> dict[str, str]:
    claim, difference = verdict.claim, verdict.difference
    row = {
        "verdict": f"**{verdict.outcome}**" if verdict.outcome != "undecided" else verdict.outcome,
        "in the paper": claim.paper,
        "expected": f"{claim.arm} {claim.direction} than {claim.than}: {verdict.measured}",
        "effect": format_number(verdict.effect) or "not measured",
        "95 % interval": "",
        "seeds": ", ".join(map(str, verdict.effects)) or "none in common",
        "Holm's p": "",
        "could have seen": "",
    }
    if difference is not None and verdict.p_holm is not None:
        ends = (format_number(difference.mean + sign * difference.interval) for sign in (-1, 1))
        row |= {"95 % interval": " to ".join(ends), "Holm's p": f"{verdict.p_holm:.2g}"}
        row["could have seen"] = format_number(verdict.smallest_detectable)
    return row


def _arms_section(records: StudyRecords) -> str:
    shown = {name: records.matching(pattern) for name, pattern in SHOWN.items()}
    chosen = sorted((figure for found in shown.values() for figure in found), key=lambda each: each.dit_steps or 0)
    called = {figure.name: name for name, found in shown.items() for figure in found}
    rows = {
        _row_name(figure, called[figure.name]): {
            **{arm: _mean_and_spread(list(figure.values(arm).values())) for arm in records.units},
            **_beside([each for by_seed in figure.figures.values() for each in by_seed.values()]),
        }
        for figure in chosen
    }
    for title, cost in _costs().items():
        rows[title] = {
            arm: _mean_and_spread([cost(unit.cost) for unit in by_seed.values()])
            for arm, by_seed in records.units.items()
        }
    rows["seeds"] = {arm: ", ".join(map(str, by_seed)) for arm, by_seed in records.units.items()}
    text = f"{markdown_table(rows)}\n\nMean over seeds ± standard deviation over seeds."
    if absent := [name for name, found in shown.items() if not found]:
        text += f" Not measured: {', '.join(absent)}."
    if on_gpus := [arm for arm, by_seed in records.units.items() if any(map(_gpus, by_seed.values()))]:
        text += f" CPU minutes are without the time of GPUs, which units of these arms had: {'; '.join(on_gpus)}."
    return text


def _row_name(figure: MeasuredFigure, called: str) -> str:
    title = figure.title if re.match(f"[rg]?{called}", figure.name) else f"{called}: {figure.title}"
    return f"{title} {ARROWS[figure.any.better]} ({figure.any.samples:,} images)"


def _costs() -> dict[str, Callable[[dict[str, dict[str, float]]], float]]:
    """Rows about what a unit took, from its `cost`."""
    return {
        "steps of the tokenizer": lambda cost: cost["tokenizer"]["steps"],
        "TMAC of training the tokenizer": lambda cost: cost["tokenizer"]["macs"] / 1e12,
        "CPU minutes, tokenizer": lambda cost: cost["tokenizer"]["cpu_s"] / 60,
        "CPU minutes, DiT": lambda cost: cost["dit"]["cpu_s"] / 60,
        "CPU minutes, everything": lambda cost: sum(stage["cpu_s"] for stage in cost.values()) / 60,
    }


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    spread = _spread(values)
    return format_number(statistics.fmean(values)) + (f" ± {spread}" if spread else "")


def _spread(values: Collection[float]) -> str:
    """Standard deviation over seeds; nothing where there is none."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return "" if spread == 0 else f"{spread:.2g}" if spread < 100 else f"{spread:,.0f}"


def _distance_chart(records: StudyRecords) -> bytes | None:
    reconstructed = records.matching(RECONSTRUCTED)
    return distance_chart(records, reconstructed[0], _generated(records)) if reconstructed else None


def _curve_chart(records: StudyRecords) -> bytes | None:
    return curve_chart(records, _generated(records))


def _generated(records: StudyRecords) -> list[MeasuredFigure]:
    """Distances of samples, by the steps of the DiT."""
    return records.matching(GENERATED)


def _distances_section(records: StudyRecords, is_drawn: bool) -> str:
    if not is_drawn:
        return "No record has both distances, of reconstructions and of samples."
    return f"![Distance of samples over distance of reconstructions]({DISTANCE_CHART})\n\n{_READING}"


def _curves_section(records: StudyRecords, is_drawn: bool) -> str:
    parts = [f"![Curves of tokenizers and DiTs, a line per seed]({CURVE_CHART})"] if is_drawn else []
    points = _generated(records)
    baseline = next(iter(records.plan.arms))
    arms = [arm for arm in records.units if arm != baseline]
    if arms and len(points) > 1 and points[-1].values(baseline):
        for sentence, text, point in (
            (_SPEED_UP, _speed_up_text, points[-1]),
            (_HEAD_START, _head_start_text, points[0]),
        ):
            told = sentence.format(figure=point.name, baseline=baseline, steps=point.dit_steps)
            seeds = records.plan.seeds
            rows = {arm: {f"seed {seed}": text(points, arm, baseline, seed) for seed in seeds} for arm in arms}
            parts.append(f"{told}\n\n{markdown_table(rows)}")
    return "\n\n".join(parts) or "No curve was recorded."


def _speed_up_text(points: Sequence[MeasuredFigure], arm: str, baseline: str, seed: int) -> str:
    curve, level = _falling_curve(points, arm, seed), points[-1].values(baseline).get(seed)
    if level is None or curve is None:
        return "not measured"
    steps, values = curve
    needed, exact = steps_to_reach(steps, values, level)
    if needed is None:
        return "not reached"
    return f"{'' if exact else 'at least '}{steps[-1] / needed:.2f}x"


def _head_start_text(points: Sequence[MeasuredFigure], arm: str, baseline: str, seed: int) -> str:
    curve, level = _falling_curve(points, baseline, seed), points[0].values(arm).get(seed)
    if level is None or curve is None:
        return "not measured"
    steps, values = curve
    needed, exact = steps_to_reach(steps, values, level)
    if needed is None:
        return f"over {steps[-1] / steps[0]:.2f}x"
    return f"{'' if exact else 'at most '}{needed / steps[0]:.2f}x"


def _falling_curve(points: Sequence[MeasuredFigure], arm: str, seed: int) -> tuple[list[float], list[float]] | None:
    """Steps and values, or `None` where one is not measured."""
    measured = [(point.dit_steps, point.values(arm).get(seed)) for point in points]
    steps = [float(step) for step, _ in measured if step is not None]
    values = [value for _, value in measured if value is not None]
    return (steps, values) if len(steps) == len(values) == len(measured) else None


def _seeds_section(records: StudyRecords) -> str:
    return "\n\n".join(f"### {arm}\n\n{_arm_table(records, arm)}" for arm in records.units)


def _arm_table(records: StudyRecords, arm: str) -> str:
    """All figures of an arm, a row each, and what its units took."""
    rows = {}
    for figure in records.figures:
        if by_seed := figure.figures.get(arm):
            rows[f"{figure.title} {ARROWS[figure.any.better]}"] = {
                **_seed_cells({seed: each.value for seed, each in by_seed.items()}),
                "images": f"{next(iter(by_seed.values())).samples:,}",
                **_beside(list(by_seed.values())),
            }
    for title, cost in _costs().items():
        rows[title] = _seed_cells({seed: cost(unit.cost) for seed, unit in records.units[arm].items()})
    return markdown_table(rows)


def _seed_cells(values: dict[int, float]) -> dict[str, str]:
    cells = {
        "mean": format_number(statistics.fmean(values.values())),
        "deviation over seeds": _spread(values.values()),
    }
    return {**cells, **{f"seed {seed}": format_number(value) for seed, value in values.items()}}


def _beside(figures: Sequence[Figure]) -> dict[str, str]:
    """What stands beside figures that were measured alike."""
    by_size: dict[str, list[Estimate]] = {}
    for each in figures:
        if each.linear is not None:
            by_size.setdefault(each.linear.name, []).append(each.linear)
    # Of latents of different sizes each has its own.
    linear = [_mean_of(found) + f" ({name})" * (len(by_size) > 1) for name, found in by_size.items()]
    return {"real against real": _mean_of([each.floor for each in figures]), "linear baseline": "; ".join(linear)}


def _mean_of(estimates: Sequence[Estimate | None]) -> str:
    values = [each.value for each in estimates if each is not None]
    return format_number(statistics.fmean(values)) if values else ""
