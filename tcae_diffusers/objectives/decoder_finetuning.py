"""The module of phase 2: an autoencoder whose decoder is fine-tuned (paper, section 3: decoder fine-tuning)."""

import torch
from torch import nn

from ..files import sha256_of_tensors
from ..models.adapters import adapt
from .latent_noise import draw_noise


def frozen_fingerprint(autoencoder: nn.Module) -> str:
    """sha256 of everything that is not the decoder: latents stay valid as long as it does not change."""
    adapter = adapt(autoencoder)
    return sha256_of_tensors((name, t) for name, t in autoencoder.state_dict().items() if not adapter.is_decoder(name))


class FrozenEncoderTokenizer(nn.Module):
    """
    Reconstructs through a frozen encoder, which stays in evaluation mode and takes no gradient.

    Args:
        autoencoder (`nn.Module`): Any autoencoder of diffusers; its decoder's parameters are those to train.
        noise (`float`, defaults to 0.0):
            tau of RAE: each image's latent gets Gaussian noise of deviation `|N(0, tau^2)|`, in the units of the
            latents that a diffusion model is trained on (the autoencoder's scaling factor is taken into account), so
            that the decoder tolerates imperfect samples.

    Raises:
        ValueError: negative noise, or an autoencoder without a decoder of its own.
    """

    def __init__(self, autoencoder: nn.Module, noise: float = 0.0):
        super().__init__()
        if noise < 0:
            raise ValueError(f"latent noise is {noise}; expected 0 or more")
        self.autoencoder = autoencoder
        adapter = adapt(autoencoder)
        self.noise = noise / adapter.pipeline_scaling[0]
        for name, parameter in autoencoder.named_parameters():
            parameter.requires_grad_(adapter.is_decoder(name))
        if not any(parameter.requires_grad for parameter in autoencoder.parameters()):
            raise ValueError(
                f"{type(autoencoder).__name__} has no part called {' or '.join(adapter.decoder_parts)} to train"
            )

    def train(self, mode: bool = True) -> "FrozenEncoderTokenizer":
        super().train(mode)
        # Of itself, too: AutoencoderRAE adds noise to latents where it trains.
        self.autoencoder.training = False
        for name, module in self.autoencoder.named_children():
            if not adapt(self.autoencoder).is_decoder(name):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, generators: list[torch.Generator] | None = None) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [-1, 1].
            generators (`list[torch.Generator]`, *optional*): One per image, for the noise; none is added without.

        Returns:
            `torch.Tensor`: Reconstructions `(B, 3, H, W)` in about [-1, 1].
        """
        with torch.no_grad():
            latent = adapt(self.autoencoder).encode(pixel_values)
            if self.noise and generators is not None:
                deviation, noise = draw_noise(latent, generators, self._deviation)
                latent = latent + (deviation * noise).to(latent.dtype)
        return adapt(self.autoencoder).decode(latent)

    def _deviation(self, generator: torch.Generator) -> torch.Tensor:
        return self.noise * torch.randn((), generator=generator).abs()
