"""Tiny models: every part of the architecture, milliseconds per call."""

import pytest
import torch

from tcae_diffusers.models import AutoencoderTC

_TINY = {
    "sample_size": 32,
    "spatial_compression_ratio": 8,
    "patch_size": 2,
    "latent_channels": 8,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "encoder_num_layers": (2, 1),
}


@pytest.fixture
def tiny_config() -> dict:
    return dict(_TINY)


@pytest.fixture
def make_tiny_tcae():
    """Builds a tiny model in eval mode, with weights and latent statistics that a missing part would betray."""

    def make(**overrides) -> AutoencoderTC:
        torch.manual_seed(0)
        model = AutoencoderTC(**{**_TINY, **overrides}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and norms start as zeros and ones, which would hide a mix-up
                    parameter.add_(0.1 * torch.randn_like(parameter))
        channels = model.config.latent_channels
        model.set_latent_statistics(torch.randn(channels), 0.5 + torch.rand(channels))
        return model

    return make


@pytest.fixture
def tiny_tcae(make_tiny_tcae) -> AutoencoderTC:
    return make_tiny_tcae()
