import json
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderRAE,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tcae_diffusers.pipelines import TCDiTPipeline

from .conftest import make_transformer


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


class ExactFlow(torch.nn.Module):
    """A transformer that knows the answer: every latent flows to `target` (of its class), so `v = noise - target`."""

    def __init__(self, target):
        super().__init__()
        self.model = make_transformer()
        self.config, self.target = self.model.config, target
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.calls = []

    def forward(self, hidden_states, timestep, class_labels, return_dict):
        self.calls.append((timestep[0].item(), class_labels.tolist()))
        sigma = (timestep / 1000)[:, None, None, None]
        noise = (hidden_states - (1 - sigma) * self.target) / sigma
        return (noise - self.target,)


FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(),
    "euler-shift": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler-dynamic-shift": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "heun": FlowMatchHeunDiscreteScheduler(),
    "dpmsolver++": DPMSolverMultistepScheduler(**FLOW_SOLVER),
    "unipc": UniPCMultistepScheduler(**FLOW_SOLVER),
}


@pytest.mark.parametrize("scheduler", FLOW_SCHEDULERS.values(), ids=FLOW_SCHEDULERS)
def test_flow_matching_with_the_exact_velocity_reaches_the_target(make_pipeline, scheduler):
    target = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(7))
    transformer = ExactFlow(target)
    pipeline = make_pipeline(scheduler=scheduler)
    pipeline.transformer = transformer
    latent = pipeline(1, num_inference_steps=4, guidance_scale=1, output_type="latent").images
    # DPM-Solver++ and UniPC round timesteps to integers: 1/1000 of the noise level.
    assert (latent - target).abs().max() < 0.02
    called_at = [timestep for timestep, _ in transformer.calls]
    assert called_at[0] > 990
    assert called_at == sorted(called_at, reverse=True)


class PredictsSample(torch.nn.Module):
    """A transformer of velocities as one that predicts the clean latent; `target` instead, if there is one."""

    def __init__(self, transformer, target=None):
        super().__init__()
        self.transformer, self.config, self.target = transformer, transformer.config, target
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, hidden_states, timestep, class_labels, return_dict):
        if self.target is not None:
            return (self.target.expand_as(hidden_states),)
        velocity = self.transformer(hidden_states, timestep, class_labels, return_dict=False)[0]
        return (hidden_states - timestep.view(-1, 1, 1, 1) / 1000 * velocity,)


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_a_model_that_predicts_the_clean_latent_reaches_it(make_pipeline, tiny_transformer, name):
    target = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(7))
    pipeline = make_pipeline(scheduler=FLOW_SCHEDULERS[name], prediction_type="flow_sample")
    pipeline.transformer = PredictsSample(tiny_transformer, target)
    latent = pipeline(1, num_inference_steps=4, guidance_scale=1, output_type="latent").images
    torch.testing.assert_close(latent, target, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["euler", "euler-shift", "heun"])
def test_a_predicted_clean_latent_draws_what_its_velocity_draws(make_pipeline, tiny_transformer, name):
    settings = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 3.0, "timestep_shift": 1.5}
    scheduler = FLOW_SCHEDULERS[name]
    expected = make_pipeline(scheduler=scheduler)([0, 1], generator=seeds(0, 1), **settings).images
    pipeline = make_pipeline(scheduler=scheduler, prediction_type="flow_sample")
    velocities = pipeline([0, 1], generator=seeds(0, 1), **settings).images
    assert not torch.allclose(velocities, expected, atol=0.1)
    pipeline.transformer = PredictsSample(tiny_transformer)
    assert pipeline.null_class_id == 3
    torch.testing.assert_close(
        pipeline([0, 1], generator=seeds(0, 1), **settings).images, expected, atol=1e-4, rtol=1e-4
    )


def test_a_model_that_predicts_the_clean_latent_refuses_schedulers_of_diffusion(make_pipeline):
    pipeline = make_pipeline(prediction_type="flow_sample")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    message = r"trained for 'flow_sample'.*'epsilon'.*prediction_type=\"flow_prediction\", use_flow_sigmas=True"
    with pytest.raises(ValueError, match=message):
        pipeline(0)


