"""The interface to diffusers autoencoders, and its implementation for the usual ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from ...errors import InputError

# What configs of diffusers call the numbers by which pipelines scale a latent.
SCALING_ENTRIES = ("scaling_factor", "shift_factor")
# By the name of the autoencoder's class; subclasses of [`AutoencoderAdapter`] enter themselves.
ADAPTERS: dict[str, type[AutoencoderAdapter]] = {}


class AutoencoderAdapter:
    """
    Access to one autoencoder, with images in [-1, 1] and latents as its `encode` returns them.

    Create it with [`adapt`], which selects the class; it is stateless and free to create.

    Args:
        model (`ModelMixin`): Any autoencoder of diffusers.
    """

    # Classes that an adapter is for.
    model_classes: ClassVar[tuple[str, ...]] = ()
    # Top-level submodules that come after the latent.
    decoder_parts: ClassVar[tuple[str, ...]] = ("decoder", "post_quant_conv")
    # Layers that read pixels or write them.
    pixel_layers: ClassVar[tuple[str, ...]] = ("encoder.conv_in", "decoder.conv_out")
    # Layers on both sides of the latent, and the last ones of the decoder; none for a class that does not say which.
    latent_layers: ClassVar[tuple[str, ...]] = ()
    decoder_head: ClassVar[tuple[str, ...]] = ()
    # Places in the encoder where its tokens can be read; none for a class without known tokens.
    token_places: ClassVar[tuple[str, ...]] = ()
    # Whether patches can be hidden from the token encoder, as masked image modelling asks.
    hides_patches: ClassVar[bool] = False
    # Whether a latent of any height and width is decoded, to an image of as many times its size.
    decodes_any_size: ClassVar[bool] = True

    def __init__(self, model: ModelMixin):
        self.model = model

    def __init_subclass__(cls) -> None:
        ADAPTERS.update(dict.fromkeys(cls.model_classes, cls))

    @property
    def config(self) -> Any:
        return getattr(self.model, "config", {})

    @property
    def class_name(self) -> str:
        """Of the autoencoder, also where sharding has put it into a class of its own."""
        names = [base.__name__ for base in type(self.model).__mro__]
        return next((name for name in names if name in ADAPTERS or not name.startswith("FSDP")), names[0])

    # Images and latents

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to the deterministic latent `(B, c, h, w)`."""
        return latent_of(self.model.encode(images))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent `(B, c, h, w)` to images `(B, 3, H, W)` in about [-1, 1], not clamped."""
        return self.model.decode(latent).sample

    @property
    def pipeline_scaling(self) -> tuple[float, float]:
        """`(scaling_factor, shift_factor)`: pipelines take `(encode(x) - shift_factor) * scaling_factor`."""
        return float(self.config.get("scaling_factor") or 1.0), float(self.config.get("shift_factor") or 0.0)

    @property
    def scaling_entries(self) -> tuple[str, ...]:
        """Entries of the config that [`pipeline_scaling`] comes from; none for a model that scales its own latent."""
        return tuple(name for name in SCALING_ENTRIES if name in self.config)

    # Sizes

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the images that the model is made for; `None` if it does not say (AutoencoderDC)."""
        size = self.config.get("sample_size") or getattr(self.model, "decoder_image_size", None)
        return size[0] if isinstance(size, list | tuple) else size

    @property
    def spatial_ratio(self) -> int:
        """
        Pixels per latent position along one side, such as 32 for f32.

        Raises:
            InputError: nothing in the config tells it.
        """
        named = getattr(self.model, "spatial_compression_ratio", None) or self.config.get("spatial_compression_ratio")
        if isinstance(named, int):
            return named
        channels = self.config.get("encoder_block_out_channels") or self.config.get("block_out_channels")
        if channels:
            return 2 ** (len(channels) - 1)
        raise InputError(f"cannot determine the compression ratio of {self.class_name} from its config")

    @property
    def patch_size(self) -> int:
        """
        Pixels along a side of the patches that the decoder writes; of a latent position where it has no patches.

        Raises:
            InputError: nothing in the config tells it.
        """
        size = self.config.get("patch_size")
        return size if isinstance(size, int) and size > 1 else self.spatial_ratio

    @property
    def latent_channels(self) -> int:
        """
        Channels of the latent.

        Raises:
            InputError: nothing in the config tells it.
        """
        channels = self.config.get("latent_channels")
        if not isinstance(channels, int):
            raise InputError(f"cannot determine the latent channels of {self.class_name} from its config")
        return channels

    def check_image_size(self, height: int, width: int) -> None:
        """Raises [`InputError`] if a side is not a multiple of the compression ratio."""
        self.check_side("height", height)
        self.check_side("width", width)

    def check_side(self, name: str, pixels: int) -> None:
        """Raises [`InputError`] if `pixels`, which the user knows as `name`, are not whole latent positions."""
        ratio = self.spatial_ratio
        if pixels % ratio or pixels <= 0:
            smaller = max(ratio, pixels // ratio * ratio)
            raise InputError(
                f"{name} {pixels} is not a multiple of {ratio}, the compression ratio of {self.class_name}; use "
                f"{smaller} or {smaller + ratio}"
            )

    # Statistics of the latent

    @property
    def keeps_statistics(self) -> bool:
        """Whether the model normalises its latent with a mean and a deviation per channel that can be set."""
        return hasattr(self.model, "set_latent_statistics")

    def reset_statistics(self) -> None:
        """Make `encode` return raw latents; nothing where there are no statistics."""
        if self.keeps_statistics:
            self.model.set_latent_statistics(
                torch.zeros_like(self.model.latent_mean), torch.ones_like(self.model.latent_std)
            )

    # Parts

    def is_decoder(self, name: str) -> bool:
        """Whether a parameter or buffer of that name comes after the latent."""
        return name.split(".")[0] in self.decoder_parts

    def train_only(self, layers: tuple[str, ...]) -> None:
        """
        Give gradients to the parameters of `layers` alone, [`latent_layers`] or [`decoder_head`].

        Raises:
            InputError: the class has none.
        """
        if not layers:
            known = ", ".join(sorted(name for name, cls in ADAPTERS.items() if cls.latent_layers))
            raise InputError(f"which layers of {self.class_name} to train is not known; {known} can be adapted so")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(f"{layer}." for layer in layers)))

    def transformer_blocks(self) -> list[nn.Module]:
        """Blocks of the encoder in order, each with branches `attn` and `ff`, for drop path; empty without such."""
        return []

    # Training. `encoded` is what the encoder says of images, before a latent is taken of it.

    def training_encode(self, images: torch.Tensor) -> Any:
        """What [`training_latent`] takes a latent of, with gradient."""
        return self.model.encode(images)

    def training_latent(
        self, encoded: Any, generators: list[torch.Generator] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            encoded: From [`training_encode`], or the `latent` of a token encoder.
            generators (`list[torch.Generator]`, *optional*): One per image, for models that sample their latent; the
                mode without.

        Returns:
            The latent `(B, c, h, w)` for [`training_decode`], and the sum of KL divergences or `None`.
        """
        posterior = getattr(encoded, "latent_dist", None)
        if not isinstance(posterior, DiagonalGaussianDistribution):
            return latent_of(encoded), None
        return sampled_latent(posterior, generators)

    def training_decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent of [`training_latent`] to images, with gradient."""
        return self.decode(latent)

    # Tokens

    def token_encoder(self) -> nn.Module:
        """
        A module called with `(images, token_mask=None, mask_token=None)` that returns tokens as
        [`~models.tcae.autoencoder_tc.AutoencoderTCFeatures`] has them (`first_stage` and what belongs to it may be
        `None`), made of the model's own parts.

        Raises:
            InputError: the class has no `token_places`.
        """
        raise self.no_tokens()

    @property
    def token_width(self) -> int:
        """Channels of a token."""
        raise self.no_tokens()

    def token_pixels(self, place: str = "last") -> int:
        """Pixels along the side of a token, at `"first_stage"` or `"last"`."""
        raise self.no_tokens()

    def no_tokens(self) -> InputError:
        known = ", ".join(sorted(name for name, cls in ADAPTERS.items() if cls.token_places))
        return InputError(f"{self.class_name} does not expose the tokens of its encoder; {known} do")


def adapt(model: nn.Module) -> AutoencoderAdapter:
    """The adapter of an autoencoder."""
    names = (base.__name__ for base in type(model).__mro__)
    return next((ADAPTERS[name] for name in names if name in ADAPTERS), AutoencoderAdapter)(model)


def latent_of(encoder_output: Any) -> torch.Tensor:
    """The deterministic latent in whatever `encode` returned: `.latent`, `.latents`, or the mode of `.latent_dist`."""
    if isinstance(encoder_output, torch.Tensor):
        return encoder_output
    for name in ("latent", "latents"):
        value = getattr(encoder_output, name, None)
        if isinstance(value, torch.Tensor):
            return value
    distribution = getattr(encoder_output, "latent_dist", None)
    if distribution is not None:
        return distribution.mode()
    if isinstance(encoder_output, tuple):
        return latent_of(encoder_output[0])
    raise TypeError(f"encode() returned a {type(encoder_output).__name__} with no latent, latents or latent_dist")


def sampled_latent(
    posterior: DiagonalGaussianDistribution, generators: list[torch.Generator] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample (the mode without generators) and the sum of KL divergences over the batch."""
    latent = posterior.mode() if generators is None else posterior.sample(generators)
    return latent, posterior.kl().sum()
