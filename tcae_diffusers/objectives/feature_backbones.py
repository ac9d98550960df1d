"""
Frozen networks whose features a loss or a discriminator looks at. Gradients pass through them to the images, never to
their own weights, and they stay in evaluation mode.

Every backbone takes images `(B, 3, H, W)` in [-1, 1], returns a list of feature maps `(B, C_i, h_i, w_i)`, finest
first, and has `name` and `feature_channels`. Another network becomes a backbone by offering the same three.
"""

from typing import Any

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..models.dino import DINO
from ..models.efficientnet_lite import EfficientNetLite
from ..models.efficientnet_lite_variants import EFFICIENTNET_LITES
from ..models.frozen_network import FrozenNetwork

FEATURE_BACKBONES = (*EFFICIENTNET_LITES, "dino")


def _enlarged(images: torch.Tensor, min_resolution: int) -> torch.Tensor:
    """Enlarges images whose shorter side is below `min_resolution` (bilinear); larger ones pass unchanged."""
    shorter = min(images.shape[-2:])
    if shorter >= min_resolution:
        return images
    scale = min_resolution / shorter
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


class EfficientNetLiteFeatures(FrozenNetwork):
    """
    Feature maps of [`EfficientNetLite`].

    Args:
        name (`str`): see [`EfficientNetLite`].
        blocks (`tuple[int, ...]`, *optional*):
            Blocks, counted from 0, whose output is returned; those that end the stages of stride 2, 4, 8, 16 and 32
            if not given.
        min_resolution (`int`, defaults to 64):
            Smaller images are enlarged to this shorter side first: at 32 px the last stage would be one pixel.
        weights_path (`str`, *optional*): see [`EfficientNetLite`].

    Raises:
        InputError: unknown name, no weights, a block that the network does not have, or a `min_resolution` below 32.
    """

    def __init__(
        self,
        name: str,
        blocks: tuple[int, ...] | None = None,
        min_resolution: int = 64,
        weights_path: str | None = None,
    ):
        super().__init__()
        self.network = EfficientNetLite(name, weights_path)
        self.name = self.network.name
        channels = self.network.block_channels
        blocks = self.network.variant.stage_ends if blocks is None else blocks
        if not blocks or any(not 0 <= block < len(channels) for block in blocks):
            raise InputError(f"blocks are {blocks}; expected one or more of 0 to {len(channels) - 1}")
        if min_resolution < 32:
            raise InputError(f"min_resolution is {min_resolution}; the network divides by 32, so expected at least 32")
        self.blocks = tuple(sorted(blocks))
        self.min_resolution = min_resolution
        self.feature_channels = [channels[block] for block in self.blocks]
        self.freeze()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.network.feature_maps(_enlarged(images, self.min_resolution), self.blocks)


class DINOFeatures(FrozenNetwork):
    """
    Patch tokens of [`DINO`], as feature maps.

    Args:
        pretrained_model_name_or_path (`str`): a folder of transformers' format, or a Hub name to download.
        num_layers (`int`, defaults to 4): evenly spaced layers, the last one among them (StyleGAN-T; RAE).
        resolution (`int`, defaults to 224): images are resized to this square.

    Raises:
        InputError: no weights, a `resolution` that the patches do not divide, or more layers than the model has.
    """

    def __init__(self, pretrained_model_name_or_path: str, num_layers: int = 4, resolution: int = 224):
        super().__init__()
        self.network = DINO(pretrained_model_name_or_path, resolution)
        self.name = self.network.name
        depth = self.network.config.num_hidden_layers
        if not 1 <= num_layers <= depth:
            raise InputError(f"num_layers is {num_layers}; the model has {depth}")
        self.layers = [round(depth * (i + 1) / num_layers) for i in range(num_layers)]
        self.feature_channels = [self.network.config.hidden_size] * num_layers
        self.freeze()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.network.feature_maps(images, self.layers)


def build_feature_backbone(name: str, path: str | None = None, **options: Any) -> FrozenNetwork:
    """
    Args:
        name (`str`): one of [`EFFICIENTNET_LITES`] (offline) or `"dino"`.
        path (`str`, *optional*): weights; for DINO a folder or a Hub name, `"facebook/dino-vits8"` when not given.
        options: of the class of that name.

    Raises:
        InputError: unknown name, or weights that are not available.
    """
    if name in EFFICIENTNET_LITES:
        return EfficientNetLiteFeatures(name, weights_path=path, **options)
    if name == "dino":
        return DINOFeatures(path or "facebook/dino-vits8", **options)
    raise InputError(f"feature backbone is {name!r}; expected one of {', '.join(FEATURE_BACKBONES)}")