@pytest.mark.parametrize("name", ["euler", "euler-shift", "heun", "dpmsolver++", "unipc"])
def test_a_sampling_shift_draws_as_a_scheduler_of_that_shift_and_leaves_ours_alone(make_pipeline, name, tmp_path):
    scheduler = FLOW_SCHEDULERS[name]
    key = "shift" if name.startswith(("euler", "heun")) else "flow_shift"
    pipeline = make_pipeline(scheduler=type(scheduler).from_config(scheduler.config))
    settings = {"num_inference_steps": 4, "output_type": "latent"}

    def draw(pipeline, **shift):
        return pipeline([0, 1], generator=seeds(0, 1), **settings, **shift).images

    unshifted = draw(pipeline)
    shifted = draw(pipeline, timestep_shift=2.5)
    other = make_pipeline(scheduler=type(scheduler).from_config(scheduler.config, **{key: 2.5}))
    assert torch.equal(shifted, draw(other))
    assert not torch.allclose(shifted, unshifted, atol=1e-3)
    assert torch.equal(draw(pipeline), unshifted)
    assert pipeline.scheduler.config == scheduler.config


@pytest.mark.parametrize(
    ("scheduler", "shift", "message"),
    [
        (DDIMScheduler(clip_sample=False), 2.0, "timestep_shift=2.0 needs a flow matching scheduler .*DDIMScheduler"),
        (DPMSolverMultistepScheduler(), 2.0, "DPMSolverMultistepScheduler has none, so omit timestep_shift"),
        (FLOW_SCHEDULERS["euler-dynamic-shift"], 2.0, "use_dynamic_shifting=True: its shift follows the size"),
        (FLOW_SCHEDULERS["euler"], 0.0, "timestep_shift 0.0 must be above 0"),
    ],
)
def test_a_shift_that_the_scheduler_cannot_take_is_refused(make_pipeline, scheduler, shift, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(scheduler=scheduler)(0, num_inference_steps=1, timestep_shift=shift)


DIFFUSION_SCHEDULERS = {
    "ddpm": DDPMScheduler(clip_sample=False),
    "ddpm-v": DDPMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddim": DDIMScheduler(clip_sample=False),
    "dpmsolver++": DPMSolverMultistepScheduler(),
    "dpmsolver++-sde": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "unipc": UniPCMultistepScheduler(prediction_type="v_prediction"),
    "euler": EulerDiscreteScheduler(),
}


class ExactNoise(ExactFlow):
    """The same for variance-preserving diffusion: knows which noise was added to `target`."""

    def forward(self, hidden_states, timestep, class_labels, return_dict):
        alphas_cumprod = DDPMScheduler().alphas_cumprod.log()
        # Euler's timesteps need not be integers.
        below = timestep.long().clamp(max=998)
        alpha_bar = torch.lerp(alphas_cumprod[below], alphas_cumprod[below + 1], timestep.float() - below).exp()
        alpha_bar = alpha_bar[:, None, None, None].float()
        return ((hidden_states - alpha_bar.sqrt() * self.target) / (1 - alpha_bar).sqrt(),)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++", "dpmsolver++-sde", "euler"])
def test_diffusion_with_the_exact_noise_reaches_the_target(make_pipeline, name):
    target = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(7))
    pipeline = make_pipeline(scheduler=DIFFUSION_SCHEDULERS[name])
    pipeline.transformer = ExactNoise(target)
    latent = pipeline(1, num_inference_steps=20, guidance_scale=1, output_type="latent").images
    assert (latent - target).abs().max() < 0.05


