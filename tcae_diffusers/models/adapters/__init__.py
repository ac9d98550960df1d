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


def encode_to_latent(model, images):
    return adapt(model).encode(images)


def decode_latent(model, latent):
    return adapt(model).decode(latent)


def pipeline_scaling(model):
    return adapt(model).pipeline_scaling


def image_size(model):
    return adapt(model).image_size


def spatial_ratio(model):
    return adapt(model).spatial_ratio


def check_image_size(model, height, width):
    adapt(model).check_image_size(height, width)
