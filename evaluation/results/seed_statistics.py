"""
What several training seeds say about a difference: its interval, its significance among many, and what could have been
seen at all.

An interval over images tells whether two trained models differ, and not whether two ways of training do: two seeds of
one way differ as well. Here every seed gives one difference, between runs that share it, and Student's t is taken over
these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import nct

LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class SeedDifference:
    """
    A difference between two arms, seed by seed.

    Args:
        mean (`float`): First minus second. std (`float`): Standard deviation over seeds.
        seeds (`list[int]`): Those that both have.
    """

    mean: float
    std: float
    seeds: list[int]

    @property
    def interval(self) -> float:
        """Half width of the 95 % t interval of the mean."""
        return t_interval(self.std, len(self.seeds))

    @property
    def p_value(self) -> float:
        """Of the two-sided paired t test."""
        if self.std == 0:
            return float(self.mean == 0)
        statistic = abs(self.mean) * math.sqrt(len(self.seeds)) / self.std
        return float(2 * stdtr(len(self.seeds) - 1, -statistic))

    def smallest_detectable(self, level: float = LEVEL) -> float:
        """The least difference that as many seeds of this spread would show, at `level`, in 80 % of all studies."""
        count = len(self.seeds)
        critical = stdtrit(count - 1, 1 - level / 2)

        def power(shift: float) -> float:
            # To find the opposite would be no success; that chance is below 0.001 here, and scipy's value of it NaN.
            return float(nct.sf(critical, count - 1, shift))

        upper = critical
        while power(upper) < POWER:
            upper *= 2
        shift = brentq(lambda shift: power(shift) - POWER, 0, upper)
        return float(shift * self.std / math.sqrt(count))


def t_interval(std: float, count: int) -> float:
    """Half width of the 95 % interval of the mean of `count` values, two or more."""
    return float(stdtrit(count - 1, 1 - LEVEL / 2) * std / math.sqrt(count))


def paired_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> SeedDifference | None:
    """First minus second of the seeds that both have; `None` if these are fewer than two."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    return SeedDifference(float(differences.mean()), float(differences.std(ddof=1)), seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Holm's adjusted p-values (1979), in the order given: what is below 0.05 is significant in a family whose chance of
    one false claim is 0.05, however its members depend on each other.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
