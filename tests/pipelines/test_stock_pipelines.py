"""diffusers' own pipelines run with `vae=AutoencoderTC`, or a wrapper of it, and nothing else changed."""

import functools

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.flux2.decoders import Flux2DecodeStep
from diffusers.modular_pipelines.flux3.decoders import Flux3DecodeStep
from diffusers.modular_pipelines.qwenimage.decoders import QwenImageDecoderStep
from diffusers.modular_pipelines.z_image.decoders import ZImageVaeDecoderStep
from PIL import Image

from tcae_diffusers import AutoencoderTC, AutoencoderTCWithBatchNorm, AutoencoderTCWithFrames, TCDiTPipeline
from tcae_diffusers.pipelines import export_with_remote_code

from .stock_pipelines import (
    CHANNELS,
    HEIGHT,
    STOCK_PIPELINES,
    WIDTH,
    encoded_by_ideogram4,
)

# What these pipelines hard-code for an f8 autoencoder, as an instance attribute that anyone can set: Lumina2 its
# ratio, HiDream the side of its latent, to whose area it rescales every request. The docs say so. And what stands for
# a text encoder where a pipeline takes no encoded prompt.
PIPELINE_ATTRIBUTES = {
    "lumina2": {"vae_scale_factor": 32},
    "hidream": {"default_sample_size": 4},
    "kandinsky5": {"vae_scale_factor_spatial": 32, "resolutions": [(WIDTH, HEIGHT)]},
    "ideogram4": {"encode_prompt": encoded_by_ideogram4},
}
SQUARE = {"dit": (64, 64), "hidream": (128, 128), "glm_image": (128, 128)}
WRAPPERS = {
    **dict.fromkeys(("flux2", "flux2_klein", "ideogram4", "ernie_image"), AutoencoderTCWithBatchNorm),
    **dict.fromkeys(("qwen_image", "qwen_image_img2img", "krea2", "glm_image"), AutoencoderTCWithFrames),
}


class RecordingAutoencoderTC(AutoencoderTC):
    """Remembers what was encoded and decoded."""

    def encode(self, x, *args, **kwargs):
        self.encoded.append(x)
        return super().encode(x, *args, **kwargs)

    def decode(self, z, *args, **kwargs):
        result = super().decode(z, *args, **kwargs)
        self.decoded.append((z, result[0]))
        return result


class RecordingWithBatchNorm(AutoencoderTCWithBatchNorm, RecordingAutoencoderTC):
    pass


class RecordingWithFrames(AutoencoderTCWithFrames, RecordingAutoencoderTC):
    """Records behind the wrapper, where there is no frame axis."""


RECORDING = {AutoencoderTCWithBatchNorm: RecordingWithBatchNorm, AutoencoderTCWithFrames: RecordingWithFrames}


def pipeline_of(name, vae):
    """The pipeline around `vae`, and what it is called with."""
    torch.manual_seed(0)
    pipeline_class, components, call = STOCK_PIPELINES[name]()
    pipeline = pipeline_class(vae=vae, **components)
    pipeline.set_progress_bar_config(disable=True)
    for attribute, value in PIPELINE_ATTRIBUTES.get(name, {}).items():
        setattr(pipeline, attribute, value)
    return pipeline, call


