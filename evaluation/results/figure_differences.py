"""Puts the figures of several results side by side and determines which differences are significant."""

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

from .result import Result

PER_IMAGE_FILE = "per_image.csv"
_PAIRED, _COMBINED = "paired, image by image", "two intervals, combined in quadrature"


@dataclass
class ComparedFigure:
    """One figure of several subjects, under the same conditions.

    Args:
        name, better: As in the results. conditions (`dict`): What had to agree: data, number of images, features.
        values (`dict[str, dict]`): Per subject `value` and, where known, `interval`.
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
        InputError: If a subject has two results for one figure under the same conditions.
    """
    aligned: dict[tuple, ComparedFigure] = {}
    for result in results:
        for subject, figures in result.compared_figures().items():
            for figure in figures:
                conditions = _conditions(result, figure)
                key = (result.kind, figure.name, *map(str, conditions.values()))
                row = aligned.setdefault(key, ComparedFigure(figure.name, figure.better, conditions))
                if subject in row.sources:
                    raise InputError(
                        f"{subject} has two results for {figure.name}: {row.sources[subject]} and {result.folder}; "
                        "pass only one of them, or give each its own name"
                    )
                row.add(subject, figure, result.folder)
    return list(aligned.values())


def _conditions(result: Result, figure: Figure) -> dict[str, Any]:
    data = result.measured_on()
    return {
        "data": data.get("spec"),
        "fingerprint": data.get("fingerprint"),
        "images": figure.samples,
        "reference images": figure.reference_images,
        "features": (figure.extractor or {}).get("weights_sha256"),
        **result.conditions,
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
        speaks for, if larger).
    """
    pairs = []
    for first, second in itertools.combinations(row.values, 2):
        one, other = row.values[first], row.values[second]
        interval, method = _paired_interval(row, first, second), _PAIRED
        if interval is None:
            interval, method = _combined_interval(one.get("interval"), other.get("interval")), _COMBINED
        pairs.append(described_pair(first, second, one["value"] - other["value"], interval, method, row.better))
    return pairs


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


def comparison_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Rows for the result file and the report: a figure, its conditions, its value per subject, its differences."""
    return [
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
        for row in align_figures(results)
    ]
