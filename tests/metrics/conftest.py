"""The small models and images of the evaluation's tests."""

from ..evaluation.conftest import image_folder, one_thread, tiny_autoencoder

__all__ = ["image_folder", "one_thread", "tiny_autoencoder"]
