"""Options of `train_dit` that change what is trained, logged or saved."""

import functools
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective
from tcae_diffusers.objectives.representation_alignment import RepresentationAlignment
from tcae_diffusers.training import train_dit
from tcae_diffusers.training.dit_objectives import build_alignment, build_objective, draw_step_randomness
from tcae_diffusers.training.dit_transformers import build_transformer, choose_null_class_id, drop_labels

from ..latent_commands import FOREIGN, NUM_IMAGES, assert_close, cache, calibrated, home, train, weights, with_tokens


@functools.cache
def watched_run():
    """A run with pictures, an online distance and three averages."""
    options = {"report_to": "tensorboard", "sample_steps": 3, "gfd_steps": 3, "gfd_samples": 8, "pipeline_steps": 3}
    return train(
        home() / "watched", **options, gfd_reference=home() / "images", extra_ema_decays=[0.0, 0.9], ema_decay=0.3
    )


def logged(run):
    """The run's TensorBoard entries; another file beside it holds the arguments."""
    files = [EventAccumulator(str(file)).Reload() for file in run.rglob("events.out.tfevents.*")]
    (events,) = (events for events in files if "train/loss" in events.Tags()["scalars"])
    return events


def test_pictures_and_the_online_distance_are_logged_and_plainly_labelled(tmp_path):
    events = logged(watched_run())
    (name,) = (tag for tag in events.Tags()["scalars"] if tag.startswith("online/"))
    assert name == "online/gFD-efficientnet-lite0 of 8 samples"
    assert [event.step for event in events.Scalars(name)] == [3, 6]
    assert all(event.value > 0 for event in events.Scalars(name))
    pictures = events.Images("samples/a row per class")
    assert [picture.step for picture in pictures] == [3, 6]
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string

    # Looking at the model changes nothing: the same run without pictures and distances.
    quiet = train(tmp_path / "quiet", extra_ema_decays=[0.0, 0.9], ema_decay=0.3)
    ours, theirs = (weights(run / "pipeline" / "transformer") for run in (watched_run(), quiet))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(("unconditional", "expected"), [(False, [6, 2]), (True, [8])])
def test_the_online_distance_is_of_classes_as_frequent_as_in_training(unconditional, expected):
    tokenizer, latents = calibrated()
    folders = {"tokenizer": str(tokenizer), "latents": str(latents), "gfd_reference": str(home() / "images")}
    options = {"gfd_steps": 3, "gfd_samples": 8, "unconditional": unconditional}
    arguments = train_dit.DiTArguments(output_dir="", **folders, **options)
    read = LatentCache(latents)
    read.labels = torch.tensor([0] * 15 + [1] * 5)
    pipeline = DiffusionPipeline.from_pretrained(watched_run() / "pipeline")
    labels = train_dit.build_online_frechet(arguments, pipeline, read).labels
    assert [labels.count(label) for label in sorted(set(labels))] == expected


def test_each_average_of_the_weights_is_saved_under_its_decay():
    run = watched_run()
    raw = weights(run / "checkpoints" / "step-00000006")
    averages = {decay: weights(run / "ema" / decay) for decay in ("0", "0.9")}
    averages["0.3"] = weights(run / "pipeline" / "transformer")
    # Without decay the average is the weights; the larger the decay, the further behind.
    assert all(torch.equal(value, averages["0"][key]) for key, value in raw.items() if key in averages["0"])

    def distance(decay):
        return sum((averages[decay][key] - averages["0"][key]).square().sum() for key in averages["0"])

    assert 0 < distance("0.3") < distance("0.9")


def test_averages_of_nearly_equal_decays_are_kept_apart(tmp_path):
    run = train(tmp_path / "run", max_train_steps=1, extra_ema_decays=[0.9999999, 0.99999999])
    assert {folder.name for folder in (run / "ema").iterdir()} == {"0.9999999", "0.99999999"}


def test_a_pipeline_saved_on_the_way_holds_the_averages_of_its_step(tmp_path):
    run = watched_run()
    (folder,) = (run / "pipelines").iterdir()
    assert folder.name == "step-00000003"
    saved = weights(folder / "transformer")
    # Independent of the export: the state that a run has which is stopped there.
    stopped = train(tmp_path / "stopped", checkpointing_steps=3, extra_ema_decays=[0.0, 0.9], ema_decay=0.3)
    average = torch.load(stopped / "checkpoints" / "step-00000003" / "custom_checkpoint_0.pkl", weights_only=True)
    raw = weights(stopped / "checkpoints" / "step-00000003")
    trained = [name for name in raw if name in saved]
    assert trained and any(not torch.equal(saved[name], raw[name]) for name in trained)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    parameters = dict(pipeline.transformer.named_parameters())
    assert all(
        torch.equal(shadow, parameter)
        for shadow, parameter in zip(average["shadow_params"], parameters.values(), strict=True)
    )
    assert len(pipeline([0], num_inference_steps=1).images) == 1


