"""Any autoencoder of diffusers under reconstruction alone: the baselines of the paper's comparison."""

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from .joint_tokenizer import JointTokenizerOutput


class PlainTokenizer(nn.Module):
    """
    Student without self-supervision, for classes that give no token features (AutoencoderDC, AutoencoderKL).

    Args:
        autoencoder (`nn.Module`): With `encode` and `decode` in [-1, 1], as diffusers has them.
    """

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self, pixel_values: torch.Tensor, generators: list[torch.Generator] | None = None
    ) -> JointTokenizerOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [-1, 1].
            generators (`list[torch.Generator]`, *optional*):
                One per image, for autoencoders that sample their latent; its mode when not given.
        """
        encoded = self.autoencoder.encode(pixel_values)
        posterior = getattr(encoded, "latent_dist", None)
        if not isinstance(posterior, DiagonalGaussianDistribution):
            return JointTokenizerOutput(self.autoencoder.decode(encoded.latent).sample, encoded.latent)
        latent = posterior.mode() if generators is None else posterior.sample(generators)
        # Per pixel value, so that the weight means what it does beside a summed reconstruction loss (LDM: 1e-6).
        kl = posterior.kl().sum() / pixel_values.numel()
        return JointTokenizerOutput(self.autoencoder.decode(latent).sample, latent, kl=kl)
