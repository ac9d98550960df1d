"""What a run logs, in words: which tags belong in one chart, and what a reader should look for there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """
    Curves that belong together.

    Args:
        title (`str`): Of the chart.
        tags (`dict[str, str]`): Legend of each tag.
        caption (`str`): What to look for.
        is_health (`bool`, defaults to `False`): Whether it is about how the run went rather than what was learned.
    """

    title: str
    tags: dict[str, str]
    caption: str
    is_health: bool = False
