"""What held-out images tell of samples: classification accuracy, and FDr where networks are named for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from accelerate.logging import get_logger

from tcae_diffusers.data.images.image_sets import ImageSet, open_image_set
from tcae_diffusers.metrics.classification_accuracy import ClassificationAccuracy
from tcae_diffusers.metrics.figure import Figure
from tcae_diffusers.metrics.frechet_ratio import FrechetRatio
from tcae_diffusers.metrics.reference import open_reference_content

from ..arguments.groups import HeldoutArguments

logger = get_logger(__name__)


class HeldoutMeasure(Protocol):
    """A measure of sample sets that knows held-out images."""

    def figure(self, samples: ImageSet) -> Figure:
        """Of one set."""
        ...


def heldout_measures(
    arguments: HeldoutArguments,
    reference: str,
    size: int | tuple[int, int] | None = None,
    sets: Sequence[ImageSet] = (),
    device: str | torch.device = "cpu",
    batch_size: int = 32,
    cache_folder: Path | None = None,
    seed: int = 0,
) -> list[HeldoutMeasure]:
    """
    The measures that `arguments` ask for; none without held-out images.

    Args:
        reference: Real images, see [`open_reference_content`].
        size: Of the samples, if they exist.
        sets: Samples that will be measured.
        device, batch_size, cache_folder: Of the networks.
        seed: Of the classifiers and of random draws.

    Raises:
        InputError: If images, labels or networks are missing or do not fit together.
    """
    if arguments.heldout is None:
        return []
    heldout, (real, statistics) = open_image_set(arguments.heldout, size), open_reference_content(reference, size)
    measures: list[HeldoutMeasure] = []
    # A source without labels may also come as one of a single class.
    known = [each for each in (heldout, real, *sets) if each is not None]
    unlabelled = [each.name for each in known if each.labels is None or len(each.classes or ()) < 2]
    if arguments.fdr_networks and (unlabelled or real is None):
        places = ", ".join(unlabelled) or reference
        logger.warning(f"classification accuracy is omitted: no labels of several classes in {places}")
    else:
        accuracy = ClassificationAccuracy(heldout, real, device, seed)
        for images in sets:
            accuracy.labels_of(images)
        measures.append(accuracy)
    if arguments.fdr_networks:
        networks = arguments.opened_fdr_networks(device)
        measures.append(FrechetRatio(heldout, real, networks, statistics, batch_size, cache_folder, seed))
    return measures
