"""Modular pipelines of our blocks: the plain pipeline's tensors, saved, loaded and exported."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchHeunDiscreteScheduler,
    ModularPipeline,
)
from diffusers.guiders import AdaptiveProjectedGuidance
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from PIL import Image

from tcae_diffusers import AutoencoderReconstructionBlocks, TCDiTBlocks
from tcae_diffusers.pipelines import export_with_remote_code

from .conftest import make_transformer
from .loopback_hub import LoopbackHub
from .test_pipeline_tc_dit import PredictsSample, seeds


def modular_of(pipeline):
    modular = TCDiTBlocks().init_pipeline()
    given = {name: component for name, component in pipeline.components.items() if component is not None}
    configs = {name: pipeline.config[name] for name in ("id2label", "prediction_type")}
    modular.update_components(**given, **configs)
    modular.set_progress_bar_config(disable=True)
    return modular


def both(pipeline, modular, labels, numbers, **settings):
    settings = {"num_inference_steps": 4, "output_type": "pt", **settings}
    plain = pipeline(labels, generator=seeds(*numbers), **settings).images
    return plain, modular(class_labels=labels, generator=seeds(*numbers), output="images", **settings)


@pytest.mark.parametrize(
    ("components", "settings"),
    [
        ({}, {}),
        ({}, {"output_type": "latent", "guidance_scale": 1.0}),
        ({}, {"guidance_scale": 2.0, "guidance_interval": (0.2, 0.8), "timestep_shift": 2.0}),
        ({}, {"height": 32, "width": 32, "num_images_per_label": 1}),
        ({"scheduler": FlowMatchHeunDiscreteScheduler()}, {"output_type": "np"}),
        ({"scheduler": DDIMScheduler(clip_sample=False)}, {"eta": 0.7}),
        ({"guider": AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.2)}, {}),
        ({"guidance_transformer": make_transformer(seed=1, num_layers=1)}, {"guidance_scale": 2.0}),
    ],
    ids=lambda value: "-".join(value) or "default",
)
def test_blocks_draw_the_tensors_of_the_plain_pipeline(make_pipeline, components, settings):
    pipeline = make_pipeline(**components)
    plain, drawn = both(pipeline, modular_of(pipeline), ["flags", 2], (0, 1), **settings)
    assert len(plain) == 2
    assert torch.equal(torch.as_tensor(plain), torch.as_tensor(drawn))
    other, _ = both(pipeline, modular_of(pipeline), ["flags", 2], (0, 2), **settings)
    assert not torch.equal(torch.as_tensor(other), torch.as_tensor(plain))


def test_intermediate_tensors_are_those_of_the_plain_pipeline(make_pipeline):
    pipeline = make_pipeline()
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    seen = []

    def remember(pipe, step, timestep, tensors):
        seen.append((timestep, tensors["latents"], tensors["model_output"]))
        return {}

    pipeline(
        [0, 1],
        latents=noise,
        num_inference_steps=4,
        callback_on_step_end=remember,
        callback_on_step_end_tensor_inputs=["latents", "model_output"],
    )
    modular = modular_of(pipeline)
    state = modular(class_labels=[0, 1], latents=noise, num_inference_steps=4)
    assert state.get("class_ids").tolist() == [0, 1] and state.get("height") == 16
    assert torch.equal(state.get("timesteps"), torch.stack([timestep for timestep, _, _ in seen]))
    assert torch.equal(state.get("latents"), seen[-1][1])
    assert torch.equal(state.get("model_output"), seen[-1][2])


def test_a_model_of_clean_latents_keeps_its_prediction_type(make_pipeline):
    pipeline = make_pipeline(prediction_type="flow_sample")
    pipeline.transformer = PredictsSample(pipeline.transformer)
    modular = modular_of(make_pipeline(prediction_type="flow_sample"))
    modular.transformer = pipeline.transformer
    plain, drawn = both(pipeline, modular, [0], (0,))
    assert torch.equal(plain, drawn)


def test_bad_requests_say_what_is_wrong(make_pipeline):
    modular = modular_of(make_pipeline())
    for call, message in (
        ({"class_labels": "flag"}, "no class named 'flag'"),
        ({"class_labels": 0, "height": 20}, "height 20 is not a positive multiple of 8"),
        ({"class_labels": 0, "num_inference_steps": 0}, "num_inference_steps 0 must be 1 or more"),
        ({"class_labels": 0, "guidance_interval": (0.5, 0.2)}, r"guidance_interval \(0.5, 0.2\)"),
        ({}, "Required input 'class_labels' is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            modular(**{"num_inference_steps": 1, **call})
    with pytest.raises(ValueError, match=r"has no vae; call load_components\(\) or update_components\(vae=...\)"):
        TCDiTBlocks().init_pipeline()(class_labels=0)


def test_a_block_can_be_taken_out_or_put_in(make_pipeline):
    class Doubled(ModularPipelineBlocks):
        description = "Doubles what the model says."

        def __call__(self, components, block_state, i, t):
            block_state.model_output = 2 * block_state.model_output
            return components, block_state

    pipeline = make_pipeline()
    blocks = TCDiTBlocks()
    blocks.sub_blocks.pop("decode")
    blocks.sub_blocks["denoise"].sub_blocks.insert("double", Doubled(), 1)
    modular = blocks.init_pipeline()
    given = {name: component for name, component in pipeline.components.items() if component is not None}
    modular.update_components(**given, id2label=pipeline.config.id2label)
    modular.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 1.0}
    drawn = modular(class_labels=0, generator=seeds(0), output="latents", **settings)
    pipeline.transformer = copy.deepcopy(pipeline.transformer)
    with torch.no_grad():
        for parameter in pipeline.transformer.proj_out_2.parameters():
            parameter.mul_(2)
    expected = pipeline(0, generator=seeds(0), **settings).images
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="TCDiTBlocks has other blocks than its class says"):
        export_with_remote_code(modular, "anywhere")


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_saved_plain_pipeline_loads_as_blocks(make_pipeline, tmp_path, caplog):
    pipeline = make_pipeline(guider=AdaptiveProjectedGuidance(eta=0.2))
    pipeline.save_pretrained(tmp_path)
    modular = TCDiTBlocks().init_pipeline(str(tmp_path))
    modular.load_components()
    modular.set_progress_bar_config(disable=True)
    assert "Failed" not in caplog.text and modular.guidance_transformer is None
    assert modular.guider.eta == 0.2
    plain, drawn = both(pipeline, modular, ["food-drink"], (0,))
    torch.testing.assert_close(plain, drawn, rtol=1e-4, atol=1e-4)


def test_a_saved_modular_pipeline_loads_by_name_without_trust(make_pipeline, tmp_path):
    pipeline = make_pipeline(guider=AdaptiveProjectedGuidance(eta=0.2))
    modular_of(pipeline).save_pretrained(str(tmp_path / "saved"), overwrite_modular_index=True)
    (tmp_path / "saved").rename(tmp_path / "moved")
    modular = ModularPipeline.from_pretrained(str(tmp_path / "moved"))
    modular.load_components()
    modular.set_progress_bar_config(disable=True)
    assert type(modular.blocks) is TCDiTBlocks and type(modular.vae) is type(pipeline.vae)
    plain, drawn = both(pipeline, modular, ["food-drink"], (0,))
    torch.testing.assert_close(plain, drawn, rtol=1e-4, atol=1e-4)


PROBE = """
import json, sys
sys.modules["tcae_diffusers"] = None   # an import of the package fails from here on, as if it were not installed
import numpy, torch
from diffusers import ModularPipeline
results = {}
for place in ("drawing", "lab/drawing"):
    try:
        ModularPipeline.from_pretrained(place)
    except ValueError as error:
        results[place + " untrusted"] = str(error)
    modular = ModularPipeline.from_pretrained(place, trust_remote_code=True)
    modular.load_components(trust_remote_code=True)
    modular.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.manual_seed(0)}
    images = modular(class_labels=["flags"], output="images", **settings)
    results[place] = [type(modular.blocks).__name__, float(numpy.abs(images - numpy.load("drawn.npy")).max())]
