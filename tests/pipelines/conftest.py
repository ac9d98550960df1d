"""Tiny models that the pipeline tests share; none of them is ever changed by a test."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.pipelines import TCDiTPipeline

ID2LABEL = {0: "flags, national flags", 1: "food-drink", 2: "animals-nature"}


@pytest.fixture(scope="session")
def tiny_vae():
    """16x16 images, f8, 4 latent channels: latents are (4, 2, 2)."""
    torch.manual_seed(0)
    vae = AutoencoderTC(
        latent_channels=4,
        sample_size=16,
        spatial_compression_ratio=8,
        patch_size=2,
        hidden_size=16,
        num_attention_heads=2,
        encoder_num_layers=(1, 1),
    ).eval()
    vae.set_latent_statistics(torch.linspace(-0.5, 0.5, 4), torch.linspace(0.5, 2.0, 4))
    return vae


def make_transformer(seed=0, **config):
    """DiT with random output layers: diffusers' init would do, but makes outputs nearly blind to class and time."""
    torch.manual_seed(seed)
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 2,
        "num_embeds_ada_norm": 3,
        "num_layers": 2,
        **config,
    }
    transformer = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, patch_size=1, **config).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return transformer


@pytest.fixture(scope="session")
def tiny_transformer():
    return make_transformer()


@pytest.fixture
def make_pipeline(tiny_vae, tiny_transformer):
    """Builds a quiet pipeline; keyword arguments replace its components."""

    def make(**components):
        defaults = {
            "vae": tiny_vae,
            "transformer": tiny_transformer,
            "scheduler": FlowMatchEulerDiscreteScheduler(),
            "id2label": ID2LABEL,
        }
        pipeline = TCDiTPipeline(**{**defaults, **components})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make
