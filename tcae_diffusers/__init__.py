"""Deep-compression tokenizers for diffusers: the TC-AE autoencoder, its training, its pipeline and its evaluation."""

from .models import AUTOENCODER_TC_PRESETS, AutoencoderTC
from .version import __version__

__all__ = ["AUTOENCODER_TC_PRESETS", "AutoencoderTC", "__version__"]
