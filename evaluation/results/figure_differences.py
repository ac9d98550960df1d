"""
Puts the figures of several results side by side and determines which differences are significant.

Where subjects were trained with several seeds, differences are taken seed by seed, and significance is Holm's over all
of these differences in the table; see [`seed_statistics`].
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.figure import Baseline, Figure, LinearBaseline

from .result import FigureGroup, Result
from .seed_statistics import LEVEL, SeedDifference, holm, paired_over_seeds, t_interval

PER_IMAGE_FILE = "per_image.csv"
_PAIRED, _COMBINED = "paired, image by image", "two intervals, combined in quadrature"


@dataclass
class ComparedFigure:
    """One figure of several subjects, under the same conditions.

    Args:
        name, better: As in the results. conditions (`dict`): What had to agree: data, number of images, features.
        values (`dict[str, dict]`): Per subject `value` and, where known, `interval`; of several seeds their mean, and
            `by_seed`.
        column (`str`, *optional*): Of `per_image.csv`, whose mean the figure is: on the same images differences are
            taken image by image.
        per_image (`dict[str, Path]`): Per subject the file with its values per image, if there is one.
        sources (`dict[str, Path]`): Per subject the folder of the result.
        baseline ([`Baseline`], *optional*): What no model would score, where the results say so.
        linear (`dict[str, LinearBaseline]`): Per subject the linear autoencoder of equal latent size, where measured.
        differences_from_linear (`list[dict]`): See [`difference_from_linear`].
    """

    name: str
    better: str
    conditions: dict[str, Any]
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    column: str | None = None
    per_image: dict[str, Path] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    baseline: Baseline | None = None
    linear: dict[str, LinearBaseline] = field(default_factory=dict)
    differences_from_linear: list[dict[str, Any]] = field(default_factory=list)

    def add_seed(self, group: FigureGroup, figure: Figure) -> None:
        """Takes in the figure of a subject that was trained with one of several seeds."""
        self.sources[group.subject] = group.folder
        self.baseline = self.baseline or figure.baseline
        by_seed = self.values.get(group.subject, {}).get("by_seed", {}) | {group.seed: figure.value}
        entry: dict[str, Any] = {"value": float(np.mean(list(by_seed.values()))), "by_seed": by_seed}
        if len(by_seed) > 1:
            spread = float(np.std(list(by_seed.values()), ddof=1))
            entry["interval"] = t_interval(spread, len(by_seed))
            entry["interval_method"] = f"95 % t interval over {len(by_seed)} seeds"
        self.values[group.subject] = entry

    def has(self, group: FigureGroup) -> bool:
        """Whether there is a figure of this subject, with this seed if there are several."""
        found = self.values.get(group.subject)
        return found is not None and (group.seed is None or group.seed in found.get("by_seed", [group.seed]))

    def add(self, subject: str, figure: Figure, folder: Path) -> None:
        """Takes in the figure of a subject, whose result lies in `folder`."""
        self.sources[subject] = folder
        self.baseline = self.baseline or figure.baseline
        kept = {"value": figure.value, "interval": figure.interval, "interval_method": figure.interval_method}
        self.values[subject] = {name: value for name, value in kept.items() if value is not None}
        self.column = figure.per_image
        if self.column and (folder / PER_IMAGE_FILE).is_file():
            self.per_image[subject] = folder / PER_IMAGE_FILE
        if figure.linear is not None:
            self.linear[subject] = figure.linear
            self.differences_from_linear.append(difference_from_linear(subject, figure, figure.linear))


def align_figures(results: Sequence[Result]) -> list[ComparedFigure]:
    """Figures by name and conditions; results have their `subject`.

    Figures of one name under different conditions (data, number of images, feature network) stay apart.

    Raises:
        InputError: If a subject has two results for one figure under the same conditions and with the same seed.
    """
    aligned: dict[tuple, ComparedFigure] = {}
    for group in (group for result in results for group in result.figure_groups()):
        for figure in group.figures:
            conditions = _conditions(group, figure)
            key = (group.kind, figure.name, *map(str, conditions.values()))
            row = aligned.setdefault(key, ComparedFigure(figure.name, figure.better, conditions))
            if row.has(group):
                raise InputError(
                    f"{group.subject} has two results for {figure.name}: {row.sources[group.subject]} and "
                    f"{group.folder}; pass only one of them, or give each its own name"
                )
            if group.seed is None:
                row.add(group.subject, figure, group.folder)
            else:
                row.add_seed(group, figure)
    return list(aligned.values())


def _conditions(group: FigureGroup, figure: Figure) -> dict[str, Any]:
    return {
        "data": group.data.get("spec"),
        "fingerprint": group.data.get("fingerprint"),
        "images": figure.samples,
        "reference images": figure.reference_images,
        "features": (figure.extractor or {}).get("weights_sha256"),
        "points where objects are looked for": (figure.extractor or {}).get("points"),
        "held-out images": figure.details.get("heldout_fingerprint"),
        **group.conditions,
    }


def _per_image_values(path: Path, column: str) -> np.ndarray | None:
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    return np.array([float(row[column]) for row in rows]) if rows and column in rows[0] else None


def _paired_interval(row: ComparedFigure, first: str, second: str) -> float | None:
    if row.column is None or not {first, second} <= set(row.per_image) or row.conditions["fingerprint"] is None:
        return None
    one, other = (_per_image_values(row.per_image[name], row.column) for name in (first, second))
    if one is None or other is None or len(one) != len(other) or len(one) < 2:
        return None
    differences = one - other
    return float(1.96 * differences.std(ddof=1) / math.sqrt(len(differences)))


def differences(row: ComparedFigure) -> list[dict[str, Any]]:
    """Every pair of subjects of one figure.

    Returns:
        Per pair `first`, `second`, `difference` (first minus second), `interval` (95 %; `None` if unknown), `method`,
        `larger` (whether the difference exceeds the interval; `None` if unknown) and `better` (the subject that it
        speaks for, if larger). Of several seeds also `seeds` and `p_value`, see [`judge_family`].
    """
    pairs = []
    for first, second in itertools.combinations(row.values, 2):
        one, other = row.values[first], row.values[second]
        if "by_seed" in one or "by_seed" in other:
            pairs.append(_seed_pair(first, second, one, other, row.better))
            continue
        interval, method = _paired_interval(row, first, second), _PAIRED
        if interval is None:
            interval, method = _combined_interval(one.get("interval"), other.get("interval")), _COMBINED
        pairs.append(described_pair(first, second, one["value"] - other["value"], interval, method, row.better))
    return pairs


def _seed_pair(first: str, second: str, one: dict[str, Any], other: dict[str, Any], better: str) -> dict[str, Any]:
    found = paired_over_seeds(one.get("by_seed", {}), other.get("by_seed", {}))
    if found is None:
        # Of one seed, an interval over images would pass for more than it is.
        return described_pair(first, second, one["value"] - other["value"], None, "", better)
    method = f"paired, over {len(found.seeds)} seeds"
    pair = described_pair(first, second, found.mean, found.interval, method, better)
    return {**pair, "seeds": found.seeds, "std": found.std, "p_value": found.p_value}


def judge_family(pairs: Sequence[dict[str, Any]]) -> None:
    """
    Fills into every pair with a `p_value` what it is among all of them: `p_holm`, `larger` and `better` by it, and
    `smallest_detectable`, the difference that would have been found with 80 % power at the strictest level of the
    family.
    """
    tested = [pair for pair in pairs if "p_value" in pair]
    for pair, adjusted in zip(tested, holm([pair["p_value"] for pair in tested]), strict=True):
        found = SeedDifference(pair["difference"], pair["std"], pair["seeds"])
        pair["p_holm"], pair["larger"] = adjusted, adjusted < LEVEL
        pair["smallest_detectable"] = found.smallest_detectable(LEVEL / len(tested))
        if not pair["larger"]:
            pair["better"] = None


def difference_from_linear(subject: str, figure: Figure, linear: LinearBaseline) -> dict[str, Any]:
    """The figure of a subject minus that of the linear autoencoder of equal latent size, as in [`differences`]."""
    interval, method = linear.difference_interval, _PAIRED
    if interval is None:
        interval, method = _combined_interval(figure.interval, linear.interval), _COMBINED
    return described_pair(subject, linear.name, figure.value - linear.value, interval, method, figure.better)


def _combined_interval(first: float | None, second: float | None) -> float | None:
    # Independent errors add in squares; a shared reference makes the truth somewhat narrower.
    return None if first is None or second is None else math.hypot(first, second)


def described_pair(
    first: str, second: str, difference: float, interval: float | None, method: str, better: str
) -> dict[str, Any]:
    """One of [`differences`]; `better` says whether `"higher"` or `"lower"` figures are."""
    larger = None if interval is None else abs(difference) > interval
    winner = None
    if larger:
        winner = first if (difference > 0) == (better == "higher") else second
    return {
        "first": first,
        "second": second,
        "difference": difference,
        "interval": interval,
        "method": None if interval is None else method,
        "larger": larger,
        "better": winner,
    }


def comparison_table(results: Sequence[Result], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """
    Rows for the result file and the report: a figure, its conditions, its value per subject, its differences.

    Args:
        names: Of the figures to compare; all if empty. Fewer make a smaller family, see [`judge_family`].

    Raises:
        InputError: See [`align_figures`]; or there is no figure of such a name.
    """
    aligned = align_figures(results)
    known = dict.fromkeys(row.name for row in aligned)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"no figure {unknown[0]!r}; expected one of {', '.join(known)}")
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "better": row.better,
            "conditions": row.conditions,
            "values": row.values,
            "baseline": row.baseline and asdict(row.baseline),
            "linear": {subject: linear.to_json() for subject, linear in row.linear.items()},
            "differences": differences(row),
            "differences_from_linear": row.differences_from_linear,
        }
        for row in aligned
        if row.name in (names or known)
    ]
    judge_family([pair for row in rows for pair in row["differences"]])
    return rows
