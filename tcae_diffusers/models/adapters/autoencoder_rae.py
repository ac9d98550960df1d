"""AutoencoderRAE works on [0, 1], resizes what it encodes, and scales its latent itself."""

from typing import Any

import torch

from .adapter import AutoencoderAdapter, latent_of


class RAEAdapter(AutoencoderAdapter):
    """
    It normalises with ImageNet's mean and deviation itself and therefore works on [0, 1]; it resizes what it encodes,
    and it applies its scaling factor inside encode and decode, where all others leave that to the pipeline.
    """

    model_classes = ("AutoencoderRAE",)
    pixel_layers = ("encoder.embeddings.patch_embeddings.projection", "decoder.decoder_pred")
    decodes_any_size = False

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return latent_of(self.training_encode(images))

    def training_encode(self, images: torch.Tensor) -> Any:
        return self.model.encode(images * 0.5 + 0.5)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latent).sample * 2.0 - 1.0

    @property
    def pipeline_scaling(self) -> tuple[float, float]:
        return 1.0, 0.0

    @property
    def scaling_entries(self) -> tuple[str, ...]:
        return ()

    @property
    def spatial_ratio(self) -> int:
        # The decoder's patch: the encoder's is of the resized image.
        return self.config["patch_size"]

    @property
    def latent_channels(self) -> int:
        return self.config["encoder_hidden_size"]

    def check_image_size(self, height: int, width: int) -> None:
        """Any size: it is resized."""