def pixels_of(image):
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
    return image


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
    vae = recording_vae if name not in WRAPPERS else RECORDING[WRAPPERS[name]].wrap(recording_vae)
    vae.encoded, vae.decoded = [], []
    pipeline, call = pipeline_of(name, vae)
    images = pipeline(**call, generator=torch.Generator().manual_seed(0), output_type="np")[0]

    height, width = SQUARE.get(name, (HEIGHT, WIDTH))
    assert images.shape == (1, height, width, 3)
    assert np.isfinite(images).all()
    ((latent, decoded),) = vae.decoded
    assert latent.shape == (1, CHANNELS, height // 32, width // 32)
    assert latent.std() > 0
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(images, expected.detach().numpy(), atol=1e-6)
    if "image" in call:
        torch.testing.assert_close(vae.encoded[0], pixels_of(call["image"]) * 2 - 1)
    if "control_image" in call:
        # One copy for each half of the guided batch.
        torch.testing.assert_close(vae.encoded[0], call["control_image"].expand(2, -1, -1, -1))


@pytest.mark.parametrize(("name", "missing"), [("flux2", "bn"), ("qwen_image", "temperal_downsample")])
def test_without_a_wrapper_these_pipelines_miss_something(recording_vae, name, missing):
    """If one of these stops failing, diffusers has changed and the wrapper can go."""
    with pytest.raises(AttributeError, match=missing):
        pipeline, call = pipeline_of(name, recording_vae)
        pipeline(**call)


# ------------------------------------------------------------------------------------------------------------ wrappers


@pytest.fixture
def vae(recording_vae):
    model = AutoencoderTC.from_config(recording_vae.config).eval()
    model.load_state_dict(recording_vae.state_dict())
    model.set_latent_statistics(torch.linspace(-0.5, 0.5, CHANNELS), torch.linspace(0.5, 2.0, CHANNELS))
    return model


@pytest.mark.parametrize("wrapper_class", [AutoencoderTCWithBatchNorm, AutoencoderTCWithFrames])
def test_a_wrapper_is_the_autoencoder_and_shares_its_weights(vae, wrapper_class, tmp_path):
    wrapper = wrapper_class.wrap(vae)
    own = dict(vae.named_parameters())
    assert all(parameter is own[name] for name, parameter in wrapper.named_parameters())
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(images).latent
        assert torch.equal(wrapper.encode(images).latent, latent)
        assert torch.equal(wrapper.decode(latent).sample, vae.decode(latent).sample)
        assert torch.equal(wrapper(images).sample, vae(images).sample)
    # Files are those of an AutoencoderTC but for the name of the class.
    vae.save_pretrained(tmp_path / "plain")
    wrapper.save_pretrained(tmp_path / "wrapped")
    saved = [AutoencoderTC.load_config(tmp_path / name) for name in ("plain", "wrapped")]
    assert saved[1].pop("_class_name") == wrapper_class.__name__ and saved[0].pop("_class_name") == "AutoencoderTC"
    assert saved[0] == saved[1]
    for cls, folder in ((wrapper_class, "plain"), (wrapper_class, "wrapped"), (AutoencoderTC, "wrapped")):
        loaded = cls.from_pretrained(tmp_path / folder)
        assert type(loaded) is cls
        with torch.no_grad():
            torch.testing.assert_close(loaded.encode(images).latent, latent, rtol=1e-4, atol=1e-4)
    assert type(wrapper_class.from_config(wrapper.config)) is wrapper_class


def test_a_wrapper_is_frozen_fused_tiled_and_sliced_as_the_autoencoder_is(vae):
    vae.requires_grad_(False)
    vae.decoder.proj_out.weight.requires_grad_(True)
    vae.enable_tiling(tile_sample_min_height=64, tile_sample_stride_height=32)
    vae.enable_slicing()
    vae.fuse_qkv_projections()
    flags = {name: parameter.requires_grad for name, parameter in vae.named_parameters()}
    wrapper = AutoencoderTCWithFrames.wrap(vae)
    for model in (vae, wrapper):
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert (wrapper.use_tiling, wrapper.tile_sample_min_height, wrapper.tile_sample_stride_height) == (True, 64, 32)
    assert wrapper.use_slicing
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(wrapper(images).sample, vae(images).sample)


def test_statistics_for_pipelines_change_nothing(vae):
    batch_norm = AutoencoderTCWithBatchNorm.wrap(vae)
    deviation = torch.sqrt(batch_norm.bn.running_var + batch_norm.config.batch_norm_eps)
    assert batch_norm.bn.running_mean.tolist() == [0.0] * (4 * CHANNELS)
    torch.testing.assert_close(deviation, torch.ones(4 * CHANNELS), rtol=0, atol=1e-7)
    frames = AutoencoderTCWithFrames.wrap(vae)
    assert (frames.config.z_dim, 2 ** len(frames.temperal_downsample)) == (CHANNELS, 32)
    assert frames.config.latents_mean == [0.0] * CHANNELS and frames.config.latents_std == [1.0] * CHANNELS


def test_frames_come_and_go(vae):
    frames = AutoencoderTCWithFrames.wrap(vae)
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent, sample = vae.encode(images).latent, vae(images).sample
        encoded = frames.encode(images[:, :, None])
        assert torch.equal(encoded.latent, latent[:, :, None])
        assert torch.equal(encoded.latent_dist.mode(), frames.encode(images[:, :, None], return_dict=False)[0])
        assert torch.equal(frames.decode(encoded.latent).sample, sample[:, :, None])
        assert torch.equal(frames.decode(encoded.latent, return_dict=False)[0], sample[:, :, None])
    with pytest.raises(ValueError, match=r"a video of 2 frames, shape \(1, 3, 2, 64, 32\)"):
        frames.encode(torch.zeros(1, 3, 2, 64, 32))
    with pytest.raises(ValueError, match="a video of 3 frames"):
        frames.decode(torch.zeros(1, CHANNELS, 3, 2, 2))


@pytest.mark.parametrize("name", ["flux2", "qwen_image"])
def test_pipelines_with_a_wrapper_are_saved_loaded_and_exported(vae, name, tmp_path):
    pipeline, call = pipeline_of(name, WRAPPERS[name].wrap(vae))
    expected = pipeline(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", text_encoder=None, tokenizer=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.vae) is WRAPPERS[name]
    images = loaded(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    np.testing.assert_allclose(images, expected, atol=1e-4)
    export_with_remote_code(pipeline, tmp_path / "exported")
    source = (tmp_path / "exported" / "vae" / "autoencoder_tc_wrappers.py").read_text()
    assert "class AutoencoderTC(" in source and f"class {WRAPPERS[name].__name__}(" in source


MODULAR_DECODERS = {
    "flux2": (Flux2DecodeStep, AutoencoderTCWithBatchNorm, (1, 4 * CHANNELS, 1, 1)),
    "flux3": (Flux3DecodeStep, AutoencoderTCWithBatchNorm, (1, 4 * CHANNELS, 1, 1)),
    "qwen_image": (QwenImageDecoderStep, AutoencoderTCWithFrames, (1, CHANNELS, 1, 2, 2)),
    "z_image": (ZImageVaeDecoderStep, AutoencoderTC, (1, CHANNELS, 2, 2)),
}


@pytest.mark.parametrize("name", MODULAR_DECODERS)
def test_modular_pipelines_decode_with_the_autoencoder(vae, name):
    step, vae_class, shape = MODULAR_DECODERS[name]
    modular = SequentialPipelineBlocks.from_blocks_dict({"decode": step()}).init_pipeline()
    assert isinstance(modular, ModularPipeline)
    modular.update_components(vae=vae if vae_class is AutoencoderTC else vae_class.wrap(vae))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = modular(latents=latents, output_type="pt", output="images")
    unpacked = latents.reshape(1, CHANNELS, 2, 2)
    with torch.no_grad():
        expected = vae.decode(unpacked).sample
    if name != "qwen_image":  # has a step of its own for it
        expected = (expected / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(torch.as_tensor(images), expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- from_pipe


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("stable_diffusion", "stable_diffusion_img2img"),
        ("stable_diffusion_xl", "stable_diffusion_xl_img2img"),
        ("stable_diffusion_3", "stable_diffusion_3_img2img"),
        ("flux", "flux_img2img"),
        ("sana_sprint", "sana_sprint_img2img"),
        ("z_image", "z_image_img2img"),
        ("qwen_image", "qwen_image_img2img"),
    ],
)
def test_another_pipeline_is_made_from_a_pipe_by_naming_the_autoencoder(vae, name, other):
    """diffusers hands a model over only if its class is the one in the signature, and asks for it otherwise."""
    wrapped = vae if name not in WRAPPERS else WRAPPERS[name].wrap(vae)
    pipeline, _ = pipeline_of(name, wrapped)
    expected_pipeline, call = pipeline_of(other, wrapped)
    made = type(expected_pipeline).from_pipe(pipeline, vae=pipeline.vae)
    made.set_progress_bar_config(disable=True)
    assert made.vae is wrapped
    draw = functools.partial(torch.Generator().manual_seed, 0)
    images = made(**call, generator=draw(), output_type="np").images
    np.testing.assert_allclose(
        images, expected_pipeline(**call, generator=draw(), output_type="np").images, rtol=0, atol=1e-4
    )


def test_auto_pipelines_hand_the_autoencoder_over_by_themselves(vae):
    pipeline, _ = pipeline_of("stable_diffusion_3", vae)
    made = AutoPipelineForImage2Image.from_pipe(pipeline)
    assert type(made).__name__ == "StableDiffusion3Img2ImgPipeline" and made.vae is vae


def test_our_pipeline_is_made_from_a_stock_one_without_naming_anything(vae):
    pipeline, _ = pipeline_of("dit", vae)
    assert TCDiTPipeline.from_pipe(pipeline).vae is vae
