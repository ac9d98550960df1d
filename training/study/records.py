"""The records of a study, all of one plan, and what they hold of each figure."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.figure_differences import ComparedFigure, align_figures
from tcae_diffusers.evaluation.results.kinds.study_unit import StudyUnitResult
from tcae_diffusers.metrics.figure import Figure
from tcae_diffusers.training.recorded_settings import require_same_settings
from tcae_diffusers.training.study.plan import TRAINING, StudyPlan, read_study_plan
from tcae_diffusers.training.study.unit import REMEDY, Unit, read_unit


@dataclass(frozen=True)
class MeasuredFigure:
    """
    A figure of all arms under the same conditions.

    Args:
        name (`str`): Of the figure. dit_steps (`int`, *optional*): Of the DiT whose samples were measured.
        figures (`dict[str, dict[int, Figure]]`): Per arm and seed.
    """

    name: str
    dit_steps: int | None
    figures: dict[str, dict[int, Figure]]

    @property
    def title(self) -> str:
        return self.name if self.dit_steps is None else f"{self.name} after {self.dit_steps:,} DiT steps"

    @property
    def any(self) -> Figure:
        """One of them, for what all have in common."""
        return next(figure for by_seed in self.figures.values() for figure in by_seed.values())

    def values(self, arm: str) -> dict[int, float]:
        """By seed; empty if the arm has none."""
        return {seed: figure.value for seed, figure in self.figures.get(arm, {}).items()}


@dataclass(frozen=True)
class StudyRecords:
    """
    What there is of a study.

    Args:
        plan ([`StudyPlan`]): The study.
        units (`dict[str, dict[int, StudyUnitResult]]`): Per arm and seed, in the order of the plan; arms without
            a record are left out.
    """

    plan: StudyPlan
    units: dict[str, dict[int, StudyUnitResult]]

    @property
    def missing(self) -> dict[str, list[int]]:
        """Seeds without a record by arm."""
        left = {
            arm: [seed for seed in self.plan.seeds if seed not in self.units.get(arm, {})] for arm in self.plan.arms
        }
        return {arm: seeds for arm, seeds in left.items() if seeds}

    @cached_property
    def figures(self) -> list[MeasuredFigure]:
        """
        Every figure that an arm has: those of tokenizers, then those of samples by the steps of the DiT.

        Raises:
            InputError: A figure was measured under several conditions.
        """
        found: dict[tuple[str, int | None], MeasuredFigure] = {}
        for arm, by_seed in self.units.items():
            for seed, unit in by_seed.items():
                for part in unit.parts:
                    for figure in part.figures:
                        key = (figure.name, part.dit_steps)
                        measured = found.setdefault(key, MeasuredFigure(*key, {}))
                        measured.figures.setdefault(arm, {})[seed] = figure
        return sorted(found.values(), key=lambda figure: figure.dit_steps or 0)

    def figure(self, name: str, dit_steps: int | None) -> MeasuredFigure | None:
        """The figure of exactly this name, if there is one."""
        return next((each for each in self.figures if (each.name, each.dit_steps) == (name, dit_steps)), None)

    def matching(self, pattern: str) -> list[MeasuredFigure]:
        """Figures whose names begin as `pattern`, a regular expression, says."""
        return [figure for figure in self.figures if re.match(pattern, figure.name)]


def read_records(plan_path: Path) -> StudyRecords:
    """
    Args:
        plan_path: Of the plan; the records are in the folder `results` beside it, and those of arms that it shares
            beside the plan that it extends.

    Raises:
        InputError: A bad plan; no record; a record that is of no unit of the plan, or was measured with other settings
            than the plan's, on other images than another record, or under other conditions.
    """
    plan = read_study_plan(plan_path)
    paths = [*sorted(plan.records.glob("*.json")), *_shared_records(plan)]
    if not paths:
        raise InputError(f"{plan.records} has no record of a study; run {plan_path} first")
    records = [read_unit(path) for path in paths]
    with tempfile.TemporaryDirectory() as work:
        for path, record in zip(paths, records, strict=True):
            _require_of_plan(plan, path, record, Path(work))
    _require_comparable(records)
    units = {arm: {record.seed: record for record in _of_arm(records, arm, plan.seeds)} for arm in plan.arms}
    return StudyRecords(plan, {arm: by_seed for arm, by_seed in units.items() if by_seed})


def _of_arm(records: Sequence[StudyUnitResult], arm: str, seeds: Sequence[int]) -> list[StudyUnitResult]:
    return sorted((record for record in records if record.arm == arm), key=lambda record: seeds.index(record.seed))


def _shared_records(plan: StudyPlan) -> list[Path]:
    """Those that are there of arms that another plan runs."""
    owners = {arm: owner for arm in plan.arms if (owner := plan.owner(arm)) is not plan}
    units = [
        Unit(owner, arm, seed, owner.records, owner.records) for arm, owner in owners.items() for seed in plan.seeds
    ]
    return [unit.record for unit in units if unit.record.exists()]


def _require_of_plan(plan: StudyPlan, path: Path, record: StudyUnitResult, work: Path) -> None:
    if record.arm not in plan.arms or record.seed not in plan.seeds:
        raise InputError(
            f"{path} is of arm {record.arm!r} with seed {record.seed}, which is not in {plan.path};"
            f" put it back there, or delete the record"
        )
    owner = plan.owner(record.arm)
    unit = Unit(owner, record.arm, record.seed, owner.records, work)
    if unit.record != path:
        raise InputError(f"{path} is of arm {record.arm!r} with seed {record.seed}; call it {unit.record}")
    measured_with = {name: value for name, value in record.settings.items() if name != "content"}
    require_same_settings(path, measured_with, unit.options(), REMEDY)


def _require_comparable(records: Sequence[StudyUnitResult]) -> None:
    first = records[0]
    for record in records:
        if _images(record) != _images(first):
            raise InputError(
                f"{first.path} and {record.path} are of different images; delete one of them, and run it again"
            )
    known: dict[tuple[str, int | None], ComparedFigure] = {}
    for row in align_figures(records):
        other = known.setdefault((row.name, row.conditions.get("DiT steps")), row)
        if other is not row:
            raise InputError(_described_conflict(other, row))


def _images(record: StudyUnitResult) -> dict[str, object]:
    """Content of what was trained on and of what measured; arms may start from different weights or configs."""
    content = record.settings.get("content") or {}
    return {name: it for name, it in content.items() if not name.startswith(tuple(f"{each}." for each in TRAINING))}


def _described_conflict(first: ComparedFigure, second: ComparedFigure) -> str:
    def differing(row: ComparedFigure, other: ComparedFigure) -> Mapping[str, object]:
        return {key: value for key, value in row.conditions.items() if value != other.conditions.get(key)}

    sides = " and ".join(
        f"of {', '.join(row.values)} with {differing(row, other)}" for row, other in ((first, second), (second, first))
    )
    return f"{first.name} was measured {sides}, which cannot be compared; run one side again"
