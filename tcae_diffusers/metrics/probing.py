"""
What the tokens of an autoencoder know about the class, and how much of it survives in the latent (A1, A2 and the
structure loss).

A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; `1 - A2 / A1` is what
the paper calls structure loss. Features are averaged over positions (global average pooling), standardised, and probed
with a learning-rate sweep; k-NN is reported too because it trains nothing. What averaging over positions discards is
measured by [`token_structure`].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..data.images.image_sets import LabelledImages
from ..errors import InputError
from ..models.adapters import adapt
from ..models.object_finder import ObjectFinder
from .encoded_images import LATENT, TOKENS, extract, plan_structure
from .figure import Baseline, Figure
from .linear_probe import ProbeResult, linear_probe, nearest_neighbours, standardise, structure_loss
from .token_structure import INTERVAL_METHOD


def principal_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `(N, 2)` on the first two principal components, and the share of variance of each."""
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * values[:2], np.square(values[:2]) / max(float(np.square(values).sum()), 1e-12)


def neighbour_map(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE coordinates `(N, 2)` of the first 2,000 standardised features, by scikit-learn, which is no dependency.

    Raises:
        InputError: If scikit-learn is not installed, or there are fewer than 10 images.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("--tsne needs scikit-learn; install it with pip install scikit-learn") from error
    if len(features) < 10:
        raise InputError(f"--tsne needs at least 10 test images, got {len(features)}")
    (points,) = standardise(features[:2000])
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


@dataclass
class ProbingFigures:
    """What probes read at every depth.

    Args:
        figures (`list[Figure]`): Two of every depth, the structure loss where there are tokens, and the spatial
            structure of every depth that has a grid.
        pictures (`dict[str, dict]`): Per depth `points`, the test images on two principal components, their
            `variance_share`, and `tsne` where it was asked for.
        labels (`list[int]`): Classes of the test images. classes (`list[str]`): Names of the classes.
        not_measured (`dict[str, str]`): What a reader may miss, and why it is not there.
    """

    figures: list[Figure]
    pictures: dict[str, dict[str, Any]]
    labels: list[int]
    classes: list[str]
    not_measured: dict[str, str]


def evaluate_probing(
    model: nn.Module,
    train: LabelledImages,
    test: LabelledImages,
    batch_size: int = 32,
    token_module: str | None = None,
    epochs: int = 50,
    seed: int = 0,
    tsne: bool = False,
    finder: ObjectFinder | None = None,
) -> ProbingFigures:
    """Probes every known depth.

    Args:
        model: Any diffusers autoencoder.
        train, test: Labelled images to fit and to judge, of the same classes.
        token_module: As in [`encoded_images.hidden_states`].
        epochs, seed: Of the linear probe.
        tsne: Whether to lay out the test images by [`neighbour_map`] too.
        finder: Finds the objects that some measures of the spatial structure need; these are omitted without it.

    Raises:
        InputError: If the two sets have other classes or are the same images, or the size does not fit the model.
    """
    if train.fingerprint == test.fingerprint:
        raise InputError(
            f"--train {train.name} and --test {test.name} are the same images; name others to test on, which the "
            "probes were not fitted to"
        )
    if train.classes != test.classes:
        raise InputError(f"{train.name} and {test.name} have different classes; the probe needs the same ones")
    adapt(model).check_image_size(*train[0].shape[:2])
    structure = plan_structure(model, test, token_module, finder)
    fitted = extract(model, train, batch_size, token_module)
    judged = extract(model, test, batch_size, token_module, structure)
    classes = len(train.classes)
    majority = float((judged.labels == np.bincount(fitted.labels).argmax()).mean())
    baseline = Baseline("the largest class for every image", majority)
    figures, probes, pictures = [], {}, {}
    for name, features in fitted.features.items():
        arguments = (features, fitted.labels, judged.features[name], judged.labels, classes)
        probes[name] = linear_probe(*arguments, epochs=epochs, seed=seed)
        for label, result in (("linear probe", probes[name]), ("20-NN", nearest_neighbours(*arguments))):
            figures.append(_accuracy_figure(f"{label}, {name}", result, features.shape[1], baseline))
        points, share = principal_components(judged.features[name])
        pictures[name] = {"points": points.round(4).tolist(), "variance_share": share.tolist()}
        if tsne:
            pictures[name]["tsne"] = neighbour_map(judged.features[name], seed).round(3).tolist()
    not_measured = dict(structure.not_measured)
    if TOKENS in probes and probes[TOKENS].correct.any():
        figures.append(_structure_loss_figure(probes[TOKENS], probes[LATENT], seed))
    elif TOKENS in probes:
        not_measured["structure loss 1 - A2/A1"] = "the probe of the tokens was right about no image"
    figures += structure.figures(judged.structure)
    not_measured.update(structure.without_figure(judged.structure))
    return ProbingFigures(figures, pictures, judged.labels.tolist(), train.classes, not_measured)


def _accuracy_figure(name: str, probe: ProbeResult, dimensions: int, baseline: Baseline) -> Figure:
    details = {
        "balanced_accuracy": probe.balanced_accuracy,
        "dimensions": dimensions,
        "learning_rate": probe.learning_rate,
        "learning_rate_at_end_of_grid": probe.is_at_end_of_grid,
    }
    return Figure(
        name=name,
        value=probe.accuracy,
        interval=probe.interval,
        interval_method=INTERVAL_METHOD,
        samples=len(probe.labels),
        better="higher",
        baseline=baseline,
        details=details,
    )


def _structure_loss_figure(tokens: ProbeResult, latent: ProbeResult, seed: int) -> Figure:
    value, low, high = structure_loss(tokens, latent, seed=seed)
    return Figure(
        name="structure loss 1 - A2/A1",
        value=value,
        interval=(high - low) / 2,
        interval_method="95 % interval of a paired bootstrap over test images, 1,000 draws",
        samples=len(tokens.labels),
        better="lower",
        details={"interval_bounds": [low, high]},
    )
