"""
What the tokens of an autoencoder know about the class, and how much of it survives in the latent (A1, A2 and the
structure loss).

A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; `1 - A2 / A1` is what
the paper calls structure loss. Features are averaged over positions (global average pooling), standardised, and probed
with a learning-rate sweep; k-NN is reported too because it trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import LabelledImages
from ..data.images.pixel_range import to_signed
from ..errors import InputError
from ..models.adapters import adapt
from .figure import Baseline, Figure
from .linear_probe import ProbeResult, linear_probe, nearest_neighbours, standardise, structure_loss
from .rank_batches import rank_batches

TOKENS, LATENT = "tokens", "latent"


def pool_positions(hidden: torch.Tensor) -> torch.Tensor:
    """Mean over positions: tokens `(B, N, D)` or a map `(B, C, h, w)` to `(B, D)`."""
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    if hidden.ndim == 3:
        return hidden.mean(dim=1)
    raise InputError(f"cannot pool features of shape {tuple(hidden.shape)}; expected tokens or a map")


@torch.inference_mode()
def representations(
    model: nn.Module, pixels: torch.Tensor, token_module: str | None = None
) -> dict[str, torch.Tensor]:
    """Pooled features of images at every depth that is known, `{name: (B, D)}`, float32 on the CPU.

    Args:
        model: Any diffusers autoencoder. pixels: `(B, 3, H, W)` in [-1, 1].
        token_module: Name of the submodule whose output counts as tokens, for classes whose adapter names none.
    """
    found: dict[str, torch.Tensor] = {}
    adapter = adapt(model)
    if token_module is None and adapter.token_places:
        features = adapter.token_encoder()(pixels)
        if features.first_stage is not None:
            found["first stage"] = pool_positions(features.first_stage)
        found[TOKENS] = pool_positions(features.last)
        found["class token"] = features.class_token
        found[LATENT] = pool_positions(adapter.training_latent(features.latent)[0])
    else:
        handle = None
        if token_module is not None:
            try:
                submodule = model.get_submodule(token_module)
            except AttributeError as error:
                names = ", ".join(name for name, _ in model.named_children())
                raise InputError(f"{type(model).__name__} has no module {token_module!r}; it has {names}") from error

            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[TOKENS] = pool_positions(output[0] if isinstance(output, tuple) else output)

            handle = submodule.register_forward_hook(keep)
        try:
            found[LATENT] = pool_positions(adapt(model).encode(pixels))
        finally:
            if handle is not None:
                handle.remove()
        if token_module is not None and TOKENS not in found:
            raise InputError(f"module {token_module!r} was not called while encoding; pass a module of the encoder")
    return {name: values.float().cpu() for name, values in found.items()}


def extract(
    model: nn.Module,
    images: LabelledImages,
    batch_size: int = 32,
    token_module: str | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pooled features and labels of all images, over all ranks, in order: `({name: (N, D)}, (N,))`."""
    state = PartialState()
    parameter = next(model.parameters())
    parts: dict[str, list[np.ndarray]] = {}
    labels: list[int] = []
    for chosen, batch in rank_batches(images, batch_size, f"encode {images.name}"):
        labels += images.labels[chosen.start : chosen.stop]
        pixels = to_signed(batch, parameter.device).to(parameter.dtype)
        for name, values in representations(model, pixels, token_module).items():
            parts.setdefault(name, []).append(values.numpy())
    own = {name: np.concatenate(values) for name, values in parts.items()}
    gathered = [part for part in gather_in_rank_order((own, labels), state) if part[1]]
    features = {name: np.concatenate([part[0][name] for part in gathered]) for name in gathered[0][0]}
    return features, np.concatenate([part[1] for part in gathered])


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
        figures (`list[Figure]`): Two of every depth, and the structure loss where there are tokens.
        pictures (`dict[str, dict]`): Per depth `points`, the test images on two principal components, their
            `variance_share`, and `tsne` where it was asked for.
        labels (`list[int]`): Classes of the test images. classes (`list[str]`): Names of the classes.
    """

    figures: list[Figure]
    pictures: dict[str, dict[str, Any]]
    labels: list[int]
    classes: list[str]


def evaluate_probing(
    model: nn.Module,
    train: LabelledImages,
    test: LabelledImages,
    batch_size: int = 32,
    token_module: str | None = None,
    epochs: int = 50,
    seed: int = 0,
    tsne: bool = False,
) -> ProbingFigures:
    """Probes every known depth.

    Args:
        model: Any diffusers autoencoder.
        train, test: Labelled images to fit and to judge, of the same classes.
        token_module: As in [`representations`].
        epochs, seed: Of the linear probe.
        tsne: Whether to lay out the test images by [`neighbour_map`] too.

    Raises:
        InputError: If the two sets have other classes, or the size does not fit the model.
    """
    if train.classes != test.classes:
        raise InputError(f"{train.name} and {test.name} have different classes; the probe needs the same ones")
    adapt(model).check_image_size(*train[0].shape[:2])
    train_features, train_labels = extract(model, train, batch_size, token_module)
    test_features, test_labels = extract(model, test, batch_size, token_module)
    classes = len(train.classes)
    majority = float((test_labels == np.bincount(train_labels).argmax()).mean())
    baseline = Baseline("the largest class for every image", majority)
    figures, probes, pictures = [], {}, {}
    for name, features in train_features.items():
        arguments = (features, train_labels, test_features[name], test_labels, classes)
        probes[name] = linear_probe(*arguments, epochs=epochs, seed=seed)
        for label, result in (("linear probe", probes[name]), ("20-NN", nearest_neighbours(*arguments))):
            figures.append(_accuracy_figure(f"{label}, {name}", result, features.shape[1], baseline))
        points, share = principal_components(test_features[name])
        pictures[name] = {"points": points.round(4).tolist(), "variance_share": share.tolist()}
        if tsne:
            pictures[name]["tsne"] = neighbour_map(test_features[name], seed).round(3).tolist()
    if TOKENS in probes:
        figures.append(_structure_loss_figure(probes[TOKENS], probes[LATENT], seed))
    return ProbingFigures(figures, pictures, test_labels.tolist(), train.classes)


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
        samples=len(tokens.labels),
        better="lower",
        details={"interval_bounds": [low, high]},
    )
