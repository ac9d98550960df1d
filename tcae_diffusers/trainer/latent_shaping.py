"""The shaping of the latent that the arguments describe."""

from __future__ import annotations

from accelerate import Accelerator

from ..errors import InputError
from ..models.adapters import AutoencoderAdapter
from ..models.target_tokens import token_network_for_grid
from ..objectives.latent_alignment import LatentAlignment
from ..objectives.latent_channel_mask import LatentChannelMask
from ..objectives.latent_equivariance import LatentEquivariance
from ..objectives.latent_noise import LatentDenoising
from ..objectives.latent_shaping import LatentShaping, ShapingChain
from .latent_shaping_arguments import LatentShapingArguments
from .sharding import require_whole_parameters


def build_latent_shaping(
    arguments: LatentShapingArguments, adapter: AutoencoderAdapter, accelerator: Accelerator
) -> ShapingChain:
    """
    Everything that is on, in the order in which it is applied: what is aligned is the latent of the encoder, noise is
    not to be smoothed by scaling, and masked channels are to hold nothing. An empty chain without any.

    Raises:
        InputError: a setting that does not fit the autoencoder or the losses.
    """
    shapings: list[LatentShaping] = []
    if arguments.latent_alignment != "none":
        require_whole_parameters(
            accelerator, "--latent_alignment weighs gradients within a step, which FSDP cannot take"
        )
        if accelerator.mixed_precision == "fp16":
            # The gradients that balance its weight are of losses without a scale, and underflow.
            raise InputError("--mixed_precision fp16 cannot be combined with --latent_alignment; use bf16.")
        shapings.append(_alignment(arguments, adapter))
    if arguments.latent_equivariance:
        shapings.append(_equivariance(arguments, adapter))
    if arguments.latent_denoising:
        shapings.append(LatentDenoising(arguments.latent_denoising))
    if arguments.latent_min_channels is not None:
        shapings.append(_channel_mask(arguments.latent_min_channels, adapter))
    return ShapingChain(shapings)


def _alignment(arguments: LatentShapingArguments, adapter: AutoencoderAdapter) -> LatentAlignment:
    side = arguments.image_size // adapter.spatial_ratio
    return LatentAlignment(
        token_network_for_grid(arguments.latent_alignment, side, arguments.latent_alignment_weights_path),
        adapter.latent_channels,
        arguments.latent_alignment_weight,
        arguments.latent_alignment_cosine_margin,
        arguments.latent_alignment_distance_margin,
    )


def _equivariance(arguments: LatentShapingArguments, adapter: AutoencoderAdapter) -> LatentEquivariance:
    if not adapter.decodes_any_size:
        raise InputError(
            f"--latent_equivariance scales latents down, but the decoder of {adapter.class_name} always returns images"
            " of one size; pass --latent_equivariance 0."
        )
    if arguments.aspect_ratio_buckets:
        raise InputError(
            "--latent_equivariance turns latents, which must be square for it; omit --aspect_ratio_buckets or pass"
            " --latent_equivariance 0."
        )
    ratio = adapter.spatial_ratio
    equivariance = LatentEquivariance(
        arguments.seed, ratio, arguments.latent_equivariance, arguments.latent_equivariance_min_scale
    )
    side = min(arguments.resolutions)
    positions = side // ratio
    if positions < 2:
        raise InputError(
            f"--latent_equivariance turns latents, and one of a single position, as of {side} pixels here, looks the"
            " same from all sides; pass --latent_equivariance 0."
        )
    smallest = equivariance.smallest_side(positions) * ratio
    needed = max(arguments.perceptual_min_resolution, arguments.discriminator_min_resolution)
    if smallest < needed:
        raise InputError(
            f"--latent_equivariance_min_scale {arguments.latent_equivariance_min_scale} makes images of {smallest}"
            f" pixels, but the losses of this run need at least {needed}; use a larger scale, such as"
            f" {min(1.0, needed / side):g}."
        )
    return equivariance


def _channel_mask(min_channels: int, adapter: AutoencoderAdapter) -> LatentChannelMask:
    channels = adapter.latent_channels
    if not 1 <= min_channels <= channels:
        raise InputError(
            f"--latent_min_channels {min_channels} must be from 1 to {channels}, the latent channels of this"
            f" {adapter.class_name}."
        )
    return LatentChannelMask(min_channels, channels)
