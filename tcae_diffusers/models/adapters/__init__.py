"""
Access to any autoencoder of diffusers. They return latents in three ways (`.latent`, `.latents`, `.latent_dist`),
use two pixel ranges and name their sizes in four ways; all of these differences are handled here and nowhere else.

A class that needs more than [`AutoencoderAdapter`] gets its own file in this folder, with an adapter that lists the
class in `model_classes`; importing this package registers it.
"""

import importlib
import pkgutil

from .adapter import ADAPTERS, AutoencoderAdapter, adapt
from .loading import load_autoencoder

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ADAPTERS", "AutoencoderAdapter", "adapt", "load_autoencoder"]
