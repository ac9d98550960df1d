"""Inception score (Salimans et al. 2016): how sure and how varied Inception's classes are. It knows no reference."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from ..confidence import GROUPS, JACKKNIFE, jackknife_interval, random_groups
from ..figure import Estimate
from .measure import ComparedReference, SampleFeatures, SetMeasure


def inception_score(logits: np.ndarray) -> Estimate:
    """Mean and deviation over ten splits of logits `(N, C)` (one split below 100 images), by torch-fidelity."""
    score = isc_features_to_metric(torch.from_numpy(logits), splits=10 if len(logits) >= 100 else 1)
    return Estimate(value=score[KEY_METRIC_ISC_MEAN], std=score[KEY_METRIC_ISC_STD])


def inception_score_interval(logits: np.ndarray) -> float | None:
    """Interval of the Inception score `exp(H(mean p) - mean H(p))` of logits `(N, C)`, all images as one split."""
    if len(logits) < 2 * GROUPS:
        return None
    groups = random_groups(len(logits))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probabilities = np.exp(logarithms)
    entropies = (probabilities * logarithms).sum(axis=1)
    sums = [probabilities[groups == group].sum(axis=0) for group in range(GROUPS)]

    def leave_out(group: int) -> float:
        kept = groups != group
        mean = (sum(sums) - sums[group]) / kept.sum()
        return float(np.exp(entropies[kept].mean() - (mean * np.log(mean.clip(min=1e-300))).sum()))

    return jackknife_interval(leave_out)


class InceptionScore(SetMeasure):
    """[`inception_score`] of networks that have logits."""

    better: ClassVar = {"IS": "higher"}
    has_reference = False

    def compare(self, samples: SampleFeatures, reference: ComparedReference) -> dict[str, Estimate]:
        if samples.logits is None:
            return {}
        score = inception_score(samples.logits)
        return {"IS": score.with_interval(inception_score_interval(samples.logits), JACKKNIFE)}