@pytest.mark.parametrize(
    "scheduler",
    [*FLOW_SCHEDULERS.values(), *DIFFUSION_SCHEDULERS.values()],
    ids=[*(f"flow-{name}" for name in FLOW_SCHEDULERS), *DIFFUSION_SCHEDULERS],
)
def test_each_image_depends_on_its_own_seed_and_class_only(make_pipeline, scheduler):
    pipeline = make_pipeline(scheduler=scheduler)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent", "eta": 0.5}
    batch = pipeline(["flags", "food-drink", "flags"], generator=seeds(1, 2, 3), **settings).images
    assert torch.isfinite(batch).all()
    for i, (label, seed) in enumerate([(0, 1), (1, 2), (0, 3)]):
        alone = pipeline(label, generator=seeds(seed), **settings).images
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    other_class = pipeline(2, generator=seeds(1), **settings).images
    assert not torch.allclose(batch[:1], other_class, atol=1e-3)


@pytest.mark.parametrize(
    "class_labels", [[1, 0], ["food-drink", "national flags"], [[1], [0]], torch.tensor([1, 0]), np.array([[1], [0]])]
)
def test_class_labels_may_be_ids_names_or_nested(make_pipeline, class_labels):
    ids = make_pipeline()._prepare_class_labels(class_labels)
    assert ids == [1, 0]


PEPPER = "Pepper,_bell___healthy"


@pytest.mark.parametrize(
    ("names", "label", "found"),
    [
        ([PEPPER, "Pepper,_bell___Bacterial_spot"], PEPPER, 0),
        ([PEPPER, "Pepper,_bell___Bacterial_spot"], "_bell___healthy", 0),
        ([PEPPER, "Pepper"], "Pepper", 1),
        (["A", "B", "a", "b"], "A", 0),
        (["A", "B", "a", "b"], "b", 3),
        (["A", "B", "a"], " b ", 1),
        (["tench, Tinca tinca", "goldfish"], "tinca TINCA", 0),
        (["a/b", "", "..", " x"], "", 1),
        (["a/b", "", "..", "x", " x"], " x", 4),
        (["cafe\u0301"], "caf\u00e9", 0),
        (["\udcff", "y"], "\udcff", 0),
    ],
)
def test_a_class_is_found_by_its_own_name_before_anything_like_it(make_pipeline, names, label, found):
    pipeline = make_pipeline(transformer=make_transformer(num_embeds_ada_norm=5), id2label=dict(enumerate(names)))
    assert pipeline.get_label_ids(label) == [found]
    for name, class_id in pipeline.labels.items():
        assert pipeline.get_label_ids(name) == [class_id]
    assert {name: pipeline.get_label_ids(name) for name in names} == {name: [names.index(name)] for name in names}


@pytest.mark.parametrize(
    ("names", "label", "meant"),
    [
        (["crane", "heron", "crane"], "crane", "0 ('crane'), 2 ('crane')"),
        (["A", "B", "a"], " a", "0 ('A'), 2 ('a')"),
        ([PEPPER, "Pepper,_bell___Bacterial_spot"], "Pepper", f"0 ({PEPPER!r}), 1 ('Pepper,_bell___Bacterial_spot')"),
    ],
)
def test_a_name_of_several_classes_is_an_error_that_lists_their_ids(make_pipeline, names, label, meant):
    pipeline = make_pipeline(id2label=dict(enumerate(names)))
    with pytest.raises(ValueError, match=re.escape(f"ambiguous: it matches the ids {meant}; pass an id")):
        pipeline(label)
    assert label not in pipeline.labels


def test_names_that_the_transformer_has_no_class_for_are_refused(make_pipeline):
    with pytest.raises(ValueError, match=r"has class 3 \('d'\), but the transformer has the classes 0 to 2"):
        make_pipeline(id2label=dict(enumerate("abcd")))
    with pytest.raises(ValueError, match="id2label contains ids both as a number and as text: 1, '1'"):
        make_pipeline(id2label={1: "a", "1": "b"})


