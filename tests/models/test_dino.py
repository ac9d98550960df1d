"""Which network a config of transformers describes."""

import pytest
from transformers import Dinov2Config, Dinov2WithRegistersConfig, ViTConfig

from tcae_diffusers.models.dino import model_name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ViTConfig(hidden_size=384, num_hidden_layers=12, patch_size=8), "dino-vits8"),
        (Dinov2Config(hidden_size=768, num_hidden_layers=12, patch_size=14), "dinov2-vitb14"),
        (Dinov2Config(hidden_size=1024, num_hidden_layers=24, patch_size=14), "dinov2-vitl14"),
        (Dinov2WithRegistersConfig(hidden_size=1536, num_hidden_layers=40, patch_size=14), "dinov2-vitg14-reg"),
        (Dinov2Config(hidden_size=768, num_hidden_layers=6, patch_size=14), "dinov2-vit-width768-depth6-patch14"),
    ],
)
def test_the_name_tells_published_models_apart(config, name):
    assert model_name(config) == name