def test_an_unconditional_run_has_one_class(tmp_path):
    run = train(tmp_path / "run", unconditional=True)
    pipeline = DiffusionPipeline.from_pretrained(run / "pipeline")
    assert pipeline.id2label == {0: "image"} and pipeline.num_classes == 1
    assert len(pipeline(["image"], num_inference_steps=1).images) == 1


@pytest.mark.parametrize("transformer", ["dit", "tc-dit"])
@pytest.mark.parametrize(("objective", "share"), [("flow_matching", 0.95), ("epsilon", 0.8)])
def test_the_loss_falls(tmp_path, transformer, objective, share):
    options = {"max_train_steps": 60, "log_steps": 15, "train_batch_size": 16, "report_to": "tensorboard"}
    run = train(tmp_path / "run", transformer=transformer, objective=objective, **options)
    losses = [event.value for event in logged(run).Scalars("train/loss")]
    assert losses[-1] < share * losses[0], losses


def test_a_transformer_that_predicts_the_sample_learns_and_draws(tmp_path):
    options = {"max_train_steps": 60, "log_steps": 15, "train_batch_size": 16, "report_to": "tensorboard"}
    run = train(tmp_path / "run", flow_prediction="sample", timestep_shift=2.0, **options)
    losses = [event.value for event in logged(run).Scalars("train/loss")]
    assert losses[-1] < 0.8 * losses[0], losses
    assert "velocity of the predicted sample shifted by 2" in (run / "run.json").read_text()
    pipeline = DiffusionPipeline.from_pretrained(run / "pipeline")
    assert pipeline.config.prediction_type == "flow_sample" and pipeline.scheduler.config.shift == 2.0
    # A single step from pure noise ends at the latent that is predicted there.
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = pipeline([0, 1], latents=noise, num_inference_steps=1, guidance_scale=1, output_type="latent").images
    with torch.no_grad():
        timestep, labels = torch.full((2,), 1000.0), torch.tensor([0, 1])
        predicted = pipeline.transformer(noise, timestep=timestep, class_labels=labels).sample
    torch.testing.assert_close(drawn, predicted)