def test_output_types_and_order_of_images(make_pipeline, tiny_vae):
    pipeline = make_pipeline()
    settings = {"num_inference_steps": 2, "num_images_per_label": 2}
    images = {
        kind: pipeline([0, 1], generator=seeds(0, 1, 2, 3), output_type=kind, **settings).images
        for kind in ("latent", "pt", "np", "pil")
    }
    assert images["latent"].shape == (4, 4, 2, 2)
    decoded = tiny_vae.decode(images["latent"]).sample
    torch.testing.assert_close(images["pt"], (decoded / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(images["np"], images["pt"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(images["pil"][2]), (images["np"][2] * 255).round().astype("uint8"))
    second_of_first_label = pipeline(0, generator=seeds(1), num_inference_steps=2, output_type="latent").images
    torch.testing.assert_close(images["latent"][1:2], second_of_first_label, rtol=1e-4, atol=1e-4)
    as_tuple = pipeline(0, generator=seeds(1), num_inference_steps=2, output_type="latent", return_dict=False)
    assert torch.equal(as_tuple[0], second_of_first_label)


def test_foreign_autoencoders_are_decoded_by_their_scaling_factor(make_pipeline):
    torch.manual_seed(0)
    vae = AutoencoderDC(
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
    ).eval()
    pipeline = make_pipeline(vae=vae)
    assert pipeline.spatial_compression_ratio == 2
    settings = {"num_inference_steps": 1, "guidance_scale": 1}
    latent = pipeline(0, generator=seeds(0), output_type="latent", **settings).images
    image = pipeline(0, generator=seeds(0), output_type="pt", **settings).images
    torch.testing.assert_close(image, (vae.decode(latent / 0.4).sample / 2 + 0.5).clamp(0, 1))


def test_an_autoencoder_that_scales_inside_and_works_on_unit_range_is_decoded_as_such(make_pipeline):
    torch.manual_seed(0)
    vae = AutoencoderRAE(
        encoder_type="mae",
        encoder_hidden_size=64,
        encoder_patch_size=16,
        encoder_num_hidden_layers=1,
        encoder_input_size=32,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        patch_size=4,
        scaling_factor=0.5,
    ).eval()
    pipeline = make_pipeline(vae=vae, transformer=make_transformer(in_channels=64, out_channels=64))
    assert pipeline.spatial_compression_ratio == 4
    settings = {"num_inference_steps": 1, "guidance_scale": 1}
    latent = pipeline(0, generator=seeds(0), output_type="latent", **settings).images
    image = pipeline(0, generator=seeds(0), output_type="pt", **settings).images
    assert latent.shape == (1, 64, 2, 2) and image.shape == (1, 3, 8, 8)
    torch.testing.assert_close(image, vae.decode(latent).sample.clamp(0, 1))


def test_other_sizes_and_given_latents(make_pipeline):
    pipeline = make_pipeline()
    assert pipeline(0, num_inference_steps=1, output_type="pil").images[0].size == (16, 16)
    assert pipeline(0, num_inference_steps=1, height=32, width=32).images[0].size == (32, 32)
    noise = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    given = pipeline(0, latents=noise, **settings).images
    drawn = pipeline(0, generator=seeds(5), height=24, width=24, **settings).images
    assert torch.equal(given, drawn)


def test_guidance_moves_away_from_the_null_class_within_the_interval_only(make_pipeline):
    transformer = ExactFlow(torch.zeros(1, 4, 2, 2))
    pipeline = make_pipeline()
    pipeline.transformer = transformer
    pipeline([0, 1], num_inference_steps=4, guidance_scale=2.0, guidance_interval=(0.3, 0.8), output_type="latent")
    # Four steps of FlowMatchEuler are at noise levels 1, 0.667, 0.334 and 0.001. 3 is the null class of three classes.
    assert [labels for _, labels in transformer.calls] == [[0, 1], [0, 1, 3, 3], [0, 1, 3, 3], [0, 1]]


def test_a_learned_variance_in_a_config_is_used_only_by_classes_that_know_it(make_pipeline):
    pipeline = make_pipeline(
        transformer=make_transformer(out_channels=8),
        scheduler=DDPMScheduler(clip_sample=False, variance_type="learned_range"),
    )
    settings = {"num_inference_steps": 2, "output_type": "latent", "generator": None}
    trained = pipeline.scheduler.config
    for kind in (DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler):
        pipeline.scheduler = kind.from_config(trained)
        assert pipeline.scheduler.config.variance_type == "learned_range"
        assert pipeline(0, **settings).images.shape == (1, 4, 2, 2)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(trained)
    with pytest.raises(ValueError, match="takes images only, not latents; pass variance_type=None"):
        pipeline(0, **settings)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(trained, variance_type=None)
    assert pipeline(0, **settings).images.shape == (1, 4, 2, 2)


@pytest.mark.parametrize("name", ["IPNDMScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_schedulers_that_read_the_output_otherwise_are_refused(make_pipeline, name):
    pipeline = make_pipeline(scheduler=DDIMScheduler(clip_sample=False), prediction_type="epsilon")
    # It keeps the prediction type of the other class.
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=f"{name} reads a model's output in a way of its own"):
        pipeline(0, num_inference_steps=2)


def test_the_shift_of_training_is_not_lost_with_the_class_of_the_scheduler(make_pipeline):
    pipeline = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    settings = {"num_inference_steps": 3, "output_type": "latent"}

    def draw(scheduler, **shift):
        pipeline.scheduler = scheduler
        return pipeline([0, 1], generator=seeds(0, 1), **settings, **shift).images

    trained = pipeline.scheduler.config
    lost = DPMSolverMultistepScheduler.from_config(trained, **FLOW_SOLVER)
    with pytest.raises(ValueError, match=r"has flow_shift=1.0, and .* had shift=3.0: pass flow_shift=3.0"):
        draw(lost)
    kept = DPMSolverMultistepScheduler.from_config(trained, **FLOW_SOLVER, flow_shift=3.0)
    clean = DPMSolverMultistepScheduler(**FLOW_SOLVER, flow_shift=3.0)
    assert torch.equal(draw(kept), draw(clean))
    # The shift of a call is the class's own, whatever else its config holds.
    unshifted = draw(DPMSolverMultistepScheduler(**FLOW_SOLVER, flow_shift=1.0))
    assert torch.equal(draw(kept, timestep_shift=1.0), unshifted) and torch.equal(
        draw(lost, timestep_shift=1.0), unshifted
    )
    assert not torch.allclose(draw(kept), unshifted, atol=1e-3)
    back = FlowMatchEulerDiscreteScheduler.from_config(clean.config)
    with pytest.raises(ValueError, match=r"has shift=1.0, .* had flow_shift=3.0"):
        draw(back)


def test_a_shift_by_size_is_not_passed_over(make_pipeline):
    dynamic = FLOW_SCHEDULERS["euler-dynamic-shift"]
    pipeline = make_pipeline(scheduler=FlowMatchHeunDiscreteScheduler.from_config(dynamic.config))
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler does not know use_dynamic_shifting"):
        pipeline(0, num_inference_steps=2)


def test_class_names_may_be_a_list(make_pipeline):
    assert make_pipeline(id2label=["a", "b", "c"]).id2label == {0: "a", 1: "b", 2: "c"}


def test_learned_variance_reaches_the_scheduler_that_uses_it_and_no_other(make_pipeline):
    transformer = make_transformer(out_channels=8)
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    for scheduler in (
        DDIMScheduler(clip_sample=False),
        DDPMScheduler(clip_sample=False, variance_type="learned_range"),
    ):
        pipeline = make_pipeline(transformer=transformer, scheduler=scheduler)
        latent = pipeline([0, 1], generator=seeds(0, 1), **settings).images
        assert latent.shape == (2, 4, 2, 2)
        assert torch.isfinite(latent).all()


def test_step_end_callback_sees_and_changes_tensors_and_can_stop(make_pipeline):
    pipeline = make_pipeline()
    steps = []

    def stop_after_two(pipe, step, timestep, tensors):
        steps.append((step, sorted(tensors)))
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    latent = pipeline(
        0,
        num_inference_steps=5,
        output_type="latent",
        callback_on_step_end=stop_after_two,
        callback_on_step_end_tensor_inputs=["latents", "model_output"],
    ).images
    assert steps == [(0, ["latents", "model_output"]), (1, ["latents", "model_output"])]
    assert (latent == 0).all()
    assert not pipeline(0, num_inference_steps=2, output_type="latent").images.eq(0).any(), "the next call must run"


def test_progress_bar_counts_scheduler_steps(make_pipeline, capsys):
    pipeline = make_pipeline(scheduler=FlowMatchHeunDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=False, mininterval=0)
    pipeline(0, num_inference_steps=3, output_type="latent")
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(make_pipeline, dtype, tiny_vae):
    settings = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 2.0}
    expected = make_pipeline()(1, generator=seeds(0), **settings).images
    half_vae = type(tiny_vae).from_config(tiny_vae.config).eval()
    half_vae.load_state_dict(tiny_vae.state_dict())
    pipeline = make_pipeline(vae=half_vae, transformer=make_transformer()).to(dtype=dtype)
    image = pipeline(1, generator=seeds(0), **settings).images
    assert image.dtype == torch.float32
    assert (image - expected).abs().mean() < 0.02


def test_save_and_load_keep_everything(make_pipeline, tmp_path):
    weaker = make_transformer(seed=1, num_layers=1)
    pipeline = make_pipeline(guidance_transformer=weaker)
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipeline("food-drink", generator=seeds(0), **settings).images
    pipeline.save_pretrained(tmp_path)
    loaded = TCDiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.id2label == {0: "flags, national flags", 1: "food-drink", 2: "animals-nature"}
    assert loaded.labels == pipeline.labels
    assert loaded.config.prediction_type == "flow_prediction"
    for name in ("vae", "transformer", "guidance_transformer"):
        saved, kept = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert saved.keys() == kept.keys()
        assert all(torch.equal(saved[key], kept[key]) for key in saved)
    # Not bit-equal: loaded weights are memory-mapped, and matmul kernels depend on the alignment of their memory.
    image = loaded("food-drink", generator=seeds(0), **settings).images
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)

    without = TCDiTPipeline.from_pretrained(tmp_path, guidance_transformer=None)
    without.set_progress_bar_config(disable=True)
    assert without.guidance_transformer is None
    assert not torch.allclose(without(1, generator=seeds(0), **settings).images, expected)
    without.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["guidance_transformer"] == [None, None]


def test_from_pipe_shares_components_of_any_class(make_pipeline, tiny_vae):
    weaker = make_transformer(seed=1, num_layers=1)
    pipeline = make_pipeline(guidance_transformer=weaker)
    again = TCDiTPipeline.from_pipe(pipeline)
    for name, component in pipeline.components.items():
        assert getattr(again, name) is component
    assert again.id2label == pipeline.id2label
    assert again.config.prediction_type == "flow_prediction"
    scheduler = FlowMatchHeunDiscreteScheduler()
    replaced = TCDiTPipeline.from_pipe(pipeline, scheduler=scheduler, guidance_transformer=None)
    assert replaced.scheduler is scheduler
    assert replaced.guidance_transformer is None
    stock = DiTPipeline(pipeline.transformer, tiny_vae, DDIMScheduler(clip_sample=False))
    assert TCDiTPipeline.from_pipe(stock).vae is tiny_vae


def test_a_scheduler_of_another_prediction_type_is_refused(make_pipeline):
    pipeline = make_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"trained for 'flow_prediction'.*'epsilon'.*use_flow_sigmas=True"):
        pipeline(0)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **FLOW_SOLVER)
    pipeline(0, num_inference_steps=1)


