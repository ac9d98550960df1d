"""Published autoencoders and transformers by name, without weights, for the tables of costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .autoencoder_tc_presets import AUTOENCODER_TC_PRESETS

if TYPE_CHECKING:
    from torch import nn


def _dc_ae(stages: int) -> dict[str, Any]:
    attention = stages - 3
    channels = [128, 256, 512, 512, 1024, 1024, 2048][:stages]
    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * attention
    return {
        "latent_channels": 128,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": [0, 4, 8] + [2] * attention,
        "decoder_layers_per_block": [0, 5, 10] + [2] * attention,
        "encoder_qkv_multiscales": [[]] * stages,
        "decoder_qkv_multiscales": [[]] * stages,
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * attention,
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * attention,
        "downsample_block_type": "pixel_unshuffle",
        "upsample_block_type": "pixel_shuffle",
    }


# diffusers' AutoencoderDC as DC-AE publishes it for ImageNet (the layout of dc-ae-f32c32-in-1.0: 323 M parameters),
# with 128 latent channels, which is what TC-AE's 607 GMAC baseline is; and the layout of dc-ae-f64c128-in-1.0.
AUTOENCODER_DC_F32C128 = _dc_ae(6)
AUTOENCODER_DC_F64C128 = _dc_ae(7)

# Stable Diffusion's AutoencoderKL f8, the autoencoder that most people know.
AUTOENCODER_KL_F8: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# RAE (Zheng et al. 2025) with DINOv2-B and its ViT-XL decoder: 224 pixels in, 16x16x768 latent, 256 pixels out.
AUTOENCODER_RAE_DINOV2_B: dict[str, Any] = {
    "encoder_type": "dinov2",
    "encoder_hidden_size": 768,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 12,
    "decoder_hidden_size": 1152,
    "decoder_num_hidden_layers": 28,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 4096,
    "patch_size": 16,
    "encoder_input_size": 224,
    "image_size": 256,
}

OTHER_AUTOENCODERS = {
    "dc-ae-f32c128": ("AutoencoderDC", AUTOENCODER_DC_F32C128),
    "dc-ae-f64c128": ("AutoencoderDC", AUTOENCODER_DC_F64C128),
    "kl-f8": ("AutoencoderKL", AUTOENCODER_KL_F8),
    "rae-dinov2-b": ("AutoencoderRAE", AUTOENCODER_RAE_DINOV2_B),
}
# DiT-XL/1 on an 8x8x128 latent, diffusers' class; ours go by their preset names.
_DIT_XL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}


def build_named_autoencoder(name: str, device: str = "meta") -> nn.Module:
    """An autoencoder with random weights (none on `meta`): a TC-AE preset or a key of [`OTHER_AUTOENCODERS`]."""
    import diffusers
    import torch

    from .tcae.autoencoder_tc import AutoencoderTC

    with torch.device(device):
        if name in OTHER_AUTOENCODERS:
            class_name, config = OTHER_AUTOENCODERS[name]
            return getattr(diffusers, class_name)(**config).eval()
        if name in AUTOENCODER_TC_PRESETS:
            return AutoencoderTC.from_preset(name).eval()
    known = ", ".join([*AUTOENCODER_TC_PRESETS, *OTHER_AUTOENCODERS])
    raise InputError(f"unknown autoencoder {name!r}; expected a saved folder or one of: {known}")


def build_transformer(name: str, latent_shape: tuple[int, int, int]) -> nn.Module:
    """A diffusion transformer on the `meta` device.

    Args:
        name: A saved transformer or pipeline folder, a TC-DiT preset, or `dit-xl` (diffusers' DiTTransformer2DModel,
            patch size 1). latent_shape: `(c, h, w)` that named models are built for.

    Raises:
        InputError: Unknown name, or a folder that holds no transformer.
    """
    import diffusers
    import torch

    from .tcae.transformer_tc_dit import TC_DIT_PRESETS, TCDiTTransformer2DModel

    channels, height, _ = latent_shape
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        folder = folder / "transformer"
    with torch.device("meta"):
        if (folder / "config.json").is_file():
            config = diffusers.DiTTransformer2DModel.load_config(str(folder))
            model_class = getattr(diffusers, str(config.get("_class_name")), None)
            if model_class is None or "Transformer" not in model_class.__name__:
                raise InputError(f"{folder} holds a {config.get('_class_name')!r}, which is not a transformer")
            return model_class.from_config(config).eval()
        if name == "dit-xl":
            config = {**_DIT_XL, "in_channels": channels, "out_channels": channels, "sample_size": height}
            return diffusers.DiTTransformer2DModel(**config, patch_size=1).eval()
        if name in TC_DIT_PRESETS:
            return TCDiTTransformer2DModel.from_preset(name, in_channels=channels, sample_size=height).eval()
    known = ", ".join(["dit-xl", *TC_DIT_PRESETS])
    raise InputError(f"unknown transformer {name!r}; expected a saved folder or one of: {known}")
