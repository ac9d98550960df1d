"""One arm of a study with one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tcae_diffusers.metrics.figure import Figure

from ..figure_text import describe_figure
from ..result import FigureGroup, Result, as_figures


@dataclass(kw_only=True)
class MeasuredPart:
    """
    What one measure found.

    Args:
        measure (`str`): Kind of the result.
        figures (`list[Figure]`), data (`dict`): As in that result.
        dit_steps (`int`, *optional*): Of the DiT that drew what was measured.
    """

    measure: str
    figures: list[Figure]
    data: dict[str, Any]
    dit_steps: int | None = None

    def __post_init__(self) -> None:
        self.figures = as_figures(self.figures)

    @property
    def of(self) -> str:
        """What was measured, in words."""
        return self.measure if self.dit_steps is None else f"{self.measure} after {self.dit_steps} DiT steps"


@dataclass(kw_only=True)
class StudyUnitResult(Result):
    """
    Result of a unit of `tcae_diffusers.training.study`; `settings` are what it was trained and measured with.

    Args:
        study (`str`), arm (`str`), seed (`int`): Which unit; tokenizer, DiT and samples have this seed.
        commit (`str`): Of the code.
        parts (`list[MeasuredPart]`): All figures.
        cost (`dict[str, dict]`): Per stage its CPU seconds `cpu_s`, and of training `steps` and `macs`.
        curves (`dict[str, list]`): Of training the tokenizer, `[steps, values]` by tag.
    """

    kind: ClassVar[str] = "study_unit"
    table_template: ClassVar[str] = "study_unit.html"
    is_comparable: ClassVar[bool] = True

    study: str
    arm: str
    seed: int
    commit: str
    parts: list[MeasuredPart]
    cost: dict[str, dict[str, float]]
    curves: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = [MeasuredPart(**part) if isinstance(part, Mapping) else part for part in self.parts]

    def figure_groups(self) -> list[FigureGroup]:
        return [
            FigureGroup(
                part.measure,
                self.arm,
                part.figures,
                part.data,
                {} if part.dit_steps is None else {"DiT steps": part.dit_steps},
                self.folder,
                self.seed,
            )
            for part in self.parts
        ]

    def describe(self) -> list[str]:
        return [f"{part.of}: {describe_figure(figure)}" for part in self.parts for figure in part.figures]

    def figures_by_subject(self) -> dict[str, list[Figure]]:
        return {f"{self.arm}, seed {self.seed}: {part.of}": part.figures for part in self.parts}
