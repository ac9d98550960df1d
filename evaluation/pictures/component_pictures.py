"""Pictures of tokens and latents: at every position the first three principal components as red, green and blue."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tcae_diffusers.data.images.image_sets import ImageSet, to_signed_unit, uint8_batches
from tcae_diffusers.models.adapters import encode_to_latent
from tcae_diffusers.models.autoencoder_tc import tokens_to_map

from .contact_sheet import contact_sheet, png_bytes


@torch.inference_mode()
def feature_maps(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Maps `(B, C, h, w)` of uint8 images `(B, 3, H, W)`: the latent, and both token stages of an AutoencoderTC."""
    parameter = next(model.parameters())
    pixels = to_signed_unit(images.to(parameter.device)).to(parameter.dtype)
    maps: dict[str, torch.Tensor] = {}
    if hasattr(model, "forward_features"):
        features = model.forward_features(pixels)
        maps["tokens, first stage"] = tokens_to_map(features.first_stage, features.first_stage_grid)
        maps["tokens"] = tokens_to_map(features.last, features.last_grid)
    maps["latent"] = encode_to_latent(model, pixels)
    return {name: values.float().cpu() for name, values in maps.items()}


def components_as_colours(maps: torch.Tensor) -> np.ndarray:
    """Maps `(B, C, h, w)` to uint8 `(B, h, w, 3)`: three principal components over all positions of all images.

    Each component is stretched so that its 2nd and 98th percentile are black and full colour. Signs and order of
    components are arbitrary: colours can be compared within a picture, not between two.
    """
    count, channels, height, width = maps.shape
    vectors = maps.permute(0, 2, 3, 1).reshape(-1, channels).double().numpy()
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    points = centred @ directions[:, ::-1][:, :3]
    low, high = np.percentile(points, (2, 98), axis=0)
    points = ((points - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colours = np.zeros((len(points), 3))
    colours[:, : points.shape[1]] = points
    return (colours.reshape(count, height, width, 3) * 255).round().astype(np.uint8)


def component_sheet(model: nn.Module, images: ImageSet, indices: list[int]) -> tuple[bytes, list[str]]:
    """PNG with the images in the first row and their maps below, and the name of each row."""
    (originals,) = uint8_batches(images, len(indices), indices)
    size = originals.shape[-2:]
    rows, names = [list(originals.permute(0, 2, 3, 1).numpy())], ["image"]
    for name, maps in feature_maps(model, originals).items():
        colours = torch.from_numpy(components_as_colours(maps)).permute(0, 3, 1, 2)
        enlarged = torch.nn.functional.interpolate(colours, size=size, mode="nearest")
        rows.append(list(enlarged.permute(0, 2, 3, 1).numpy()))
        names.append(name)
    return png_bytes(contact_sheet(rows)), names
