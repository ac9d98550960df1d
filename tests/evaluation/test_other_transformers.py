"""`generate` with transformers that were not saved with the pipeline: other averages, and weaker guides."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.evaluation.arguments.guidance_sweep import GuidanceSweepArguments
from tcae_diffusers.evaluation.arguments.sampling import SamplingArguments
from tcae_diffusers.evaluation.commands import measured_samples
from tcae_diffusers.evaluation.commands.guidance_sweep import run as sweep
from tcae_diffusers.evaluation.pictures.drawing import draw, load_pipeline
from tcae_diffusers.trainer.posthoc_ema import PowerFunctionEMA, reconstruct

from .conftest import evaluate
from .test_drawn_classes import class_folder_set


def changed(pipeline_folder, seed):
    """The saved pipeline with other weights of its transformer."""
    pipeline = load_pipeline(pipeline_folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return pipeline


@pytest.fixture(scope="module")
def runs(pipeline_folder, tmp_path_factory):
    """What train_dit leaves: `pipeline/`, `ema/0.9/`, `ema_snapshots/` and `pipelines/step-00000005/`."""
    folder = tmp_path_factory.mktemp("run")
    changed(pipeline_folder, 0).save_pretrained(folder / "pipeline")
    changed(pipeline_folder, 1).transformer.save_pretrained(folder / "ema" / "0.9")
    changed(pipeline_folder, 2).save_pretrained(folder / "pipelines" / "step-00000005")
    transformer = changed(pipeline_folder, 3).transformer
    averages = [PowerFunctionEMA(transformer.parameters(), sigma) for sigma in (0.05, 0.1)]
    names = [name for name, _ in transformer.named_parameters()]
    for seed in range(4):
        weights = list(changed(pipeline_folder, 10 + seed).transformer.parameters())
        for average in averages:
            average.step(weights)
            if seed % 2:
                average.save_snapshot(folder / "ema_snapshots", names)
    return folder


def generate(runs, output, *extra):
    arguments = ["generate", "--pipeline", runs / "pipeline", "--output", output, "--num_images", 2]
    return evaluate(*arguments, "--num_inference_steps", 2, "--device", "cpu", *extra)


def images(folder):
    drawn = open_image_set(folder)
    return torch.stack([torch.from_numpy(drawn[index]) for index in range(2)])


def expected(pipeline, **sampling):
    pipeline.set_progress_bar_config(disable=True)
    return torch.from_numpy(draw(pipeline, [0, 1], [0, 1], 0, num_inference_steps=2, **sampling))


def test_another_average_draws_as_a_pipeline_that_holds_it(runs, tmp_path):
    assert generate(runs, tmp_path / "set", "--transformer", runs / "ema" / "0.9") == 0
    own = load_pipeline(runs / "pipeline")
    assert not torch.equal(images(tmp_path / "set"), expected(own, guidance_scale=1.0))
    own.transformer = type(own.transformer).from_pretrained(runs / "ema" / "0.9")
    assert torch.equal(images(tmp_path / "set"), expected(own, guidance_scale=1.0))


def test_in_half_precision_the_pipeline_of_another_step_is_still_of_the_same_latents(runs, tmp_path):
    options = ["--transformer", runs / "pipelines" / "step-00000005", "--dtype", "bfloat16"]
    assert generate(runs, tmp_path / "set", *options) == 0


def test_a_length_of_the_average_can_be_chosen_while_drawing(runs, tmp_path):
    options = ["--ema_snapshots", runs / "ema_snapshots", "--ema_sigma", 0.07]
    assert generate(runs, tmp_path / "set", *options) == 0
    pipeline = load_pipeline(runs / "pipeline")
    pipeline.transformer.load_state_dict(reconstruct(runs / "ema_snapshots", 0.07), strict=False)
    assert torch.equal(images(tmp_path / "set"), expected(pipeline, guidance_scale=1.0))
    assert generate(runs, tmp_path / "other", *options[:3], 0.12) == 0
    assert not torch.equal(images(tmp_path / "set"), images(tmp_path / "other"))


def test_guidance_leads_away_from_a_transformer_of_an_earlier_step(runs, tmp_path, capsys):
    guide = runs / "pipelines" / "step-00000005"
    scale = ["--guidance_scale", 2]
    assert generate(runs, tmp_path / "set", *scale, "--guidance_transformer", guide) == 0
    pipeline = load_pipeline(runs / "pipeline")
    without = expected(pipeline, guidance_scale=2.0)
    pipeline.register_modules(guidance_transformer=load_pipeline(guide).transformer)
    assert torch.equal(images(tmp_path / "set"), expected(pipeline, guidance_scale=2.0))
    assert not torch.equal(images(tmp_path / "set"), without)
    # A transformer by itself is the same; the settings know the weights.
    assert generate(runs, tmp_path / "same", *scale, "--guidance_transformer", guide / "transformer") == 0
    assert torch.equal(images(tmp_path / "set"), images(tmp_path / "same"))
    noted = json.loads((tmp_path / "set" / "manifest.json").read_text())["guidance_transformer"]
    assert set(noted) == {"config_sha256", "weights_sha256"}
    assert generate(runs, tmp_path / "set", *scale) == 2
    assert "guidance_transformer: {" in capsys.readouterr().err


def test_decoders_are_compared_on_latents_led_away_from_it(runs, image_folder, tmp_path):
    drawing = ["--pipeline", runs / "pipeline", "--num_images", 24, "--num_inference_steps", 2, "--device", "cpu"]
    drawing += ["--guidance_scale", 2, "--guidance_transformer", runs / "pipelines" / "step-00000005"]
    assert evaluate("generate", *drawing, "--output", tmp_path / "alone") == 0
    others = ["--decoders", f"same={runs / 'pipeline' / 'vae'}", "--reference", image_folder, "--no_feature_cache"]
    assert evaluate("decoders", *drawing, *others, "--output", tmp_path / "out") == 0
    for name in ("pipeline", "same"):
        assert torch.equal(images(tmp_path / "alone"), images(tmp_path / "out" / "samples" / name))


def test_decoders_without_guidance_are_refused_before_anything_is_loaded(tmp_path, capsys):
    nowhere = [f"--{name}={tmp_path / name}" for name in ("pipeline", "decoders", "reference", "guidance_transformer")]
    assert evaluate("decoders", *nowhere, "--output", tmp_path / "out") == 2
    assert "--guidance_transformer" in capsys.readouterr().err


def test_a_sweep_guides_by_it_where_it_guides_at_all(runs, monkeypatch, tmp_path):
    passed = []

    def stop(run, arguments, kind):
        passed.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(measured_samples, "run_unless_done", stop)
    real = str(class_folder_set(tmp_path / "real", {"cat": 8}))
    for scale in (1.0, 2.0):
        arguments = GuidanceSweepArguments(
            pipeline="p", output=tmp_path, reference=real, scales=[scale], guidance_transformer="weaker"
        )
        with pytest.raises(KeyboardInterrupt):
            sweep(arguments)
    assert [(each.guidance_scale, each.guidance_transformer) for each in passed] == [(1.0, None), (2.0, "weaker")]
    assert SamplingArguments(reference=real).num_images == passed[0].num_images


def test_what_does_not_fit_is_named_and_nothing_is_drawn(runs, save_pipeline, tmp_path, capsys):
    other = save_pipeline(["circles", "squares", "stripes"])
    pipeline = DiffusionPipeline.from_pretrained(runs / "pipeline")
    pipeline.register_to_config(prediction_type="flow_sample")
    pipeline.save_pretrained(tmp_path / "predicts_sample")
    # Trained for something else, which the config of a transformer does not say.
    renamed = save_pipeline(["squares", "circles"])
    pipeline = DiffusionPipeline.from_pretrained(runs / "pipeline")
    pipeline.vae.set_latent_statistics(torch.zeros(4), torch.full((4,), 2.0))
    pipeline.save_pretrained(tmp_path / "calibrated")
    guided = ["--guidance_scale", 2, "--guidance_transformer"]
    snapshots = ["--ema_snapshots", runs / "ema_snapshots"]
    for options, message in (
        (["--transformer", tmp_path / "none"], f"--transformer {tmp_path / 'none'} is neither a transformer nor"),
        (["--transformer", other], f"--transformer {other} is another transformer than the one in the pipeline"),
        (
            ["--transformer", runs / "ema" / "0.9", *snapshots, "--ema_sigma", 0.1],
            "must be omitted with --ema_snapshots",
        ),
        (snapshots, "must be given with --ema_sigma"),
        (["--ema_sigma", 0.1], "--ema_sigma 0.1 must be given with --ema_snapshots"),
        ([*snapshots, "--ema_sigma", 0.5], "sigma_rel 0.5 must be above 0 and below 0.28"),
        (["--ema_snapshots", tmp_path, "--ema_sigma", 0.1], "no snapshots"),
        ([*guided[2:], runs / "pipeline"], "must be omitted unless --guidance_scale is above 1 or --guider"),
        ([*guided, tmp_path / "none"], "is neither a transformer nor a pipeline"),
        ([*guided, other], "has num_embeds_ada_norm 3, and the pipeline's transformer 2"),
        *(
            ([*option, path], f"{option[-1]} {path} {message}")
            for option in (["--transformer"], guided)
            for path, message in (
                (tmp_path / "predicts_sample", "predicts 'flow_sample', and the pipeline's transformer 'flow_pred"),
                (renamed, "calls class 0 'squares', and the pipeline 'circles'"),
                (tmp_path / "calibrated", "was trained on other latents than the pipeline's"),
            )
        ),
        (["--transformer", runs / "ema" / "0.9", "--baseline", "untrained"], "must be omitted with --baseline"),
    ):
        assert generate(runs, tmp_path / "set", *options) == 2, options
        error = capsys.readouterr().err
        assert message in error, error
        assert not (tmp_path / "set").exists()