print("RESULTS" + json.dumps(results))
"""


def test_an_export_loads_without_the_package_and_only_with_trust(make_pipeline, tmp_path):
    pipeline = make_pipeline(guider=AdaptiveProjectedGuidance(eta=0.2))
    generator = torch.manual_seed(0)
    images = pipeline(["flags"], generator=generator, num_inference_steps=2, output_type="np").images
    np.save(tmp_path / "drawn.npy", images)
    export_with_remote_code(modular_of(pipeline), tmp_path / "drawing", repo_id="lab/drawing")
    config = json.loads((tmp_path / "drawing" / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "modular_blocks_tc_dit.TCDiTBlocks"}
    assert "load_components(trust_remote_code=True)" in (tmp_path / "drawing" / "README.md").read_text()
    with LoopbackHub({"lab/drawing": tmp_path / "drawing"}) as hub:
        finished = subprocess.run(
            [sys.executable, "-c", PROBE],
            cwd=tmp_path,
            env={
                **os.environ,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(tmp_path / "hf_home"),
                "HF_HUB_OFFLINE": "0",
            },
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout.split("RESULTS")[1])
    assert len(results) == 4
    for place in ("drawing", "lab/drawing"):
        name, difference = results[place]
        assert name == "TCDiTBlocks" and difference < 1e-4
        assert "trust_remote_code=True" in results[f"{place} untrusted"]


def test_blocks_of_others_are_not_exported(tmp_path):
    from diffusers.modular_pipelines import SequentialPipelineBlocks

    with pytest.raises(ValueError, match=r"SequentialPipelineBlocks is not of this package; use save_pretrained"):
        export_with_remote_code(SequentialPipelineBlocks().init_pipeline(), tmp_path / "new")


# ------------------------------------------------------------------------------------------------- encoding, decoding


def tiny_dc():
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )


def tiny_kl():
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.7,
        shift_factor=0.1,
    )


@pytest.mark.parametrize("name", ["tc", "dc", "kl"])
def test_any_autoencoder_encodes_and_decodes_as_it_does_itself(name, tiny_vae):
    torch.manual_seed(0)
    vae = {"tc": lambda: tiny_vae, "dc": tiny_dc, "kl": tiny_kl}[name]().eval()
    modular = AutoencoderReconstructionBlocks().init_pipeline()
    modular.update_components(vae=vae)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = modular(image=pixels, output_type="pt", output=["latents", "images"])
    with torch.no_grad():
        encoded = vae.encode(pixels * 2 - 1)
        latent = encoded.latent_dist.mode() if name == "kl" else encoded.latent
        images = vae.decode(latent).sample
    scaling, shift = {"tc": (1.0, 0.0), "dc": (0.4, 0.0), "kl": (0.7, 0.1)}[name]
    torch.testing.assert_close(found["latents"], (latent - shift) * scaling)
    torch.testing.assert_close(found["images"], (images / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_images_are_not_resized_in_secret(tiny_vae):
    modular = AutoencoderReconstructionBlocks().init_pipeline()
    modular.update_components(vae=tiny_vae)
    with pytest.raises(ValueError, match=r"images of 21x35 pixels \(height x width\).*PaddingImageProcessor"):
        modular(image=torch.rand(1, 3, 21, 35), output="images")


def test_noise_that_is_drawn_while_decoding_comes_from_the_generator(make_pipeline):
    class ConsistencyDecoderVAE(AutoencoderKL):
        def decode(self, z, return_dict=True, generator=None):
            (sample,) = super().decode(z, return_dict=False)
            return (sample + torch.stack([torch.randn(sample.shape[1:], generator=each) for each in generator]),)

    torch.manual_seed(0)
    pipeline = make_pipeline(vae=ConsistencyDecoderVAE.from_config(tiny_kl().config).eval())

    def drawn():
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return pipeline([0, 1], num_inference_steps=1, generator=generators, output_type="pt").images

    assert torch.equal(drawn(), drawn())


def test_what_is_decoded_is_what_the_pipeline_decodes(make_pipeline, tiny_vae):
    pipeline = make_pipeline()
    modular = AutoencoderReconstructionBlocks().init_pipeline()
    modular.update_components(vae=tiny_vae)
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    found = modular(image=picture, output=["latents", "images"])
    expected = pipeline.decode_latents(found["latents"])[0]
    np.testing.assert_array_equal(np.asarray(found["images"][0]), np.asarray(expected))


def test_a_saved_reconstruction_loads_and_a_video_autoencoder_is_refused(tiny_vae, tmp_path):
    modular = AutoencoderReconstructionBlocks().init_pipeline()
    modular.update_components(vae=tiny_vae)
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    loaded = ModularPipeline.from_pretrained(str(tmp_path))
    loaded.load_components()
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = modular(image=pixels, output="latents")
    torch.testing.assert_close(loaded(image=pixels, output="latents"), expected, rtol=1e-4, atol=1e-4)

    class Video(AutoencoderKLWan):
        spatial_compression_ratio = 8

        def encode(self, x):
            return super().encode(x[:, :, None])

    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    modular.update_components(vae=Video(**sizes, temperal_downsample=[False, True, True]).eval())
    with pytest.raises(ValueError, match=r"Video encodes images to .* without latents \(B, C, h, w\)"):
        modular(image=pixels)
