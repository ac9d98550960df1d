"""Images to the latents that pipelines draw, and back, with any autoencoder of diffusers for images."""

import torch
from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE
from diffusers.models.modeling_utils import ModelMixin

# By name: their modules would import networks that nobody else needs.
_DRAW_WHILE_DECODING = ("ConsistencyDecoderVAE",)


def spatial_ratio_of(vae: ModelMixin) -> int:
    """Pixels per latent position along one side."""
    if isinstance(vae, AutoencoderRAE):
        # Its encoder sees a resized image; what an image has per latent position is the decoder's patch.
        return vae.config.patch_size
    ratio = getattr(vae, "spatial_compression_ratio", None)
    return ratio or 2 ** (len(vae.config.block_out_channels) - 1)


def encode_images(vae: ModelMixin, images: torch.Tensor) -> torch.Tensor:
    """
    The deterministic latents `(B, C, h, w)`, fp32, of images `(B, 3, H, W)` in `[-1, 1]`, scaled as pipelines take
    them: `(latent - shift_factor) * scaling_factor`.

    Raises:
        ValueError: if the autoencoder returns something else, such as the latents of a video.
    """
    is_rae = isinstance(vae, AutoencoderRAE)
    encoded = vae.encode((images * 0.5 + 0.5 if is_rae else images).to(vae.dtype))
    named = (getattr(encoded, name, None) for name in ("latent", "latents"))
    latents = next((value for value in named if value is not None), None)
    if latents is None and hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    if latents is None or latents.ndim != 4:
        raise ValueError(
            f"{type(vae).__name__} encodes images to {type(encoded).__name__} without latents (B, C, h, w); pass an "
            "autoencoder for images, such as AutoencoderTC, AutoencoderDC or AutoencoderKL."
        )
    scaling, shift = _scaling_of(vae)
    return (latents.float() - shift) * scaling


def decode_latents(
    vae: ModelMixin, latents: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
) -> torch.Tensor:
    """
    Images `(B, 3, H, W)`, fp32, in about `[-1, 1]`, of latents as [`encode_images`] returns them; `generator` is for
    autoencoders that draw noise while they decode.
    """
    scaling, shift = _scaling_of(vae)
    drawn_with = {"generator": generator} if type(vae).__name__ in _DRAW_WHILE_DECODING else {}
    images = vae.decode((latents / scaling + shift).to(vae.dtype), return_dict=False, **drawn_with)[0]
    if isinstance(vae, AutoencoderRAE):
        images = images * 2.0 - 1.0
    return images.float()


def _scaling_of(vae: ModelMixin) -> tuple[float, float]:
    # AutoencoderRAE scales inside encode and decode, and its images lie in [0, 1].
    if isinstance(vae, AutoencoderRAE):
        return 1.0, 0.0
    return vae.config.get("scaling_factor") or 1.0, vae.config.get("shift_factor") or 0.0
