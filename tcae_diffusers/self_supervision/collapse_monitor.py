"""Watches the teacher's entropies over a run and says once when they show a collapse."""

import math
from collections import deque

from .collapse import collapse_warning


class CollapseMonitor:
    """
    Averages the teacher's entropies over the last log entries: a batch of B outputs cannot show more than log B nats,
    and a network that has seen nothing yet looks collapsed.

    Args:
        out_dim (`int`): Class prototypes.
        patch_out_dim (`int`, *optional*): Patch prototypes; equal to `out_dim` when not given.
        first_step (`int`, defaults to 300): Steps before which nothing is said.
        window (`int`, defaults to 10): Log entries averaged, and the fewest between two warnings.
    """

    def __init__(self, out_dim: int, patch_out_dim: int | None = None, first_step: int = 300, window: int = 10):
        self.out_dim = out_dim
        self.patch_out_dim = patch_out_dim
        self.first_step = first_step
        self.window = window
        self.entries: deque[dict[str, float]] = deque(maxlen=window)

    def add(self, step: int, diagnostics: dict[str, float]) -> str | None:
        """
        Args:
            step (`int`): Steps done.
            diagnostics (`dict[str, float]`): Of [`SelfDistillationOutput`], without prefix; NaN where there was no
                masked token.

        Returns:
            `str` or `None`: a sentence for the log.
        """
        if not diagnostics or step < self.first_step:
            return None
        self.entries.append(diagnostics)
        if len(self.entries) < self.window:
            return None
        means = {}
        for name in diagnostics:
            values = [entry[name] for entry in self.entries if name in entry and not math.isnan(entry[name])]
            means[name] = sum(values) / len(values) if values else math.nan
        warning = collapse_warning(means, self.out_dim, self.patch_out_dim)
        if warning is not None:
            # Said once per window, not at every log line.
            self.entries.clear()
        return warning
