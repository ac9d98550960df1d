"""Named configurations of [`AutoencoderTC`]. Names read `tc-ae-f<compression ratio>c<latent channels>[-variant]`."""

from typing import Any

_PAPER: dict[str, Any] = {
    "sample_size": 256,
    "spatial_compression_ratio": 32,
    "latent_channels": 128,
    "patch_size": 8,
    "staged_compression": True,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "encoder_num_layers": (8, 4),
}

# 256 tokens of width 96 over two blocks per stage: what two CPU cores train in minutes. The token counts per stage
# are to each other as in the paper's model: 256 -> 64 -> 16 where that has 1024 -> 256 -> 64.
_CPU: dict[str, Any] = {
    "latent_channels": 32,
    "staged_compression": True,
    "hidden_size": 96,
    "num_attention_heads": 3,
    "encoder_num_layers": (2, 2),
}

# Half the width and half the blocks of the decoder that mirrors the encoder, with heads of the same width: 12.4 of its
# 82.0 GMAC at 256x256.
_LIGHT_DECODER: dict[str, Any] = {
    "decoder_num_layers": (2, 4),
    "decoder_hidden_size": 384,
    "decoder_num_attention_heads": 6,
}

AUTOENCODER_TC_PRESETS: dict[str, dict[str, Any]] = {
    # The paper's model: 164 GMAC for encoder plus decoder at 256x256.
    "tc-ae-f32c128": _PAPER,
    # The paper's ablations: latent channels, staged compression, patch size.
    "tc-ae-f32c256": {**_PAPER, "latent_channels": 256},
    "tc-ae-f32c128-nostc": {**_PAPER, "staged_compression": False},
    "tc-ae-f32c128-p16": {**_PAPER, "patch_size": 16},
    "tc-ae-f32c128-p16-nostc": {**_PAPER, "patch_size": 16, "staged_compression": False},
    "tc-ae-f32c128-p32-nostc": {**_PAPER, "patch_size": 32, "staged_compression": False},
    # The encoder of the paper's model with a light decoder for its latents.
    "tc-ae-f32c128-light": {**_PAPER, **_LIGHT_DECODER},
    # For 32x32 and 64x64 images on a CPU; both have a 4x4x32 latent.
    "tc-ae-xs-f8c32": {**_CPU, "sample_size": 32, "spatial_compression_ratio": 8, "patch_size": 2},
    "tc-ae-xs-f8c32-nostc": {
        **_CPU,
        "sample_size": 32,
        "spatial_compression_ratio": 8,
        "patch_size": 2,
        "staged_compression": False,
    },
    "tc-ae-xs-f16c32": {**_CPU, "sample_size": 64, "spatial_compression_ratio": 16, "patch_size": 4},
}
