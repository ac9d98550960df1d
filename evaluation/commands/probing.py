"""What the tokens know about the class, and how much of it survives in the latent (A1, A2 and the structure loss).

A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; `1 - A2 / A1` is what
the paper calls structure loss. Features are averaged over positions (global average pooling), standardised, and probed
with a learning-rate sweep; k-NN stands beside it because it trains nothing. Any diffusers autoencoder has a latent;
tokens are known for AutoencoderTC, and for others by `--token_module`, the name of a submodule of the encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm

from tcae_diffusers.data.distributed import gather_in_rank_order, rank_range
from tcae_diffusers.data.images.image_sets import SourceImages, open_data_source, to_signed_unit
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json
from tcae_diffusers.metrics.linear_probe import linear_probe, nearest_neighbours, standardise, structure_loss
from tcae_diffusers.models.adapters import check_image_size, encode_to_latent, image_size, load_autoencoder
from tcae_diffusers.models.fingerprint import model_fingerprint

from ..results.provenance import provenance

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
        token_module: Name of the submodule whose output counts as tokens, for models other than AutoencoderTC.
    """
    found: dict[str, torch.Tensor] = {}
    if token_module is None and hasattr(model, "forward_features"):
        features = model.forward_features(pixels)
        found["first stage"] = pool_positions(features.first_stage)
        found[TOKENS] = pool_positions(features.last)
        found["class token"] = features.class_token
        found[LATENT] = pool_positions(features.latent)
    else:
        handle = None
        if token_module is not None:
            try:
                submodule = model.get_submodule(token_module)
            except AttributeError as error:
                names = ", ".join(name for name, _ in model.named_children())
                raise InputError(f"{type(model).__name__} has no module {token_module!r}; it has {names}") from error

            def keep(_module, _inputs, output):
                found[TOKENS] = pool_positions(output[0] if isinstance(output, tuple) else output)

            handle = submodule.register_forward_hook(keep)
        try:
            found[LATENT] = pool_positions(encode_to_latent(model, pixels))
        finally:
            if handle is not None:
                handle.remove()
        if token_module is not None and TOKENS not in found:
            raise InputError(f"module {token_module!r} did not run while encoding; name one of the encoder")
    return {name: values.float().cpu() for name, values in found.items()}


def extract(
    model: nn.Module,
    images: SourceImages,
    batch_size: int = 32,
    token_module: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pooled features and labels of all images, over all ranks, in order: `({name: (N, D)}, (N,))`."""
    state = PartialState()
    parameter = next(model.parameters())
    indices = rank_range(len(images), state.process_index, state.num_processes)
    parts: dict[str, list[np.ndarray]] = {}
    labels: list[int] = []
    hidden = not (progress and state.is_main_process)
    with tqdm(total=len(indices), desc=f"encode {images.name}", unit="image", disable=hidden) as bar:
        for start in range(0, len(indices), batch_size):
            batch = [images.labelled(index) for index in indices[start : start + batch_size]]
            labels += [label for _, label in batch]
            pixels = torch.from_numpy(np.stack([image for image, _ in batch])).permute(0, 3, 1, 2)
            pixels = to_signed_unit(pixels.to(parameter.device)).to(parameter.dtype)
            for name, values in representations(model, pixels, token_module).items():
                parts.setdefault(name, []).append(values.numpy())
            bar.update(len(batch))
    own = {name: np.concatenate(values) for name, values in parts.items()}
    gathered = [part for part in gather_in_rank_order((own, labels), state) if part[1]]
    features = {name: np.concatenate([part[0][name] for part in gathered]) for name in gathered[0][0]}
    return features, np.concatenate([part[1] for part in gathered])


def principal_components(features: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `(N, count)` on the first principal components, and the share of variance of each."""
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :count] * values[:count], np.square(values[:count]) / max(float(np.square(values).sum()), 1e-12)


