"""Tokens and latents as pictures: at every position the first three principal components as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..models.adapters import adapt
from ..models.tcae.autoencoder_tc import tokens_to_map


@torch.no_grad()
def feature_maps(
    model: nn.Module, images: torch.Tensor, latent: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    What an autoencoder makes of images, as maps `(B, C, h, w)` in fp32 on the CPU: the tokens of each stage, where the
    model gives them, and the latent.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): In [-1, 1], in the model's dtype and on its device.
        latent (`torch.Tensor`, *optional*): Of these images, where it is known already.
    """
    maps: dict[str, torch.Tensor] = {}
    adapter = adapt(model)
    if adapter.token_places:
        features = adapter.token_encoder()(images)
        if features.first_stage is not None and features.first_stage_grid != features.last_grid:
            maps["first-stage tokens"] = tokens_to_map(features.first_stage, tuple(features.first_stage_grid))
        maps["last tokens"] = tokens_to_map(features.last, tuple(features.last_grid))
    maps["latent"] = adapter.encode(images) if latent is None else latent
    return {name: values.float().cpu() for name, values in maps.items()}


def component_colours(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """
    The first three principal components of all positions of all images as red, green and blue.

    Colours can be compared within a picture, not between two: order and meaning of the components are arbitrary. Fewer
    channels than three leave colours black.

    Args:
        maps (`torch.Tensor` of shape `(B, C, h, w)`): Features, on the CPU.
        size (`Sequence[int]`): Height and width of the result; positions become squares of one colour.

    Returns:
        `torch.Tensor` of shape `(B, 3, *size)`, uint8; each component spans 0 to 255 from its 2nd to its 98th
        percentile.
    """
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2).double()
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    vectors = vectors.flip(1)[:, :3]
    # Eigenvectors have no sign of their own; one that is fixed keeps colours from flipping between two pictures.
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * vectors[largest, torch.arange(vectors.shape[1])].sign()
    values = torch.nn.functional.pad(rows @ vectors, (0, 3 - vectors.shape[1]))
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98], dtype=torch.double), dim=0)
    values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) * 255
    colours = values.round().to(torch.uint8).unflatten(0, (maps.shape[0], *maps.shape[2:])).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(colours, size=tuple(size), mode="nearest")
