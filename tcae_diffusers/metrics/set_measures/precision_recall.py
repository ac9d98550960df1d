"""Improved precision and recall (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ...errors import InputError
from ..confidence import MEAN_OF_IMAGES, share_interval
from ..figure import Estimate
from .measure import SetMeasure

NEIGHBORHOOD = 3


def precision_recall(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Shares of samples among the real images and of real images among the samples, by balls that reach to the
    [`NEIGHBORHOOD`]rd neighbour; torch-fidelity computes them.

    Raises:
        InputError: If a side has no more images than that.
    """
    if min(len(samples), len(reference)) <= NEIGHBORHOOD:
        raise InputError(
            f"precision and recall need more than {NEIGHBORHOOD} images on each side, got {len(samples)} samples and "
            f"{len(reference)} real images"
        )
    result = prc_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        prc_neighborhood=NEIGHBORHOOD,
        prc_batch_size=10_000,
        save_cpu_ram=len(samples) + len(reference) > 20_000,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


class PrecisionAndRecall(SetMeasure):
    """[`precision_recall`] with intervals of shares."""

    better: ClassVar = {"precision": "higher", "recall": "higher"}

    def between(self, samples: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
        precision, recall = precision_recall(samples, reference)
        return {
            name: Estimate(value=value, interval=share_interval(value, count), interval_method=MEAN_OF_IMAGES)
            for name, value, count in (("precision", precision, len(samples)), ("recall", recall, len(reference)))
        }