def test_a_model_without_a_null_class_draws_unguided_only(make_pipeline):
    transformer = make_transformer()
    for block in transformer.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        embedder.embedding_table = torch.nn.Embedding(3, 16)
    pipeline = make_pipeline(transformer=transformer)
    assert pipeline.null_class_id is None
    pipeline(0, num_inference_steps=1, guidance_scale=1)
    with pytest.raises(ValueError, match="needs a null class"):
        pipeline(0, num_inference_steps=1, guidance_scale=2)


def test_the_null_class_is_the_last_row_and_can_be_drawn(make_pipeline):
    wide = make_pipeline(transformer=make_transformer(num_embeds_ada_norm=1000))
    assert wide.null_class_id == 1000
    assert len(wide(1000, num_inference_steps=1).images) == 1
    assert make_pipeline().null_class_id == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": "flag"}, r"no class named 'flag'; did you mean .*'flags'"),
        ({"class_labels": ["Animal-natur"]}, r"did you mean 'animals-nature'"),
        ({"class_labels": "xyzzy"}, r"see pipe.labels"),
        ({"class_labels": 4}, r"Class id 4 is not in id2label, whose ids are 0 to 2"),
        ({"class_labels": -1}, r"Class id -1"),
        ({"class_labels": 1.5}, r"1.5 of type float"),
        ({"class_labels": []}, r"class_labels is empty"),
        ({"height": 20}, r"height 20 is not a positive multiple of 8"),
        ({"num_inference_steps": 0}, r"num_inference_steps 0 must be 1 or more"),
        ({"height": 16, "width": 32}, r"square images only, got height 16 and width 32"),
        ({"latents": torch.zeros(2, 4, 2, 2)}, r"latents has shape \(2, 4, 2, 2\), expected \(1, 4, 2, 2\)"),
        ({"latents": torch.zeros(1, 4, 2)}, r"latents has shape"),
        ({"generator": seeds(0, 1)}, r"2 generators for 1 images"),
        ({"num_images_per_label": 0}, r"num_images_per_label 0"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval \(0.5, 0.2\)"),
        ({"output_type": "jpeg"}, r"output_type 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, r"\['prompt'\]"),
    ],
)
def test_bad_requests_say_what_is_wrong(make_pipeline, call, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**{"class_labels": 0, "num_inference_steps": 1, **call})