@pytest.mark.parametrize("transformer", ["dit", "tc-dit"])
def test_compiled_blocks_train_the_same_model(tmp_path, monkeypatch, transformer):
    compiled, compile_module = [], torch.nn.Module.compile

    def with_the_fast_backend(module):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", with_the_fast_backend)
    options = {"transformer": transformer, "num_layers": 2, "label_dropout": 0.5}
    run = train(tmp_path / "compiled", **options, compile=True)
    assert len(compiled) == 2
    ours, theirs = (
        weights(run / "pipeline/transformer"),
        weights(train(tmp_path / "plain", **options) / "pipeline/transformer"),
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        # See test_dit_resume: nothing but rounding noise moves a bias of the keys.
        if not key.endswith("to_k.bias"):
            torch.testing.assert_close(value, theirs[key], atol=1e-3, rtol=1e-3)


ALIGNED = {"repa_weight": 0.5, "repa_projector_width": 8}


def test_alignment_trains_the_transformer_and_a_projector_that_is_not_in_the_pipeline(tmp_path):
    options = {"num_layers": 2, "report_to": "tensorboard", "log_steps": 1, "transformer": "tc-dit"}
    aligned = train(tmp_path / "aligned", latents=with_tokens(), **options, **ALIGNED)
    plain = train(tmp_path / "plain", latents=with_tokens(), **options)
    curves = {name: [event.value for event in logged(aligned).Scalars(f"train/{name}")] for name in ALIGNED_LOSSES}
    for total, diffusion, alignment in zip(*curves.values(), strict=True):
        assert total == pytest.approx(diffusion + 0.5 * alignment, rel=1e-5)
    first = logged(plain).Scalars("train/loss")[0].value
    assert curves["diffusion_loss"][0] == pytest.approx(first, rel=1e-6)
    assert curves["alignment_loss"][-1] < curves["alignment_loss"][0]

    ours, theirs = (weights(run / "pipeline" / "transformer") for run in (aligned, plain))
    assert ours.keys() == theirs.keys()
    assert any(not torch.allclose(value, theirs[key], atol=1e-3) for key, value in ours.items())
    earlier, state = (weights(aligned / "checkpoints" / f"step-0000000{step}") for step in (3, 6))
    assert {name.split(".")[0] for name in state} == {"transformer", "projector"}
    trained = [name for name in state if name.startswith("projector.")]
    assert trained and all(not torch.equal(state[name], earlier[name]) for name in trained)
    assert "+ 0.5 * alignment of block 1 (mlp) with tokens of tokenizer" in (aligned / "run.json").read_text()
    assert len(DiffusionPipeline.from_pretrained(aligned / "pipeline")([0], num_inference_steps=1).images) == 1


ALIGNED_LOSSES = ("loss", "diffusion_loss", "alignment_loss")


@pytest.mark.parametrize("transformer", ["dit", "tc-dit"])
def test_compiled_blocks_are_aligned_as_others_are(tmp_path, monkeypatch, transformer):
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    options = {"transformer": transformer, "num_layers": 2, "repa_layer": 1, "adam_epsilon": 1e-3, **ALIGNED}
    runs = {
        name: weights(train(tmp_path / name, latents=with_tokens(), compile=name == "compiled", **options) / STATE)
        for name in ("compiled", "plain")
    }
    for key, value in runs["compiled"].items():
        torch.testing.assert_close(value, runs["plain"][key], atol=1e-4, rtol=1e-3)


STATE = "checkpoints/step-00000006"


# AutoencoderRAE scales inside encode: what is cached is scaled.
SCALED = {"AutoencoderKL": lambda raw: (raw - 0.2) * 0.3, "AutoencoderRAE": lambda raw: raw}


@pytest.mark.parametrize("name", SCALED)
def test_latents_of_other_autoencoders_are_scaled_as_pipelines_undo_it(tmp_path, name):
    torch.manual_seed(0)
    FOREIGN[name]().save_pretrained(tmp_path / name)
    latents = cache(tmp_path / "latents", tokenizer=tmp_path / name)
    options = {"tokenizer": tmp_path / name, "latents": latents}
    arguments = train_dit.DiTArguments(output_dir="", **{key: str(value) for key, value in options.items()})
    read = train_dit.open_cache(arguments, load_autoencoder(tmp_path / name))
    raw = LatentCache(latents)
    torch.testing.assert_close(read.read(range(NUM_IMAGES))[0], SCALED[name](raw.read(range(NUM_IMAGES))[0]))
    run = train(tmp_path / "run", **options)
    pipeline = DiffusionPipeline.from_pretrained(run / "pipeline")
    assert pipeline([0], num_inference_steps=1).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("preset", "off"),
    [
        ("imagenet256_tc_dit_xl_irepa", ["--repa_weight", "0"]),
        ("imagenet256_tc_dit_xl_irepa", ["--objective", "v_prediction"]),
        ("imagenet256_tc_dit_xl", ["--objective", "epsilon"]),
        ("openmoji32_dit", ["--label_dropout", "0"]),
    ],
)
def test_what_a_preset_asks_for_can_be_switched_off(preset, off):
    paths = ["--latents", "a", "--tokenizer", "b", "--output_dir", "c"]
    arguments = parse_arguments(train_dit.DiTArguments, ["--config", preset, *paths, *off])
    assert str(getattr(arguments, off[0].removeprefix("--"))) in (off[1], f"{off[1]}.0")


def test_a_step_draws_the_same_however_it_is_divided_and_drops_the_share_of_labels_asked_for():
    objective = FlowMatchingObjective()
    drawn = draw_step_randomness(0, 7, 4000, (1, 1, 1), objective, 0.25, torch.device("cpu"))
    again = draw_step_randomness(0, 7, 4000, (1, 1, 1), objective, 0.25, torch.device("cpu"))
    other = draw_step_randomness(0, 8, 4000, (1, 1, 1), objective, 0.25, torch.device("cpu"))
    assert all(torch.equal(drawn[name], again[name]) and not torch.equal(drawn[name], other[name]) for name in drawn)
    # Seeds that differ above the bits that a generator on a CPU looks at would draw the same.
    for seed in (1, 2, 2**31):
        other = draw_step_randomness(seed, 7, 4000, (1, 1, 1), objective, 0.25, torch.device("cpu"))
        assert all(not torch.equal(drawn[name], other[name]) for name in drawn)
    assert abs(drawn["drop"].float().mean() - 0.25) < 0.03
    labels = drop_labels(torch.arange(4), torch.tensor([True, False, False, True]), 9)
    assert labels.tolist() == [9, 1, 2, 9]


@pytest.mark.parametrize(
    ("requested", "classes", "prediction_type", "expected"),
    [
        (None, 9, "flow_prediction", 9),
        (None, 9, "epsilon", 1000),
        (None, 1000, "v_prediction", 1000),
        (None, 1001, "epsilon", 1001),
        (12, 9, "epsilon", 12),
    ],
)
def test_the_null_class_is_the_stock_pipelines_where_that_one_can_run(requested, classes, prediction_type, expected):
    null = choose_null_class_id(requested, classes, prediction_type)
    assert null == expected
    for name in ("dit", "tc-dit"):
        transformer = build_transformer(name, (4, 2, 2), classes, null, 1, 2, 8)
        inputs = torch.randn(1, 4, 2, 2), torch.tensor([10]), torch.tensor([null])
        assert transformer.eval()(*inputs).sample.shape == (1, 4, 2, 2)


