"""What the seeds of a study say about each claim of its plan."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.seed_statistics import LEVEL, SeedDifference, holm, paired_over_seeds
from tcae_diffusers.training.study.plan import Claim, StudyPlan
from tcae_diffusers.training.study.records import MeasuredFigure, StudyRecords


@dataclass(frozen=True)
class Verdict:
    """
    One claim, judged.

    Args:
        statement (`str`), claim ([`Claim`]): Of the plan.
        outcome (`str`): `"supported"` or `"contradicted"` if Holm's p-value is below [`level_of`] the plan, otherwise
            `"undecided"`.
        measured (`str`): The measure in words.
        effects (`dict[int, float]`): By seed, the figure of `claim.arm` minus that of `claim.than`.
        difference ([`SeedDifference`], *optional*): Of two seeds or more.
        p_holm (`float`, *optional*): Holm's p-value among all claims that have two seeds or more.
        smallest_detectable (`float`, *optional*): What would have been found with 80 % power at the strictest level of
            that family.
    """

    statement: str
    claim: Claim
    outcome: str
    measured: str
    effects: dict[int, float]
    difference: SeedDifference | None = None
    p_holm: float | None = None
    smallest_detectable: float | None = None

    @property
    def effect(self) -> float | None:
        """Mean over seeds; `None` if the arms have no seed in common."""
        return statistics.fmean(self.effects.values()) if self.effects else None


def level_of(plan: StudyPlan) -> float:
    """What Holm's p-values must be below in each of the plan's looks, so that all of them together make 0.05."""
    return LEVEL / plan.looks


def judge_claims(records: StudyRecords) -> list[Verdict]:
    """
    The claims of the plan, in its order. Arms are paired by seed.

    Raises:
        InputError: No record has the figure that a claim is about.
    """
    paired = []
    for statement, claim in records.plan.claims.items():
        figure = _figure_of(records, statement, claim)
        first, second = figure.values(claim.arm), figure.values(claim.than)
        effects = {seed: first[seed] - second[seed] for seed in records.plan.seeds if seed in first and seed in second}
        paired.append((statement, claim, figure.title, effects, paired_over_seeds(first, second)))
    level = level_of(records.plan)
    differences = [difference for *_, difference in paired if difference is not None]
    adjusted = iter(holm([difference.p_value for difference in differences]))
    verdicts = []
    for statement, claim, measured, effects, difference in paired:
        if difference is None:
            verdicts.append(Verdict(statement, claim, "undecided", measured, effects))
            continue
        p_holm, detectable = next(adjusted), difference.smallest_detectable(level / len(differences))
        outcome = _outcome(claim, difference.mean, p_holm < level)
        verdicts.append(Verdict(statement, claim, outcome, measured, effects, difference, p_holm, detectable))
    return verdicts


def _outcome(claim: Claim, effect: float, is_decided: bool) -> str:
    if not is_decided:
        return "undecided"
    return "supported" if (effect < 0) == (claim.direction == "lower") else "contradicted"


def _figure_of(records: StudyRecords, statement: str, claim: Claim) -> MeasuredFigure:
    figure = records.figure(claim.measure, claim.after)
    if figure is None:
        raise InputError(
            f"claim {statement!r}: no record has {claim.measure!r} with after {claim.after};"
            f" expected one of {_names(records.figures)}"
        )
    return figure


def _names(figures: Sequence[MeasuredFigure]) -> str:
    return ", ".join(f"{each.name!r}" + (f" (after: {each.dit_steps})" if each.dit_steps else "") for each in figures)