def test_a_class_without_a_name_among_named_ones_is_said_to_have_none(make_pipeline):
    pipeline = make_pipeline(id2label={0: "cat", 2: "dog"})
    with pytest.raises(ValueError, match="Class id 1 is not in id2label, whose ids are 2 of those from 0 to 2"):
        pipeline(1, num_inference_steps=1)


def test_class_ids_beyond_the_table_are_refused_without_names_too(make_pipeline):
    pipeline = make_pipeline(id2label=None)
    with pytest.raises(ValueError, match="out of range; expected 0 to 2"):
        pipeline(7)
    with pytest.raises(ValueError, match="has no id2label"):
        pipeline("flags")


def test_compiled_transformers_draw_the_same(make_pipeline):
    settings = {"num_inference_steps": 3, "guidance_interval": (0.0, 0.9), "output_type": "latent"}
    expected = make_pipeline()(1, generator=seeds(0), **settings).images
    # The eager backend traces as the default one does, without its minutes of code generation.
    compiled = torch.compile(make_transformer(), backend="eager", fullgraph=True)
    pipeline = make_pipeline(transformer=compiled)
    drawn = pipeline(1, generator=seeds(0), **settings).images
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="square images only"):
        pipeline(1, height=16, width=32)


def test_model_offload_moves_each_model_in_and_out(make_pipeline, tiny_vae):
    """On the CPU the hooks move nothing, but they run in the order in which a GPU would see them."""
    vae = type(tiny_vae).from_config(tiny_vae.config).eval()
    vae.load_state_dict(tiny_vae.state_dict())
    pipeline = make_pipeline(vae=vae, transformer=make_transformer(), guidance_transformer=make_transformer(seed=1))
    expected = pipeline(1, generator=seeds(0), num_inference_steps=2, output_type="pt").images
    pipeline.enable_model_cpu_offload(device="cpu")
    moved = []
    for name in ("transformer", "vae"):
        hook = getattr(pipeline, name)._hf_hook
        pre_forward = hook.pre_forward
        hook.pre_forward = lambda *args, _name=name, _run=pre_forward, **kwargs: (
            moved.append(_name) or _run(*args, **kwargs)
        )
    images = pipeline(1, generator=seeds(0), num_inference_steps=2, output_type="pt").images
    assert moved == ["transformer", "transformer", "vae"]
    torch.testing.assert_close(images, expected)
    pipeline.remove_all_hooks()
