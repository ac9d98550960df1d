"""`generate` and `guidance_sweep` with guiders of diffusers: from the command line, and saved with the pipeline."""

import json

import numpy as np
import pytest
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance

from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.arguments.guidance_sweep import GuidanceSweepArguments
from tcae_diffusers.evaluation.commands import measured_samples
from tcae_diffusers.evaluation.commands.comparison_plan import ComparisonPlan
from tcae_diffusers.evaluation.commands.guidance_sweep import run as sweep
from tcae_diffusers.evaluation.pictures.drawing import draw, load_pipeline

from .conftest import evaluate
from .test_drawn_classes import class_folder_set

APG = ["--guider", "AdaptiveProjectedGuidance", "--guider_options", json.dumps({"eta": 0.2})]


def generate(pipeline, output, *extra):
    arguments = ["generate", "--pipeline", pipeline, "--output", output, "--num_images", 2]
    return evaluate(*arguments, "--num_inference_steps", 3, "--device", "cpu", *extra)


def images(folder):
    drawn = open_image_set(folder)
    return np.stack([drawn[index] for index in range(2)])


def expected(pipeline, guider, **sampling):
    pipeline.register_modules(guider=guider)
    return draw(pipeline, [0, 1], [0, 1], 0, num_inference_steps=3, **sampling)


@pytest.fixture
def pipeline(pipeline_folder):
    return load_pipeline(pipeline_folder)


def test_a_guider_of_the_command_line_guides_and_stands_in_the_settings(pipeline, pipeline_folder, tmp_path, capsys):
    assert generate(pipeline_folder, tmp_path / "own", *APG) == 0
    apg = AdaptiveProjectedGuidance(eta=0.2)
    assert np.array_equal(images(tmp_path / "own"), expected(pipeline, apg))
    options = ["--guidance_scale", 3, "--guidance_interval", 0.2, 0.9]
    assert generate(pipeline_folder, tmp_path / "scaled", *APG, *options) == 0
    scaled = expected(pipeline, apg, guidance_scale=3.0, guidance_interval=(0.2, 0.9))
    assert np.array_equal(images(tmp_path / "scaled"), scaled)
    assert not np.array_equal(images(tmp_path / "own"), scaled)
    noted = json.loads((tmp_path / "own" / "manifest.json").read_text())["guider"]
    assert noted["_class_name"] == "AdaptiveProjectedGuidance" and noted["eta"] == 0.2
    assert generate(pipeline_folder, tmp_path / "scaled", *options) == 2
    assert "guider: {" in capsys.readouterr().err


def test_the_guider_saved_with_a_pipeline_guides_unless_another_is_named(pipeline, tmp_path):
    saved = ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.7)
    pipeline.register_modules(guider=saved)
    pipeline.save_pretrained(tmp_path / "pipeline")
    for name, options, guider, sampling in (
        ("saved", [], saved, {}),
        ("scaled", ["--guidance_scale", 2], saved, {"guidance_scale": 2.0}),
        ("off", ["--guidance_scale", 1], None, {"guidance_scale": 1.0}),
        ("other", APG, AdaptiveProjectedGuidance(eta=0.2), {}),
    ):
        assert generate(tmp_path / "pipeline", tmp_path / name, *options) == 0
        assert np.array_equal(images(tmp_path / name), expected(pipeline, guider, **sampling)), name
    drawn = [images(tmp_path / name) for name in ("saved", "scaled", "off", "other")]
    assert all(not np.array_equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])


def test_without_any_guider_and_scale_nothing_guides(pipeline, pipeline_folder, tmp_path):
    assert generate(pipeline_folder, tmp_path / "set") == 0
    assert np.array_equal(images(tmp_path / "set"), expected(pipeline, None, guidance_scale=1.0))
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["guidance_scale"] == 1.0


def test_a_sweep_uses_the_guider_where_it_guides(monkeypatch, tmp_path):
    passed = []

    def stop(run, arguments, kind):
        passed.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(measured_samples, "run_unless_done", stop)
    real = str(class_folder_set(tmp_path / "real", {"cat": 8}))
    guided = {"guider": "AdaptiveProjectedGuidance", "guider_options": {"eta": 0.2}}
    for scale in (1.0, 2.0):
        arguments = GuidanceSweepArguments(pipeline="p", output=tmp_path, reference=real, scales=[scale], **guided)
        with pytest.raises(KeyboardInterrupt):
            sweep(arguments)
    assert [(each.guidance_scale, each.guider, each.guider_options) for each in passed] == [
        (1.0, None, {}),
        (2.0, *guided.values()),
    ]
    with pytest.raises(InputError, match="--guider_options has 'guidance_scale'"):
        twice = {**guided, "guider_options": {"guidance_scale": 2.0}}
        GuidanceSweepArguments(pipeline="p", output=tmp_path, reference=real, **twice)
    with pytest.raises(InputError, match="--guider_options has 'stop', which --intervals says too"):
        twice = {**guided, "guider_options": {"stop": 0.8}}
        GuidanceSweepArguments(pipeline="p", output=tmp_path, reference=real, **twice)


def test_a_sweep_with_a_guider_measures_its_points(pipeline_folder, image_folder, tmp_path):
    arguments = ["guidance_sweep", "--pipeline", pipeline_folder, "--reference", image_folder, "--num_images", 8]
    options = ["--scales", 1, 3, "--num_inference_steps", 2, "--device", "cpu", *APG]
    assert evaluate(*arguments, *options, "--output", tmp_path) == 0
    result = json.loads((tmp_path / "guidance_sweep.json").read_text())
    assert result["guider"] == {"name": "AdaptiveProjectedGuidance", "eta": 0.2}
    assert [point["guidance_scale"] for point in result["points"]] == [1.0, 3.0]
    # A sample that was lost is drawn again, not missed for ever.
    lost = next(path for path in sorted(tmp_path.rglob("samples/**/*.png")))
    before = lost.read_bytes()
    lost.unlink()
    assert evaluate(*arguments, *options, "--output", tmp_path) == 0
    assert lost.read_bytes() == before


def test_a_comparison_plan_names_a_guider():
    plan = ComparisonPlan(tokenizers={}, guider="AdaptiveProjectedGuidance", guider_options={"eta": 0.2})
    assert plan.guidance().guider == "AdaptiveProjectedGuidance" and plan.guidance().guider_options == {"eta": 0.2}
    with pytest.raises(InputError, match="guider 'CFG' is unknown; expected one of AdaptiveProjectedGuidance, "):
        ComparisonPlan(tokenizers={}, guider="CFG").guidance()


def test_pipelines_that_know_no_guiders_are_named(save_pipeline, tmp_path, capsys):
    from diffusers import DDIMScheduler, DiTPipeline

    folder = save_pipeline(["circles", "squares"], scheduler=DDIMScheduler(clip_sample=False))
    pipeline = load_pipeline(folder)
    DiTPipeline(pipeline.transformer, pipeline.vae, pipeline.scheduler).save_pretrained(tmp_path / "stock")
    assert generate(tmp_path / "stock", tmp_path / "set", *APG) == 2
    assert "--guider needs a TCDiTPipeline, and this is a DiTPipeline" in capsys.readouterr().err
