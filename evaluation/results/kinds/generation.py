"""How close sets of generated images are to real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.figure import Figure

from ...report.charts import bar_chart
from ...report.embedding import embed_png
from ..figure_text import describe_difference, describe_figure, format_number
from ..result import Card, Result, as_figures

DISTANCE_NAMES = ("gFD-", "gFID")


def distance_figure(figures: Sequence[Figure], name: str | None = None) -> Figure:
    """The figure called `name`, by default the Fréchet distance itself (not its extrapolation).

    Raises:
        InputError: If there is none.
    """
    for figure in figures:
        if figure.name == name or (name is None and _is_distance(figure)):
            return figure
    raise InputError(
        f"no figure {name or 'gFD or gFID'!r}; expected one of {', '.join(figure.name for figure in figures)}"
    )


def _is_distance(figure: Figure) -> bool:
    return figure.name.startswith(DISTANCE_NAMES) and "-inf" not in figure.name


@dataclass(kw_only=True)
class SampleSet:
    """
    One set of generated images.

    Args:
        name (`str`): What the user calls it. path (`str`): Where it lies.
        images (`int`), classes (`list[str]`, *optional*), fingerprint (`str`): How many, of what, and their hash.
        grid (`str`), grid_rows (`list[str]`): File with its picture, and the class in each row of it.
        figures (`list[Figure]`): What was measured.
    """

    name: str
    figures: list[Figure]
    images: int
    grid: str
    path: str | None = None
    classes: list[str] | None = None
    fingerprint: str | None = None
    grid_rows: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.figures = as_figures(self.figures)


@dataclass(kw_only=True)
class GenerationResult(Result):
    """
    Result of `generation`.

    Args:
        sets (`list[SampleSet]`): In the order of the command line; the first is the headline.
        reference (`dict`): The real images, see [`reference.open_reference`].
        differences (`list[dict]`): Of paired sets, between their distances: `name` of the figure, and the rest as in
            [`figure_differences.differences`].
    """

    kind: ClassVar[str] = "generation"
    template: ClassVar[str] = "generation.html"
    is_comparable: ClassVar[bool] = True

    sets: list[SampleSet]
    reference: dict[str, Any]
    differences: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sets = [SampleSet(**entry) if isinstance(entry, Mapping) else entry for entry in self.sets]

    def describe(self) -> list[str]:
        lines = [
            f"{entry.name}: {describe_figure(figure, 'samples')}" for entry in self.sets for figure in entry.figures
        ]
        return lines + [describe_difference(pair, pair) for pair in self.differences]

    def figures_by_subject(self) -> dict[str, list[Figure]]:
        whose = f"{self.subject}: " if self.subject else ""
        return {f"{whose}{entry.name}": entry.figures for entry in self.sets}

    def compared_figures(self) -> dict[str, list[Figure]]:
        if len(self.sets) == 1:
            return {self.subject: self.sets[0].figures}
        return {f"{self.subject}: {entry.name}": entry.figures for entry in self.sets}

    def measured_on(self) -> Mapping[str, Any]:
        return self.reference

    def _distances(self) -> dict[str, Figure]:
        found = {entry.name: next(filter(_is_distance, entry.figures), None) for entry in self.sets}
        return {name: figure for name, figure in found.items() if figure is not None}

    def cards(self) -> list[Card]:
        if not (distances := self._distances()):
            return []
        first, *others = distances.items()
        value = first[1].value
        note = f"{first[1].samples:,} samples"
        if first[1].floor is not None:
            note += f"; real against real {format_number(first[1].floor.value)}"
        cards = [Card(format_number(value), first[1].name, note)]
        for name, figure in others:
            if figure.samples != first[1].samples:  # the distance is biased upwards for small sets
                continue
            # Against themselves images are at a distance of 0, or of a rounding error on either side.
            if min(value, figure.value) <= 1e-9 * max(value, figure.value):
                continue
            ratio = figure.value / value
            note = f"{name}: {format_number(figure.value)}, samples: {format_number(value)}"
            factor, relation = (ratio, "closer to") if ratio >= 1 else (1 / ratio, "further from")
            cards.append(Card(f"{factor:.1f}×", f"{relation} real images than {name}", note))
        return cards

    def shown(self) -> dict[str, Any]:
        return {
            "pictures": {entry.name: embed_png(self.folder, entry.grid) for entry in self.sets},
            "chart": self._distance_chart(),
        }

    def _distance_chart(self) -> dict[str, Any] | None:
        """Bars of the Fréchet distance of every sample set as large as the first, with the floor as a line."""
        if not (distances := self._distances()):
            return None
        first = next(iter(distances.values()))
        marker = None if first.floor is None else ("real against real", first.floor.value)
        values = {name: figure.value for name, figure in distances.items() if figure.samples == first.samples}
        return {"title": first.name, "svg": bar_chart(values, marker), "has_floor": marker is not None}
