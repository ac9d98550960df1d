"""What all tests share: a tiny model, one thread per process, no network."""

import os

# Two pytest workers share two cores; a thread pool in each would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.command import keep_freed_memory

keep_freed_memory()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

TINY_CONFIG = {
    "sample_size": 32,
    "spatial_compression_ratio": 8,
    "patch_size": 2,
    "latent_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "encoder_num_layers": (1, 1),
}


@pytest.fixture(autouse=True)
def attention_backend_of_the_process():
    """Put back what `set_attention_backend` of one model sets for all of the process: other tests compare bits."""
    backend = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = backend


@pytest.fixture
def tiny_tcae() -> AutoencoderTC:
    """A fresh AutoencoderTC for 32x32 images with a 4x4x4 latent, in eval mode, always with the same weights."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoencoderTC(**TINY_CONFIG).eval()
    torch.set_rng_state(state)
    return model
