"""What a run logs, in words: which tags belong in one chart, and what a reader should look for there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Chart:
    """
    Curves that belong together.

    Args:
        title (`str`): Of the chart.
        tags (`dict[str, str]`):
            Legend of each tag. A tag is a regular expression that matches a logged tag as a whole, and its legend may
            use what the groups matched: `{r"train/loss_(lpips-.+)": r"\\1"}`.
        caption (`str`): What to look for.
        is_health (`bool`, defaults to `False`): Whether it is about how the run went rather than what was learned.
    """

    title: str
    tags: dict[str, str]
    caption: str
    is_health: bool = False

    def select(self, logged: Mapping[str, T]) -> dict[str, T]:
        """Of `{logged tag: value}` what belongs in this chart, as `{legend: value}` in the order of `tags`."""
        return {
            match.expand(legend): value
            for pattern, legend in self.tags.items()
            for tag, value in logged.items()
            if (match := re.fullmatch(pattern, tag))
        }
