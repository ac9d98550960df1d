"""AutoencoderTC: tokens of both stages, masks, and a latent without sampling."""

import torch
from torch import nn

from .adapter import AutoencoderAdapter


class TCAdapter(AutoencoderAdapter):
    """Training goes to encoder and decoder directly: tiling and the statistics of the latent are for using a model."""

    model_classes = ("AutoencoderTC",)
    pixel_layers = ("encoder.patch_embed", "decoder.proj_out")
    latent_layers = ("encoder.last_norm", "encoder.to_latent", "decoder.from_latent")
    decoder_head = ("decoder.last_norm", "decoder.proj_out")
    token_places = ("last", "first_stage")
    hides_patches = True

    @property
    def scaling_entries(self) -> tuple[str, ...]:
        """None: it has the entries for pipelines that read them, but they never change."""
        return ()

    def training_encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encoder(images).latent

    def training_decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.model.decoder(latent)

    def transformer_blocks(self) -> list[nn.Module]:
        return [*self.model.encoder.first_blocks, *self.model.encoder.last_blocks]

    def token_encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def token_width(self) -> int:
        return self.config.hidden_size

    def token_pixels(self, place: str = "last") -> int:
        merged = 2 if place == "last" and self.config.staged_compression else 1
        return self.config.patch_size * merged
