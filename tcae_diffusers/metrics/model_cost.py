"""What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters and activation memory.

Counting runs on the `meta` device: full-size models take no memory and no time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from ..errors import InputError
from ..models.adapters import adapt
from .activation_memory import peak_inference_bytes, saved_training_bytes
from .mac_counter import count_macs


@dataclass
class AutoencoderCost:
    """Cost of one image through an autoencoder.

    Args:
        encode_macs, decode_macs (`int`): Multiply-accumulates, products of attention included.
        encode_by_operator, decode_by_operator (`dict[str, int]`): The same, split into matmul, convolution, attention.
        parameters (`int`): Parameters of the whole model. `latent_shape` (`tuple`): `(c, h, w)`.
        height, width (`int`): Image size in pixels that was counted.
        encode_peak_bytes, decode_peak_bytes, saved_training_bytes (`int`): Activations, see [`activation_memory`].
    """

    height: int
    width: int
    encode_macs: int
    decode_macs: int
    encode_by_operator: dict[str, int]
    decode_by_operator: dict[str, int]
    parameters: int
    latent_shape: tuple[int, ...]
    encode_peak_bytes: int
    decode_peak_bytes: int
    saved_training_bytes: int

    @property
    def total_macs(self) -> int:
        return self.encode_macs + self.decode_macs


def on_meta_device(model: ModelMixin) -> ModelMixin:
    """A weightless twin of a diffusers model on the `meta` device (the model itself if it is there already)."""
    if all(parameter.is_meta for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        return type(model).from_config(model.config).eval()


def autoencoder_cost(model: ModelMixin, height: int = 256, width: int = 256) -> AutoencoderCost:
    """Counts one image through `encode` and `decode` of any diffusers autoencoder, without computing anything.

    Args:
        model: The autoencoder, on any device; a twin on `meta` is what runs.
        height, width: Image size, multiples of the compression ratio.

    Raises:
        InputError: If the size does not fit the compression ratio.
    """
    twin = on_meta_device(model)
    adapter = adapt(twin)
    adapter.check_image_size(height, width)
    dtype = next(twin.parameters()).dtype
    images = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    with torch.no_grad():
        latent = adapter.encode(images)
    encode = count_macs(adapter.encode, images)
    decode = count_macs(adapter.decode, latent)
    return AutoencoderCost(
        height=height,
        width=width,
        encode_macs=encode.total,
        decode_macs=decode.total,
        encode_by_operator=encode.by_operator,
        decode_by_operator=decode.by_operator,
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        latent_shape=tuple(latent.shape[1:]),
        encode_peak_bytes=peak_inference_bytes(twin, adapter.encode, images),
        decode_peak_bytes=peak_inference_bytes(twin, adapter.decode, latent),
        saved_training_bytes=saved_training_bytes(twin, lambda x: adapter.decode(adapter.encode(x)), images),
    )


@dataclass
class TransformerCost:
    """Cost of one step of a diffusion transformer for one image, without guidance (which doubles it).

    Args:
        macs, by_operator, parameters: As in [`AutoencoderCost`]. latent_shape (`tuple`): `(c, h, w)`.
        peak_inference_bytes, saved_training_bytes (`int`): See [`activation_memory`].
    """

    latent_shape: tuple[int, ...]
    macs: int
    by_operator: dict[str, int]
    parameters: int
    peak_inference_bytes: int
    saved_training_bytes: int


def transformer_cost(model: ModelMixin, latent_shape: tuple[int, int, int]) -> TransformerCost:
    """Counts one call of a class-conditional transformer with the signature of diffusers' DiT.

    Raises:
        InputError: If the model takes another number of channels or other inputs.
    """
    twin = on_meta_device(model)
    dtype = next(twin.parameters()).dtype
    latent = torch.empty(1, *latent_shape, device="meta", dtype=dtype)
    conditions = {
        "timestep": torch.zeros(1, dtype=torch.long, device="meta"),
        "class_labels": torch.zeros(1, dtype=torch.long, device="meta"),
    }
    channels = twin.config.get("in_channels")
    if channels != latent_shape[0]:
        raise InputError(f"{type(twin).__name__} takes {channels} channels, --latent_shape has {latent_shape[0]}")

    def step(hidden: torch.Tensor) -> torch.Tensor:
        return twin(hidden, **conditions)

    try:
        count = count_macs(step, latent)
    except TypeError as error:
        raise InputError(f"{type(twin).__name__} cannot be called like a DiT: {error}") from error
    return TransformerCost(
        latent_shape=tuple(latent_shape),
        macs=count.total,
        by_operator=count.by_operator,
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        peak_inference_bytes=peak_inference_bytes(twin, step, latent),
        saved_training_bytes=saved_training_bytes(twin, step, latent),
    )
