"""Models: the TC-AE autoencoder and its presets."""

from .autoencoder_tc import AutoencoderTC
from .autoencoder_tc_presets import AUTOENCODER_TC_PRESETS

__all__ = ["AUTOENCODER_TC_PRESETS", "AutoencoderTC"]
