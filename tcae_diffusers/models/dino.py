"""DINO and DINOv2 transformers as a source of features for losses and metrics: loading and preprocessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import InputError
from .frozen_network import loads_pretrained_weights
from .vision_network import VisionNetwork, require_model_type, vit_name
from .whole_weights import load_whole

# Of those that are used where nothing else is said (arXiv 2104.14294, 2304.07193): no config need be downloaded to
# count what they cost.
PUBLISHED_SHAPES: dict[str, dict[str, Any]] = {
    "facebook/dino-vits8": {
        "model_type": "vit",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "patch_size": 8,
    },
    "facebook/dinov2-base": {
        "model_type": "dinov2",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 518,
        "patch_size": 14,
    },
}
MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")
_FAMILIES = {"vit": "dino", "dinov2_with_registers": "dinov2"}


def model_name(config: Any) -> str:
    """[`vit_name`] of a DINO that a config describes, such as `dino-vits8`, `dinov2-vitb14` or `dinov2-vitl14-reg`."""
    registers = "-reg" if getattr(config, "num_register_tokens", 0) else ""
    return vit_name(_FAMILIES.get(config.model_type, config.model_type), config) + registers


def _network(name: str) -> Any:
    """The model of transformers, or without its weights what has the same shape."""
    from transformers import AutoConfig, AutoModel

    if loads_pretrained_weights():
        require_model_type(name, MODEL_TYPES)
        # Half precision would be measured in, and figures would not say so.
        return load_whole(AutoModel, name, dtype=torch.float32)
    if name in PUBLISHED_SHAPES:
        return AutoModel.from_config(AutoConfig.for_model(**PUBLISHED_SHAPES[name]))
    return AutoModel.from_config(AutoConfig.from_pretrained(name))


class DINO(VisionNetwork):
    """
    A DINO or DINOv2 transformer. Images are resized to a square (antialiased) and normalised by ImageNet's mean and
    deviation. Gradients pass through it to the images.

    Args:
        pretrained_model_name_or_path (`str` or `Path`): a folder of transformers' format, or a Hub name to download.
        resolution (`int`, defaults to 224): side of the square, in pixels.
        interpolation (`str`, defaults to `"bilinear"`):
            `"bilinear"`, or `"bicubic"` as in DINOv2's own evaluation, whose overshoot is clamped.

    Attributes:
        name (`str`): see [`model_name`]. config: of transformers.
        token_width (`int`), token_pixels (`int`): channels of a patch token, and pixels along a side of a patch.

    Raises:
        InputError: no model in the folder, and no download; or a `resolution` that the patches do not divide.
    """

    def __init__(
        self,
        pretrained_model_name_or_path: str | Path,
        resolution: int = 224,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ):
        super().__init__(_network, "DINO", pretrained_model_name_or_path, resolution, interpolation)
        self.token_width, self.token_pixels = self.config.hidden_size, self.config.patch_size
        if resolution % self.config.patch_size:
            raise InputError(
                f"resolution {resolution} is not a multiple of the model's patch size {self.config.patch_size}"
            )
        self.name = model_name(self.config)
        # DINO's own class adapts its position table only on demand; DINOv2's always does and has no such argument.
        self.options = {"interpolate_pos_encoding": True} if self.config.model_type == "vit" else {}
        self.freeze()

    def feature_maps(self, images: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Patch tokens after each of `layers`, 1 to the last, as maps `(B, D, h, w)`, for images in [-1, 1]."""
        output = self.network(self.normalize(images), output_hidden_states=True, **self.options)
        return [self._patch_map(output.hidden_states[layer]) for layer in layers]

    def token_map(self, images: torch.Tensor) -> torch.Tensor:
        """Patch tokens of the last layer, normalised, as a map `(B, D, h, w)`, for images in [-1, 1]."""
        tokens = self.network(self.normalize(images), **self.options).last_hidden_state
        return self._patch_map(tokens)

    def _patch_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens of patches among all tokens `(B, N, D)`, as a map."""
        prefix_tokens = 1 + getattr(self.config, "num_register_tokens", 0)
        side = self.resolution // self.config.patch_size
        return tokens[:, prefix_tokens:].transpose(1, 2).unflatten(2, (side, side))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to the class token of the last layer, normalised: `(B, D)`."""
        return self.network(self.normalize(images), **self.options).last_hidden_state[:, 0]
