"""
Access to any autoencoder of diffusers. They answer in three dialects (`.latent`, `.latents`, `.latent_dist`) and two
pixel ranges, and name their sizes in four ways; what is done about each stands here and nowhere else.

A class that needs more than [`AutoencoderAdapter`] gets a file of its own in this folder, whose adapter names the
class: importing this package is all that makes it known.
"""

import importlib
import pkgutil

from .adapter import ADAPTERS, AutoencoderAdapter, adapt
from .loading import load_autoencoder

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ADAPTERS", "AutoencoderAdapter", "adapt", "load_autoencoder"]
