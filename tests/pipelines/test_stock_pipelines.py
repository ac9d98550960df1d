"""diffusers' own pipelines run with `vae=AutoencoderTC` and nothing else changed."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel, QwenImagePipeline

from tcae_diffusers import AutoencoderTC

from .stock_pipelines import CHANNELS, HEIGHT, STOCK_PIPELINES, WIDTH

# What these pipelines hard-code for an f8 autoencoder, as an instance attribute that anyone can set: Lumina2 its
# ratio, HiDream the side of its latent, to whose area it rescales every request. The docs say so.
PIPELINE_ATTRIBUTES = {"lumina2": {"vae_scale_factor": 32}, "hidream": {"default_sample_size": 4}}
SQUARE = {"dit": (64, 64), "hidream": (128, 128)}


class RecordingAutoencoderTC(AutoencoderTC):
    """Remembers what was encoded and decoded."""

    def encode(self, x, *args, **kwargs):
        self.encoded.append(x)
        return super().encode(x, *args, **kwargs)

    def decode(self, z, *args, **kwargs):
        result = super().decode(z, *args, **kwargs)
        self.decoded.append((z, result[0]))
        return result


@pytest.fixture(scope="module")
def recording_vae():
    """f32 like the paper's model: pipelines that take 8 for granted show."""
    torch.manual_seed(0)
    return RecordingAutoencoderTC(
        latent_channels=CHANNELS,
        sample_size=64,
        patch_size=8,
        hidden_size=16,
        num_attention_heads=2,
        encoder_num_layers=(1, 1),
    ).eval()


@pytest.mark.parametrize("name", STOCK_PIPELINES)
def test_stock_pipeline_draws_with_the_autoencoder(name, recording_vae):
    recording_vae.encoded, recording_vae.decoded = [], []
    torch.manual_seed(0)
    pipeline_class, components, call = STOCK_PIPELINES[name]()
    pipeline = pipeline_class(vae=recording_vae, **components)
    pipeline.set_progress_bar_config(disable=True)
    for attribute, value in PIPELINE_ATTRIBUTES.get(name, {}).items():
        setattr(pipeline, attribute, value)
    images = pipeline(**call, generator=torch.Generator().manual_seed(0), output_type="np").images

    height, width = SQUARE.get(name, (HEIGHT, WIDTH))
    assert images.shape == (1, height, width, 3)
    assert np.isfinite(images).all()
    ((latent, decoded),) = recording_vae.decoded
    assert latent.shape == (1, CHANNELS, height // 32, width // 32)
    assert latent.std() > 0
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(images, expected.detach().numpy(), atol=1e-6)
    if "image" in call:
        torch.testing.assert_close(recording_vae.encoded[0], call["image"] * 2 - 1)
    if "control_image" in call:
        # One copy for each half of the guided batch.
        torch.testing.assert_close(recording_vae.encoded[0], call["control_image"].expand(2, -1, -1, -1))


def test_qwen_image_and_flux2_need_an_autoencoder_of_their_own_kind(recording_vae):
    """If one of these stops failing, diffusers has changed and the table in the docs can grow."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    missing = {"scheduler": scheduler, "vae": recording_vae, "text_encoder": None, "tokenizer": None}
    with pytest.raises(AttributeError, match="temperal_downsample"):
        QwenImagePipeline(**missing, transformer=None)
    transformer = Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )
    pipeline = Flux2Pipeline(**missing, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(AttributeError, match="bn"):
        pipeline(prompt_embeds=torch.zeros(1, 4, 8), num_inference_steps=1, height=HEIGHT, width=WIDTH)
