"""Models: the TC-AE autoencoder, the diffusion transformer for its latents, and their presets."""

from .autoencoder_tc import AutoencoderTC
from .autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from .transformer_tc_dit import TC_DIT_PRESETS, TCDiTTransformer2DModel

__all__ = ["AUTOENCODER_TC_PRESETS", "TC_DIT_PRESETS", "AutoencoderTC", "TCDiTTransformer2DModel"]
