"""
Tokens of clean images that a diffusion transformer is aligned with (REPA, arXiv 2410.06940): those of the autoencoder
itself, which a self-supervised method has trained, or of a frozen network. As maps `(B, D, h, w)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin

from ..errors import InputError
from ..files import sha256_of_tensors
from .adapters import adapt
from .dino import DINO
from .efficientnet_lite import EfficientNetLite
from .efficientnet_lite_variants import EFFICIENTNET_LITES
from .frozen_network import FrozenNetwork

# What DINOv2 is where nothing else is said.
DINOV2 = "facebook/dinov2-base"
# Sides that the networks are used at elsewhere in this package.
RESOLUTIONS = {"dinov2": 224, **{name: variant.resolution for name, variant in EFFICIENTNET_LITES.items()}}


def resize_token_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Tokens `(B, D, h, w)` on another grid: along a side with more tokens than `grid` has, each new token is the mean of
    those that it covers; along one with fewer, tokens are interpolated linearly.
    """
    height, width = tokens.shape[-2:]
    smaller = (min(height, grid[0]), min(width, grid[1]))
    if smaller != (height, width):
        tokens = F.adaptive_avg_pool2d(tokens, smaller)
    if smaller != tuple(grid):
        tokens = F.interpolate(tokens, size=tuple(grid), mode="bilinear", align_corners=False)
    return tokens


class TokenizerTokens:
    """
    Latents and tokens of an autoencoder, from one pass of its encoder. What `train_tcae` saves is the average of its
    weights, as the teacher of self-distillation is one.

    Args:
        model (`ModelMixin`): An autoencoder whose adapter has a token encoder; its latents are taken raw.
        place (`str`): One of the adapter's `token_places`: `"last"`, before the final bottleneck, or `"first_stage"`.

    Raises:
        InputError: the class shows no tokens, or has none at that place.
    """

    def __init__(self, model: ModelMixin, place: str):
        self.adapter = adapt(model)
        if not self.adapter.token_places:
            raise InputError(
                f"--tokens tokenizer: {self.adapter.no_tokens()}. Pass another tokenizer, or a frozen network."
            )
        if place not in self.adapter.token_places:
            places = ", ".join(self.adapter.token_places)
            raise InputError(f"--token_place {place}: {self.adapter.class_name} has tokens at {places}.")
        self.encoder, self.place = self.adapter.token_encoder(), place

    @property
    def description(self) -> dict[str, Any]:
        return {"network": "tokenizer", "place": self.place}

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(B, C, h, w)` and tokens `(B, D, h', w')` of images `(B, 3, H, W)` in [-1, 1]."""
        features = self.encoder(images)
        tokens, grid = {
            "last": (features.last, features.last_grid),
            "first_stage": (features.first_stage, features.first_stage_grid),
        }[self.place]
        return self.adapter.training_latent(features.latent)[0], tokens.transpose(1, 2).unflatten(2, grid)


class TokenNetwork(FrozenNetwork):
    """
    A frozen network that gives tokens of images.

    Args:
        network ([`DINO`] or [`EfficientNetLite`]): Patch tokens of the last layer, or the last block's output.
        resolution (`int`): Side in pixels of the square that images are resized to.

    Attributes:
        token_width (`int`): Channels of a token.
    """

    def __init__(self, network: DINO | EfficientNetLite, resolution: int):
        super().__init__()
        self.network, self.resolution = network, resolution
        self.name, self.token_width = network.name, network.token_width
        self.freeze()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to tokens `(B, D, h, w)`."""
        size = (self.resolution, self.resolution)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return self.network.token_map(images)


def token_network_for_grid(name: str, side: int, weights: str | None = None) -> TokenNetwork:
    """
    A frozen network that has as many tokens of an image as a latent has positions.

    Args:
        name (`str`): `"dinov2"` or one of [`EFFICIENTNET_LITES`].
        side (`int`): Positions along a side of the latent.
        weights (`str`, *optional*): See [`build_target_tokens`].

    Raises:
        InputError: weights that are not available.
    """
    if name in EFFICIENTNET_LITES:
        network = EfficientNetLite(name, weights)
        return TokenNetwork(network, side * network.token_pixels)
    dino = DINO(weights or DINOV2)
    dino.resolution = side * dino.token_pixels
    return TokenNetwork(dino, dino.resolution)


class NetworkTokens:
    """
    Latents of an autoencoder, and tokens of a frozen network that sees the same images.

    Args:
        model (`ModelMixin`): Any autoencoder of diffusers.
        network ([`TokenNetwork`]): Of the tokens.
    """

    def __init__(self, model: ModelMixin, network: TokenNetwork):
        self.adapter, self.network = adapt(model), network

    @property
    def description(self) -> dict[str, Any]:
        return {
            "network": self.network.name,
            "weights_sha256": sha256_of_tensors(self.network.network.state_dict()),
            "resolution": self.network.resolution,
        }

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As [`TokenizerTokens`]."""
        return self.adapter.encode(images), self.network(images)


def build_target_tokens(
    name: str,
    model: ModelMixin,
    device: torch.device | str,
    place: str = "last",
    weights: str | None = None,
    resolution: int | None = None,
) -> TokenizerTokens | NetworkTokens:
    """
    Args:
        name (`str`): `"tokenizer"`, `"dinov2"` or one of [`EFFICIENTNET_LITES`].
        model (`ModelMixin`): The autoencoder that encodes latents.
        place (`str`, defaults to `"last"`): See [`TokenizerTokens`].
        weights (`str`, *optional*): Of the frozen network: for DINOv2 a folder of transformers' format or a Hub name,
            `"facebook/dinov2-base"` when not given.
        resolution (`int`, *optional*): See [`NetworkTokens`]; 224 for DINOv2 and the variant's for EfficientNet-Lite.

    Raises:
        InputError: weights that are not available, or an autoencoder without tokens.
    """
    if name == "tokenizer":
        return TokenizerTokens(model, place)
    resolution = resolution or RESOLUTIONS[name]
    if name == "dinov2":
        network: DINO | EfficientNetLite = DINO(weights or DINOV2, resolution)
    else:
        network = EfficientNetLite(name, weights)
    return NetworkTokens(model, TokenNetwork(network, resolution).to(device))
