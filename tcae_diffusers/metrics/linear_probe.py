"""How much of the class can be read off features: a linear probe with learning-rate sweep, and nearest neighbours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from .confidence import share_interval

logger = logging.getLogger(__name__)

# Of standardised features, whose best rate lies in the middle. One at an end would be a limit of the grid and no
# optimum, and accuracies found there could not be compared.
LEARNING_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_BATCH = 256
_NEIGHBOURS = 20


@dataclass
class ProbeResult:
    """Outcome of one probe on held-out images.

    Args:
        correct (`np.ndarray`): Whether each test image was classified right, bool `(N,)`.
        labels (`np.ndarray`): Its true class.
        learning_rate (`float` or `None`): The one that the sweep chose; of [`LEARNING_RATES`].
    """

    correct: np.ndarray
    labels: np.ndarray
    learning_rate: float | None = None

    @property
    def is_at_end_of_grid(self) -> bool:
        """Whether the best learning rate may lie beyond those that were tried."""
        return self.learning_rate in (LEARNING_RATES[0], LEARNING_RATES[-1])

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over classes of the share that is right: a majority guess scores one over the number of classes."""
        return float(np.mean([self.correct[self.labels == label].mean() for label in np.unique(self.labels)]))

    @property
    def interval(self) -> float:
        """Half width of the 95 % interval of the accuracy."""
        return share_interval(self.accuracy, len(self.correct))


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Zero mean and unit variance per dimension, measured on `train`; dimensions without variance become zero."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std > 1e-6 * max(float(std.max()), 1e-12), 1.0 / np.maximum(std, 1e-12), 0.0)
    return [((part - mean) * scale).astype(np.float32) for part in (train, *others)]


def _fit(
    features: torch.Tensor, labels: torch.Tensor, classes: int, rates: Sequence[float], epochs: int, seed: int
) -> torch.Tensor:
    """Trains one linear classifier per learning rate side by side on the same batches: weights `(R, D + 1, C)`."""
    generator = torch.Generator().manual_seed(seed)
    with_bias = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    weights = torch.zeros(len(rates), with_bias.shape[1], classes)
    velocity, rate = torch.zeros_like(weights), torch.tensor(rates).view(-1, 1, 1)
    steps, step = epochs * -(-len(features) // _BATCH), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(features), generator=generator).split(_BATCH):
            x = with_bias[chosen]
            error = (x @ weights).softmax(-1) - F.one_hot(labels[chosen], classes)
            gradient = x.T @ error / len(chosen)
            velocity = 0.9 * velocity + gradient
            weights = weights - rate * (0.5 + 0.5 * np.cos(np.pi * step / steps)) * velocity
            step += 1
    return weights


def _predict(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return (torch.cat([features, torch.ones(len(features), 1)], dim=1) @ weights).argmax(-1)


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    epochs: int = 50,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression by SGD with momentum 0.9 and a cosine schedule, as DINOv2 probes.

    The learning rate is chosen on a fifth of the training images (fixed by `seed`), then the probe is trained on all
    of them. Test images choose nothing. A choice at an end of the grid is warned of, since a better rate may lie
    beyond it.

    Args:
        train, test: Features `(N, D)`; they are standardised with the training set's mean and deviation.
        train_labels, test_labels: Class indices `(N,)`. classes: Number of classes.
    """
    if len(np.unique(train_labels)) < 2:
        raise InputError("a probe needs training images of at least 2 classes")
    if len(train) < 5:
        raise InputError(f"a probe needs at least 5 training images, a fifth of them to choose by; got {len(train)}")
    fitted, judged = map(torch.from_numpy, standardise(train, test))
    labels = torch.as_tensor(train_labels, dtype=torch.long)
    order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(seed))
    chosen, validation = order[len(fitted) // 5 :], order[: len(fitted) // 5]
    weights = _fit(fitted[chosen], labels[chosen], classes, LEARNING_RATES, epochs, seed)
    accuracies = (_predict(weights, fitted[validation]) == labels[validation]).float().mean(dim=1)
    # Several rates may be equally good on few images: the middle one of them is the safest.
    tied = torch.nonzero(accuracies == accuracies.max()).flatten().tolist()
    best = tied[(len(tied) - 1) // 2]
    weights = _fit(fitted, labels, classes, LEARNING_RATES[best : best + 1], epochs, seed)
    correct = (_predict(weights, judged)[0] == torch.as_tensor(test_labels)).numpy()
    result = ProbeResult(correct, np.asarray(test_labels), LEARNING_RATES[best])
    if result.is_at_end_of_grid:
        logger.warning(
            f"the linear probe chose learning rate {result.learning_rate:g}, an endpoint of the grid from "
            f"{LEARNING_RATES[0]:g} to {LEARNING_RATES[-1]:g}: its accuracy may be too low"
        )
    return result


def nearest_neighbours(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, classes: int
) -> ProbeResult:
    """20-NN by cosine similarity of standardised features, votes weighted by `exp(similarity / 0.07)` (as DINO)."""
    known, asked = (F.normalize(torch.from_numpy(part), dim=1) for part in standardise(train, test))
    labels = torch.as_tensor(train_labels, dtype=torch.long)
    predictions = []
    for part in asked.split(1024):
        similarity, index = (part @ known.T).topk(min(_NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[index], (similarity / 0.07).exp())
        predictions.append(votes.argmax(dim=1))
    correct = (torch.cat(predictions) == torch.as_tensor(test_labels)).numpy()
    return ProbeResult(correct, np.asarray(test_labels))


def structure_loss(tokens: ProbeResult, latent: ProbeResult, seed: int = 0) -> tuple[float, float, float]:
    """`1 - A2 / A1`: the share of readable class structure that does not survive the bottleneck (TC-AE, section on
    structure).

    Returns:
        `(value, low, high)` with the 95 % interval of a paired bootstrap, 1,000 draws, over the test images.
    """
    value = 1 - latent.accuracy / tokens.accuracy
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(1000):
        chosen = generator.integers(0, len(tokens.correct), len(tokens.correct))
        a1 = tokens.correct[chosen].mean()
        if a1 > 0:
            values.append(1 - latent.correct[chosen].mean() / a1)
    low, high = np.percentile(values, (2.5, 97.5))
    return float(value), float(low), float(high)
