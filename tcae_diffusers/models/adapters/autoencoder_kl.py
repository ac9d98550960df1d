"""AutoencoderKL: its tokens are the positions of the map behind the encoder's mid block."""

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from ..tcae.autoencoder_tc import AutoencoderTCFeatures, map_to_tokens
from .adapter import AutoencoderAdapter, sampled_latent


class MidBlockEncoder(nn.Module):
    """
    The encoder of an AutoencoderKL, with the output of its mid block as tokens and their mean as class token.

    Args:
        encoder, quant_conv: Parts of the autoencoder; the latter may be `None`.
    """

    def __init__(self, encoder: nn.Module, quant_conv: nn.Module | None):
        super().__init__()
        self.encoder = encoder
        self.quant_conv = quant_conv

    def forward(
        self, images: torch.Tensor, token_mask: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> AutoencoderTCFeatures:
        """`latent` holds the moments `(B, 2 * latent_channels, h, w)` of the posterior."""
        if token_mask is not None:
            raise ValueError("patches cannot be hidden from a convolutional encoder")
        seen: list[torch.Tensor] = []
        mid_block = self.encoder.get_submodule("mid_block")
        handle = mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            moments = self.encoder(images)
        finally:
            handle.remove()
        tokens = map_to_tokens(seen[0])
        # It has one stage, which `token_places` says: nobody asks for a first.
        return AutoencoderTCFeatures(
            first_stage=None,  # type: ignore[arg-type]
            first_stage_class_token=None,  # type: ignore[arg-type]
            first_stage_grid=None,  # type: ignore[arg-type]
            last=tokens,
            class_token=tokens.mean(dim=1),
            last_grid=(seen[0].shape[-2], seen[0].shape[-1]),
            latent=moments if self.quant_conv is None else self.quant_conv(moments),
        )


class KLAdapter(AutoencoderAdapter):
    """Its latent is sampled while it trains, and its tokens are those of the mid block."""

    model_classes = ("AutoencoderKL",)
    token_places = ("last",)

    def training_latent(
        self, encoded: Any, generators: list[torch.Generator] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(encoded, torch.Tensor):
            return sampled_latent(DiagonalGaussianDistribution(encoded), generators)
        return super().training_latent(encoded, generators)

    def token_encoder(self) -> nn.Module:
        return MidBlockEncoder(self.model.encoder, self.model.quant_conv)

    @property
    def token_width(self) -> int:
        return self.config.block_out_channels[-1]

    def token_pixels(self, place: str = "last") -> int:
        return self.spatial_ratio
