"""Deep-compression tokenizers for diffusers: the TC-AE autoencoder, its training, its pipeline and its evaluation."""

from .models import AUTOENCODER_TC_PRESETS, TC_DIT_PRESETS, AutoencoderTC, TCDiTTransformer2DModel
from .pipelines import TCDiTPipeline
from .registration import register_with_diffusers
from .version import __version__

register_with_diffusers()

__all__ = [
    "AUTOENCODER_TC_PRESETS",
    "TC_DIT_PRESETS",
    "AutoencoderTC",
    "TCDiTPipeline",
    "TCDiTTransformer2DModel",
    "__version__",
]