def test_sizes_come_from_the_preset_unless_they_are_given():
    with torch.device("meta"):
        small = build_transformer("tc-dit-s", (4, 2, 2), 3, 3)
        shallow = build_transformer("tc-dit-s", (4, 2, 2), 3, 3, num_layers=2)
        plain = build_transformer("dit", (4, 2, 2), 3, 3)
    assert (small.config.num_layers, small.config.num_attention_heads) == (12, 6)
    assert (shallow.config.num_layers, shallow.config.num_attention_heads) == (2, 6)
    assert (plain.config.num_layers, plain.config.attention_head_dim) == (28, 72)


@pytest.mark.parametrize(
    ("config", "millions"),
    [("openmoji32_tc_dit", 4.18), ("imagenet256_tc_dit_xl", 675.2), ("imagenet256_tc_dit_xl_irepa", 675.2)],
)
def test_presets_parse_and_build_what_they_say(config, millions):
    arguments = parse_arguments(
        train_dit.DiTArguments, ["--config", config, "--latents", "l", "--tokenizer", "t", "--output_dir", "o"]
    )
    sizes = (arguments.num_layers, arguments.num_attention_heads, arguments.attention_head_dim)
    shape, classes = ((32, 4, 4), 9) if "openmoji" in config else ((128, 8, 8), 1000)
    with torch.device("meta"):
        model = build_transformer(arguments.transformer, shape, classes, classes, *sizes)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.03)
    alignment = build_alignment(arguments, model.config.num_layers, [shape])
    assert (alignment is None) == ("repa" not in config)
    if alignment is not None:
        # REPA's and iREPA's values, and RAE's shift for latents of 8,192 values.
        assert alignment == RepresentationAlignment(0.5, 8, "conv", spatial_normalization=0.6)
        assert build_objective(arguments, [shape]).shift == pytest.approx(2**0.5)


def test_the_saved_arguments_name_the_run_and_start_it_again(tmp_path):
    run = watched_run()
    assert {"train/loss", "train/grad_norm", "train/data_wait_share"} <= set(logged(run).Tags()["scalars"])
    saved = (run / "arguments.yaml").read_text()
    assert "extra_ema_decays:\n- 0.0\n- 0.9" in saved and "objective: flow_matching" in saved
    repeated = train(
        tmp_path / "again", config=run / "arguments.yaml", report_to="none", sample_steps=100, gfd_steps=0
    )
    manifests = [
        json.loads((folder / "checkpoints/step-00000006/manifest.json").read_text()) for folder in (run, repeated)
    ]
    model = "model.safetensors"
    assert manifests[0]["files"][model] == manifests[1]["files"][model]


@pytest.mark.parametrize("transformer", ["dit", "tc-dit"])
def test_a_null_class_that_was_never_trained_guides_nothing(tmp_path, transformer):
    folder = train(tmp_path / "run", transformer=transformer, label_dropout=0, max_train_steps=2, sample_steps=1)
    pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
    assert pipeline.null_class_id is None
    with pytest.raises(ValueError, match="this transformer was trained without one"):
        pipeline([0], num_inference_steps=1, guidance_scale=2.0)
    assert len(pipeline([0], num_inference_steps=1, guidance_scale=1.0).images) == 1


@pytest.mark.parametrize("name", ["dit", "tc-dit"])
def test_training_starts_from_the_weights_of_a_transformer_of_smaller_latents(tmp_path, name):
    trained = train(tmp_path / "trained", transformer=name, max_train_steps=2) / "pipeline"
    tokenizer = shutil.copytree(home() / "tokenizer", tmp_path / "tokenizer")
    larger = cache(tmp_path / "larger", tokenizer=tokenizer, write_statistics=True, resolution=32)
    still = {
        "tokenizer": tokenizer,
        "transformer": name,
        "max_train_steps": 1,
        "learning_rate": 1e-20,
        "final_learning_rate": 1e-20,
    }
    theirs = weights(trained / "transformer")
    for folder in (trained, trained / "transformer"):
        ours = train(tmp_path / f"from {folder.name}", latents=larger, **still, transformer_weights=folder)
        assert_close(weights(ours / "pipeline/transformer"), theirs)
    other = weights(train(tmp_path / "random", latents=larger, seed=1, **still) / "pipeline/transformer")
    with pytest.raises(AssertionError):
        assert_close(other, theirs)
    pipeline = DiffusionPipeline.from_pretrained(ours / "pipeline", trust_remote_code=True)
    assert pipeline.transformer.config.sample_size == 4
