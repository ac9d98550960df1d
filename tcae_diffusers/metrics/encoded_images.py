"""Images as an autoencoder sees them: what it makes of them at every depth, pooled, and its spatial structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import LabelledImages, uint8_batches
from ..data.images.pixel_range import to_signed
from ..errors import InputError
from ..models.adapters import adapt
from ..models.object_finder import ObjectFinder
from ..models.tcae.autoencoder_tc import tokens_to_map
from .rank_batches import rank_batches
from .token_structure import StructurePlan

TOKENS, LATENT = "tokens", "latent"


def pool_positions(hidden: torch.Tensor) -> torch.Tensor:
    """Mean over positions: tokens `(B, N, D)` or a map `(B, C, h, w)` to `(B, D)`; vectors `(B, D)` stay."""
    if hidden.ndim == 2:
        return hidden
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    if hidden.ndim == 3:
        return hidden.mean(dim=1)
    raise InputError(f"cannot pool features of shape {tuple(hidden.shape)}; expected tokens, a map or vectors")


@torch.inference_mode()
def hidden_states(model: nn.Module, pixels: torch.Tensor, token_module: str | None = None) -> dict[str, torch.Tensor]:
    """
    What a model makes of images at every depth that is known: maps `(B, D, h, w)` where the grid is known, else tokens
    `(B, N, D)`, and the class token `(B, D)`.

    Args:
        model: Any diffusers autoencoder. pixels: `(B, 3, H, W)` in [-1, 1].
        token_module: Name of the submodule whose output counts as tokens, for classes whose adapter names none.

    Raises:
        InputError: If the model has no such module, or does not call it to encode.
    """
    found: dict[str, torch.Tensor] = {}
    adapter = adapt(model)
    if token_module is None and adapter.token_places:
        features = adapter.token_encoder()(pixels)
        if features.first_stage is not None:
            found["first stage"] = tokens_to_map(features.first_stage, tuple(features.first_stage_grid))
        found[TOKENS] = tokens_to_map(features.last, tuple(features.last_grid))
        found["class token"] = features.class_token
        found[LATENT] = adapter.training_latent(features.latent)[0]
    else:
        handle = None
        if token_module is not None:
            try:
                submodule = model.get_submodule(token_module)
            except AttributeError as error:
                names = ", ".join(name for name, _ in model.named_children())
                raise InputError(f"{type(model).__name__} has no module {token_module!r}; it has {names}") from error

            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                # What follows may work in place.
                found[TOKENS] = (output[0] if isinstance(output, tuple) else output).clone()

            handle = submodule.register_forward_hook(keep)
        try:
            found[LATENT] = adapt(model).encode(pixels)
        finally:
            if handle is not None:
                handle.remove()
        if token_module is not None and TOKENS not in found:
            raise InputError(f"module {token_module!r} was not called while encoding; pass a module of the encoder")
    return found


def pooled(hidden: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """[`pool_positions`] of every depth, float32 on the CPU."""
    return {name: pool_positions(values).float().cpu() for name, values in hidden.items()}


@dataclass(frozen=True)
class EncodedImages:
    """
    All images of a set, in order.

    Args:
        features (`dict[str, np.ndarray]`): Pooled, by depth `(N, D)`.
        labels (`np.ndarray` of shape `(N,)`): Classes.
        structure (`dict[str, np.ndarray]`): Values `(N,)` of the spatial structure, see [`StructurePlan`].
    """

    features: dict[str, np.ndarray]
    labels: np.ndarray
    structure: dict[str, np.ndarray]


def plan_structure(
    model: nn.Module, images: LabelledImages, token_module: str | None = None, finder: ObjectFinder | None = None
) -> StructurePlan:
    """What there is to measure of the spatial structure, found on one image."""
    (batch,) = uint8_batches(images, 1, [0])
    return StructurePlan.of(hidden_states(model, _pixels(model, batch), token_module), finder)


def _pixels(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    parameter = next(model.parameters())
    return to_signed(batch, parameter.device).to(parameter.dtype)


def extract(
    model: nn.Module,
    images: LabelledImages,
    batch_size: int = 32,
    token_module: str | None = None,
    structure: StructurePlan | None = None,
) -> EncodedImages:
    """Encodes all images, over all ranks; with a plan their spatial structure is measured too."""
    state = PartialState()
    parts: tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]] = {}, {}
    labels: list[int] = []
    for chosen, batch in rank_batches(images, batch_size, f"encode {images.name}"):
        labels += images.labels[chosen.start : chosen.stop]
        hidden = hidden_states(model, _pixels(model, batch), token_module)
        features = {name: values.numpy() for name, values in pooled(hidden).items()}
        of_structure = structure.values(hidden, batch, chosen) if structure else {}
        for kept, found in zip(parts, (features, of_structure), strict=True):
            for name, values in found.items():
                kept.setdefault(name, []).append(values)
    own = [{name: np.concatenate(values) for name, values in kept.items()} for kept in parts]
    gathered = [part for part in gather_in_rank_order((*own, labels), state) if part[-1]]
    joined = [
        {name: np.concatenate([part[place][name] for part in gathered]) for name in gathered[0][place]}
        for place in range(2)
    ]
    return EncodedImages(joined[0], np.concatenate([part[-1] for part in gathered]), joined[1])
