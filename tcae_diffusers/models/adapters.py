"""One way to load, encode with and decode with any diffusers autoencoder.

The autoencoders of diffusers answer in three dialects (`.latent`, `.latents`, `.latent_dist`) and two pixel ranges;
what is done about each stands here and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError

# AutoencoderRAE normalises with ImageNet's mean and deviation itself and therefore works on [0, 1]; it resizes what it
# encodes, and it applies its scaling factor inside encode and decode, where all others leave that to the pipeline.
_RAE_CLASSES = ("AutoencoderRAE",)


def load_autoencoder(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Loads an autoencoder in evaluation mode from a saved folder or a Hub name.

    Args:
        path: A folder written by `save_pretrained` (also a pipeline folder: its `vae/` is taken), or a Hub repository.
        device, dtype: Where and in which precision to run; weights keep their stored dtype if `dtype` is `None`.

    Raises:
        InputError: If the folder is missing a `config.json` or names a class that cannot be loaded.
    """
    import diffusers

    import tcae_diffusers  # noqa: F401  registers AutoencoderTC with diffusers

    folder = Path(path)
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    looks_local = folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    if looks_local and not (folder / "config.json").is_file():
        raise InputError(
            f"no autoencoder at {path}: {folder / 'config.json'} does not exist. Expected a folder written by "
            "save_pretrained(), a pipeline folder with a vae/ in it, or the name of a Hub repository."
        )
    target = str(folder) if looks_local else str(path)
    try:
        config = diffusers.AutoencoderKL.load_config(target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the autoencoder config of {path}: {error}") from error
    class_name = config.get("_class_name")
    model_class = getattr(diffusers, str(class_name), None)
    if model_class is None or not hasattr(model_class, "encode"):
        raise InputError(
            f"{path} holds a {class_name!r}, which is not an autoencoder of diffusers {diffusers.__version__} or of "
            "this package; expected AutoencoderTC, AutoencoderDC, AutoencoderKL, AutoencoderTiny, AutoencoderRAE or "
            "the like."
        )
    try:
        model = model_class.from_pretrained(target, **({"dtype": dtype} if dtype else {}))
    except OSError as error:
        raise InputError(f"cannot load the weights of {path}: {error}") from error
    return model.to(device).eval().requires_grad_(False)


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


def encode_to_latent(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """`images (B, 3, H, W)` in [-1, 1] to the latent `(B, c, h, w)`."""
    if type(model).__name__ in _RAE_CLASSES:
        images = images * 0.5 + 0.5
    return latent_of(model.encode(images))


def decode_latent(model: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Latent `(B, c, h, w)` to images `(B, 3, H, W)` in about [-1, 1], not clamped."""
    sample = model.decode(latent).sample
    return sample * 2.0 - 1.0 if type(model).__name__ in _RAE_CLASSES else sample


def pipeline_scaling(model: nn.Module) -> tuple[float, float]:
    """`(scaling_factor, shift_factor)` with which pipelines take `(encode(x) - shift_factor) * scaling_factor`."""
    if type(model).__name__ in _RAE_CLASSES:
        return 1.0, 0.0
    config = getattr(model, "config", {})
    return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)


def image_size(model: nn.Module) -> int | None:
    """Side in pixels of the images that the model is made for, or `None` if it does not say (AutoencoderDC)."""
    size = getattr(model, "config", {}).get("sample_size") or getattr(model, "decoder_image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def spatial_ratio(model: nn.Module) -> int:
    """Pixels per latent position along one side, e.g. 32 for f32."""
    config = getattr(model, "config", {})
    if type(model).__name__ in _RAE_CLASSES:
        # The decoder's patch: the encoder's is of the resized image.
        return config["patch_size"]
    named = getattr(model, "spatial_compression_ratio", None) or config.get("spatial_compression_ratio")
    if isinstance(named, int):
        return named
    if hasattr(model, "spatial_scale_factor"):  # AutoencoderTiny
        return int(model.spatial_scale_factor)
    channels = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    if channels:
        return 2 ** (len(channels) - 1)
    raise InputError(f"cannot tell the compression ratio of {type(model).__name__}; its config names none")


def check_image_size(model: nn.Module, height: int, width: int) -> None:
    """Raises [`InputError`] if a side is not a multiple of the compression ratio."""
    if type(model).__name__ in _RAE_CLASSES:
        return  # it resizes internally
    ratio = spatial_ratio(model)
    for name, size in (("height", height), ("width", width)):
        if size % ratio or size <= 0:
            raise InputError(
                f"{name} {size} is not a multiple of {ratio}, the compression ratio of {type(model).__name__}; pass "
                f"--resolution {max(ratio, size // ratio * ratio)} or {(size // ratio + 1) * ratio}"
            )
