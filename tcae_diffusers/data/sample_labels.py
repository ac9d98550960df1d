"""Which class image `i` of a sample set has, and which seed: both are functions of the index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError


def label_sequence(counts: Sequence[float], images: int) -> list[int]:
    """Labels of `images` images in proportion to `counts`, spread so that every prefix keeps the proportion.

    With equal counts this is round-robin: the balanced labels of the literature.

    Args:
        counts: One non-negative weight per class; all equal for balanced labels, the class counts of a data set to
        follow it. images: How many labels.
    """
    weights = np.asarray(counts, dtype=np.float64)
    if weights.ndim != 1 or len(weights) == 0 or (weights < 0).any() or weights.sum() == 0:
        raise InputError(f"class counts {list(counts)} must be non-negative and not all zero")
    share = weights / weights.sum() * images
    amounts = np.floor(share).astype(int)
    for label in np.argsort(-(share - amounts), kind="stable")[: images - amounts.sum()]:
        amounts[label] += 1
    places = [((turn + 0.5) / amount, label) for label, amount in enumerate(amounts) for turn in range(amount)]
    return [label for _, label in sorted(places)]


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` in the run `seed`: 63 bits, the same for every batch size and number of ranks."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
