"""One image through an autoencoder, and all that can be seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from diffusers import ModelMixin
from PIL import Image

from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.pixel_range import from_signed, to_signed
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.component_colours import component_colours, feature_maps
from tcae_diffusers.metrics.image_measures.psnr import psnr
from tcae_diffusers.metrics.image_measures.structural_similarity import ssim
from tcae_diffusers.metrics.model_cost import AutoencoderCost, autoencoder_cost
from tcae_diffusers.metrics.reconstruction import reconstruct
from tcae_diffusers.models.adapters import adapt

# Mean absolute error over the channels, in levels of 255, that an error map shows brightest.
BRIGHTEST_ERROR = 64
_NOISE_SEED = 0


@dataclass(frozen=True)
class Reconstruction:
    """
    What became of one image. All pictures are uint8 `(H, W, 3)`.

    Args:
        original, output (`np.ndarray`): The image, and what was decoded of its latent, with the noise that was asked
            for.
        error_map (`np.ndarray`): Where they differ, see [`error_colours`].
        components (`dict[str, np.ndarray]`): Tokens of each stage and the latent, without noise, see
            [`component_colours`].
        psnr, ssim (`float`): Of the output, PSNR in dB.
        psnr_without_noise (`float`): In dB.
        latent_shape (`tuple[int, ...]`): `(c, h, w)`.
    """

    original: np.ndarray
    output: np.ndarray
    error_map: np.ndarray
    components: dict[str, np.ndarray]
    psnr: float
    ssim: float
    psnr_without_noise: float
    latent_shape: tuple[int, ...]


class ShownAutoencoder:
    """
    An autoencoder, and what is computed of it once.

    Args:
        model: Any autoencoder of diffusers, in evaluation mode.
        examples (`Sequence[Image.Image]`): Images over which the deviations of the latent's channels are taken.
    """

    def __init__(self, model: ModelMixin, examples: Sequence[Image.Image] = ()):
        self.model = model
        self._examples = examples
        self._costs: dict[int, AutoencoderCost] = {}
        self._deviations: dict[int, torch.Tensor] = {}

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the images that it is made for, where it says so."""
        return adapt(self.model).image_size

    def cost(self, side: int) -> AutoencoderCost:
        """Cost of one square image of `side` pixels."""
        if side not in self._costs:
            self._costs[side] = autoencoder_cost(self.model, side, side)
        return self._costs[side]

    @torch.inference_mode()
    def reconstruct(self, image: Image.Image, side: int, noise: float = 0.0) -> Reconstruction:
        """
        One image, cropped and resized to a square as for all figures.

        Args:
            image (`Image.Image`): RGB, of any size.
            side (`int`): Of the square, in pixels.
            noise (`float`): Deviation of Gaussian noise that is added to the latent, in deviations of each channel;
                the same noise at each call.

        Raises:
            InputError: The side does not suit the autoencoder, or its noise has no unit.
        """
        adapter = adapt(self.model)
        adapter.check_side("side", side)
        originals = _as_batch([image], side)
        clean, latent = reconstruct(self.model, originals)
        output = clean
        if noise > 0:
            generator = torch.Generator().manual_seed(_NOISE_SEED)
            unit = torch.randn(latent.shape, generator=generator) * self._channel_deviations(side, latent)
            output = from_signed(adapter.decode(latent + noise * unit.to(latent)))
        clean, output = clean.cpu(), output.cpu()
        parameter = next(self.model.parameters())
        maps = feature_maps(self.model, to_signed(originals, parameter.device).to(parameter.dtype), latent)
        return Reconstruction(
            original=_as_picture(originals),
            output=_as_picture(output),
            error_map=error_colours(originals, output),
            components={
                name: _as_picture(component_colours(values, originals.shape[-2:])) for name, values in maps.items()
            },
            psnr=psnr(originals, output).item(),
            ssim=ssim(originals, output).item(),
            psnr_without_noise=psnr(originals, clean).item(),
            latent_shape=tuple(latent.shape[1:]),
        )

    def _channel_deviations(self, side: int, latent: torch.Tensor) -> torch.Tensor:
        """`(1, c, 1, 1)` over all positions of the examples; of `latent` where there are none."""
        if not self._examples:
            return _deviations(latent)
        if side not in self._deviations:
            _, latents = reconstruct(self.model, _as_batch(self._examples, side))
            self._deviations[side] = _deviations(latents)
        return self._deviations[side]


def _deviations(latents: torch.Tensor) -> torch.Tensor:
    if latents.shape[0] * latents.shape[2] * latents.shape[3] < 2:
        raise InputError(
            "noise is measured in deviations of the latent's channels, and one latent position has none; choose a "
            "larger side, or start the page with --images"
        )
    return latents.float().cpu().std(dim=(0, 2, 3), keepdim=True)


def error_colours(originals: torch.Tensor, outputs: torch.Tensor) -> np.ndarray:
    """
    Where the first of two uint8 `(B, 3, H, W)` differ: the mean absolute error over the channels as uint8 `(H, W, 3)`,
    from black at 0 to white at [`BRIGHTEST_ERROR`] levels and more, so that two maps can be compared.
    """
    error = (originals[0].float() - outputs[0].float()).abs().mean(dim=0) / BRIGHTEST_ERROR
    return (matplotlib.colormaps["magma"](error.clamp(max=1).numpy())[..., :3] * 255).round().astype(np.uint8)


def _as_batch(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """uint8 `(B, 3, side, side)`."""
    arrays = [np.asarray(center_crop(image, side)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _as_picture(images: torch.Tensor) -> np.ndarray:
    return images[0].permute(1, 2, 0).numpy()