def neighbour_map(features: np.ndarray, seed: int = 0, limit: int = 2000) -> np.ndarray:
    """t-SNE coordinates `(min(N, limit), 2)` of standardised features, by scikit-learn, which is no dependency.

    Raises:
        InputError: If scikit-learn is not installed, or there are fewer than 10 images.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("--tsne needs scikit-learn; install it with pip install scikit-learn") from error
    if len(features) < 10:
        raise InputError(f"--tsne needs at least 10 test images, got {len(features)}")
    (points,) = standardise(features[:limit])
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


def evaluate_probing(
    model: nn.Module,
    train: SourceImages,
    test: SourceImages,
    batch_size: int = 32,
    token_module: str | None = None,
    epochs: int = 50,
    seed: int = 0,
    progress: bool = True,
    tsne: bool = False,
) -> dict[str, Any]:
    """Probes every known depth and returns `figures` (as in other results) and `pictures` (two principal components).

    Raises:
        InputError: If the two sets have other classes, or the size does not fit the model.
    """
    if train.classes != test.classes:
        raise InputError(f"{train.name} and {test.name} have different classes; the probe needs the same ones")
    check_image_size(model, *train[0].shape[:2])
    train_features, train_labels = extract(model, train, batch_size, token_module, progress)
    test_features, test_labels = extract(model, test, batch_size, token_module, progress)
    classes = len(train.classes)
    majority = float((test_labels == np.bincount(train_labels).argmax()).mean())
    baseline = {"name": "the largest class for every image", "value": majority}
    figures, probes, pictures = [], {}, {}
    for name, features in train_features.items():
        arguments = (features, train_labels, test_features[name], test_labels, classes)
        probes[name] = linear_probe(*arguments, epochs=epochs, seed=seed)
        for label, result in (("linear probe", probes[name]), ("20-NN", nearest_neighbours(*arguments))):
            figures.append(
                {
                    "name": f"{label}, {name}",
                    "value": result.accuracy,
                    "interval": result.interval,
                    "balanced_accuracy": result.balanced_accuracy,
                    "samples": len(test_labels),
                    "dimensions": features.shape[1],
                    "learning_rate": result.learning_rate,
                    "learning_rate_at_end_of_grid": result.is_at_end_of_grid,
                    "better": "higher",
                    "baseline": baseline,
                }
            )
        points, share = principal_components(test_features[name])
        pictures[name] = {"points": points.round(4).tolist(), "variance_share": share.tolist()}
        if tsne:
            pictures[name]["tsne"] = neighbour_map(test_features[name], seed).round(3).tolist()
    if TOKENS in probes:
        value, low, high = structure_loss(probes[TOKENS], probes[LATENT], seed=seed)
        figures.append(
            {
                "name": "structure loss 1 - A2/A1",
                "value": value,
                "interval": (high - low) / 2,
                "interval_bounds": [low, high],
                "samples": len(test_labels),
                "better": "lower",
            }
        )
    return {"figures": figures, "pictures": pictures, "labels": test_labels.tolist(), "classes": train.classes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--autoencoder", required=True, help="saved folder, pipeline folder or Hub name")
    parser.add_argument("--train", default="openmoji:train", help="labelled images to fit (default: %(default)s)")
    parser.add_argument("--test", default="openmoji:heldout", help="labelled images to judge (default: %(default)s)")
    parser.add_argument("--resolution", type=int, help="image side in pixels (default: the model's sample_size)")
    parser.add_argument(
        "--token_module", help="submodule whose output is the tokens, for other models than AutoencoderTC"
    )
    parser.add_argument("--tsne", action="store_true", help="also a t-SNE picture of each depth (needs scikit-learn)")
    parser.add_argument("--epochs", type=int, default=50, help="passes of the linear probe (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument("--output", type=Path, required=True, help="folder for probing.json")


def run(args: argparse.Namespace) -> int:
    if args.epochs < 1 or args.batch_size < 1:
        raise InputError(f"--epochs {args.epochs} and --batch_size {args.batch_size} must be at least 1")
    state = PartialState(cpu=args.device == "cpu")
    model = load_autoencoder(args.autoencoder, args.device or state.device)
    resolution = args.resolution or image_size(model)
    train, test = open_data_source(args.train, resolution), open_data_source(args.test, resolution)
    result = evaluate_probing(
        model, train, test, args.batch_size, args.token_module, args.epochs, args.seed, tsne=args.tsne
    )
    if not state.is_main_process:
        return 0
    settings = {"train": args.train, "test": args.test, "epochs": args.epochs, "seed": args.seed}
    write_json(
        args.output / "probing.json",
        {
            "kind": "probing",
            **result,
            "autoencoder": {"path": args.autoencoder, "class": type(model).__name__, **model_fingerprint(model)},
            "data": {"spec": args.test, "images": len(test), "attribution": test.attribution},
            **provenance(**settings, token_module=args.token_module, resolution=resolution, ranks=state.num_processes),
        },
    )
    for figure in result["figures"]:
        line = f"{figure['name']}: {figure['value']:.4f} ± {figure['interval']:.4f} over {figure['samples']} images"
        if figure.get("learning_rate"):
            line += f", learning rate {figure['learning_rate']:g}"
        baseline = figure.get("baseline")
        print(f"{line}  ({baseline['name']}: {baseline['value']:.4f})" if baseline else line)
    return 0
