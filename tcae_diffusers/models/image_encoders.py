"""Encoders of whole images for metrics: ConvNeXt V2, MAE, SigLIP 2 and CLIP of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .vision_network import IMAGENET_MEAN, IMAGENET_STD, Statistics, VisionNetwork, require_model_type, vit_name
from .whole_weights import load_whole

RESOLUTION = 224
# Width of the first stage, which every stage doubles, and blocks of all, of the published models (arXiv 2301.00808).
_CONVNEXT_SIZES = {
    (40, (2, 2, 6, 2)): "atto",
    (48, (2, 2, 6, 2)): "femto",
    (64, (2, 2, 6, 2)): "pico",
    (80, (2, 2, 8, 2)): "nano",
    (96, (3, 3, 9, 3)): "tiny",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (352, (3, 3, 27, 3)): "huge",
}
# SigLIP 1 has the class of SigLIP 2 of fixed size; they differ in the vocabulary of their texts.
_SIGLIP1_WORDS = 32_000


def convnext_name(family: str, config: Any) -> str:
    """Of a config, such as `convnextv2-base`; other sizes than the published ones are spelled out."""
    size = _CONVNEXT_SIZES.get((config.hidden_sizes[0], tuple(config.depths)))
    widths, depths = ("-".join(map(str, numbers)) for numbers in (config.hidden_sizes, config.depths))
    return f"{family}-{size or f'{widths}-depths-{depths}'}"


def sized_vit_name(family: str, config: Any) -> str:
    """[`vit_name`], with the side of the images that it was trained on where that is not 224 pixels."""
    pixels = "" if config.image_size == RESOLUTION else f"-{config.image_size}px"
    return vit_name(family, config) + pixels


def _last_map(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the last map, before the norm that the classifier begins with."""
    return network(pixels).last_hidden_state.mean(dim=(2, 3))


def _class_token(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Of all patches: no mask, and the patches in their order."""
    patches = (pixels.shape[-1] // network.config.patch_size) ** 2
    order = torch.arange(patches, device=pixels.device, dtype=pixels.dtype).expand(len(pixels), -1)
    return network(pixels, noise=order, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def _pooled(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    return network(pixels, interpolate_pos_encoding=True).pooler_output


@dataclass(frozen=True)
class Encoder:
    """
    How an encoder is loaded and read.

    Args:
        model_class (`str`): Of transformers. model_types (`Sequence[str]`): What the config may call itself.
        weights (`str`): Hub name of the weights, unless others are given.
        features (`Callable`): Network and normalised images `(B, 3, 224, 224)` to `(B, D)`.
        unused (`Sequence[str]`): Beginnings of the names of weights that a checkpoint holds besides.
        mean, std (`tuple`): Of the images that it was trained on.
        name (`Callable`): Key of [`ENCODERS`] and config to the name of the network.
        options (`Mapping`): That replace entries of the config.
    """

    model_class: str
    model_types: Sequence[str]
    weights: str
    features: Callable[[Any, torch.Tensor], torch.Tensor]
    unused: Sequence[str]
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD
    name: Callable[[str, Any], str] = sized_vit_name
    options: Mapping[str, Any] = field(default_factory=dict)


# The networks, their features and the 224 pixels are those of the authors of FDr (arXiv 2604.28190 and its code), but
# for CLIP, for which they pad images of 256 pixels. Mean and deviation are those of the weights' authors.
ENCODERS: dict[str, Encoder] = {
    "convnextv2": Encoder(
        "ConvNextV2Model",
        ("convnextv2",),
        "facebook/convnextv2-base-22k-224",
        _last_map,
        ("classifier.",),
        name=convnext_name,
    ),
    "mae": Encoder(
        "ViTMAEModel",
        ("vit_mae",),
        "facebook/vit-mae-large",
        _class_token,
        ("decoder.",),
        options={"mask_ratio": 0.0},
    ),
    "siglip2": Encoder(
        "SiglipVisionModel",
        ("siglip", "siglip_vision_model"),
        "google/siglip2-so400m-patch16-256",
        _pooled,
        ("text_model.", "logit_", "vision_model.embeddings.position_ids"),
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    ),
    "clip": Encoder(
        "CLIPVisionModel",
        ("clip", "clip_vision_model"),
        "openai/clip-vit-large-patch14",
        _pooled,
        ("text_model.", "logit_", "text_projection.", "visual_projection.", "vision_model.embeddings.position_ids"),
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


class ImageEncoder(VisionNetwork):
    """
    One of [`ENCODERS`]. Images are resized to 224x224 (bicubic, antialiased).

    Args:
        encoder (`str`): A key of [`ENCODERS`].
        pretrained_model_name_or_path (`str` or `Path`, *optional*):
            A folder of transformers' format with a model of that class or one that contains it.

    Attributes:
        name (`str`): Such as `clip-vitl14` or `convnextv2-base`. dimensions (`int`): Length of a feature vector.

    Raises:
        InputError: As [`VisionNetwork`].
    """

    def __init__(self, encoder: str, pretrained_model_name_or_path: str | Path | None = None):
        described = ENCODERS[encoder]

        def load(path: str) -> Any:
            import transformers

            config = require_model_type(path, described.model_types)
            if encoder == "siglip2" and config.get("text_config", {}).get("vocab_size", 0) == _SIGLIP1_WORDS:
                raise InputError(f"{path} holds a SigLIP 1; expected a SigLIP 2")
            model_class = getattr(transformers, described.model_class)
            return load_whole(model_class, path, described.unused, dtype=torch.float32, **described.options)

        weights = pretrained_model_name_or_path or described.weights
        super().__init__(load, encoder, weights, RESOLUTION, "bicubic", described.mean, described.std)
        self._features = described.features
        self.name = described.name(encoder, self.config)
        widths = getattr(self.config, "hidden_sizes", None)
        self.dimensions = int(widths[-1] if widths else self.config.hidden_size)
        self.freeze()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to features `(B, D)`."""
        return self._features(self.network, self.normalize(images))
