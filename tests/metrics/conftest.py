"""The small models of the evaluation's tests."""

from ..evaluation.conftest import one_thread, tiny_autoencoder

__all__ = ["one_thread", "tiny_autoencoder"]
