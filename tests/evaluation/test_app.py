"""What the page shows, without the page: reconstructions, generated images, reports, and how the command starts."""

import json
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.app.__main__ import main
from tcae_diffusers.evaluation.app.generate_tab import RunningRequests
from tcae_diffusers.evaluation.app.generation import (
    Sampling,
    build_scheduler,
    draw_between,
    draw_seeds,
    guider_names,
    scheduler_names,
    spherical_interpolation,
)
from tcae_diffusers.evaluation.app.reconstruction import BRIGHTEST_ERROR, ShownAutoencoder, error_colours
from tcae_diffusers.evaluation.app.reports import ALL_RESULTS, framed, read_report, report_names
from tcae_diffusers.evaluation.app.shown import open_shown
from tcae_diffusers.evaluation.arguments.app import AppArguments
from tcae_diffusers.evaluation.pictures.drawing import class_choices, load_latent_pipeline, load_pipeline
from tcae_diffusers.evaluation.report.embedding import embed_png
from tcae_diffusers.pipelines import TCDiTPipeline

from .conftest import draw_images


@pytest.fixture(scope="module")
def pipeline(pipeline_folder):
    pipeline = load_latent_pipeline(pipeline_folder, "cpu", torch.float32)
    # Weights that are not zero, so that steps and guidance matter.
    torch.manual_seed(2)
    for parameter in pipeline.transformer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pipeline


def sampling(pipeline, **changes):
    given = {"num_inference_steps": 3, "guidance_scale": 2.0, "batch_size": 4, "on_step": lambda part: None}
    own = {"scheduler": scheduler_names(pipeline)[0], "guider": guider_names(pipeline)[0]}
    return Sampling(**{**own, **given, **changes})


def difference(first, second) -> int:
    """In levels of 255."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


def picture(seed: int = 3, side: int = 32) -> Image.Image:
    return Image.fromarray(draw_images(seed, 1, side)[0])


# Reconstruction


def test_a_reconstruction_has_its_figures_and_pictures(tiny_autoencoder):
    result = ShownAutoencoder(tiny_autoencoder).reconstruct(picture(), 32)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
        expected = ((tiny_autoencoder(pixels).sample[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    assert difference(result.output, expected) == 0
    assert difference(result.original, picture()) == 0
    mse = np.square(result.original.astype(float) - result.output).mean()
    assert result.psnr == pytest.approx(10 * np.log10(255**2 / mse)) == result.psnr_without_noise
    assert list(result.components)[-1] == "latent" and len(result.components) >= 2
    assert {each.shape for each in result.components.values()} == {(32, 32, 3)}
    assert result.latent_shape == (4, 4, 4)


def test_noise_on_the_latent_costs_and_is_the_same_each_time(tiny_autoencoder):
    autoencoder = ShownAutoencoder(tiny_autoencoder, [picture(seed) for seed in range(4)])
    clean, *noisy = (autoencoder.reconstruct(picture(9), 32, noise) for noise in (0, 1, 1, 2))
    assert difference(noisy[0].output, noisy[1].output) == 0
    assert difference(noisy[0].output, clean.output) > 0
    assert noisy[0].psnr_without_noise == clean.psnr
    moved = [np.square(each.output.astype(float) - clean.output).mean() for each in noisy]
    assert moved[2] > moved[0] > 0


def test_noise_is_measured_over_the_examples(tiny_autoencoder):
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    image = picture()
    flat = ShownAutoencoder(tiny_autoencoder, [grey]).reconstruct(image, 32, 1).output.astype(float)
    varied = ShownAutoencoder(tiny_autoencoder, [picture(1), picture(2)]).reconstruct(image, 32, 1)
    clean = ShownAutoencoder(tiny_autoencoder).reconstruct(image, 32).output
    assert np.square(flat - clean).mean() < np.square(varied.output - clean.astype(float)).mean()


def test_one_latent_position_has_no_unit_of_noise(tiny_autoencoder):
    assert ShownAutoencoder(tiny_autoencoder).reconstruct(picture(), 16, 0.5).latent_shape == (4, 2, 2)
    with pytest.raises(InputError, match="one latent position has none"):
        ShownAutoencoder(tiny_autoencoder).reconstruct(picture(), 8, 0.5)


def test_a_side_that_does_not_fit_is_refused(tiny_autoencoder):
    with pytest.raises(InputError, match="side 30 is not a multiple of 8"):
        ShownAutoencoder(tiny_autoencoder).reconstruct(picture(), 30)


def test_an_error_map_is_black_where_nothing_differs_and_brightest_at_its_range():
    original = torch.zeros(1, 3, 1, 3, dtype=torch.uint8)
    output = original.clone()
    output[0, :, 0, 1], output[0, :, 0, 2] = BRIGHTEST_ERROR // 2, BRIGHTEST_ERROR + 50
    none, half, full = error_colours(original, output)[0].astype(int).sum(axis=1).tolist()
    assert none < 10 < half < full and full > 600


def test_the_cost_is_that_of_the_cost_command(tiny_autoencoder):
    from tcae_diffusers.metrics.model_cost import autoencoder_cost

    autoencoder = ShownAutoencoder(tiny_autoencoder)
    assert autoencoder.cost(64) == autoencoder_cost(tiny_autoencoder, 64, 64)
    assert autoencoder.cost(64) is autoencoder.cost(64)


# Generation


def test_an_image_is_a_function_of_its_seed_and_class(pipeline):
    together = draw_seeds(pipeline, [0, 0, 1, 1, 1], [5, 6, 5, 6, 7], sampling(pipeline))
    alone = draw_seeds(pipeline, [1], [6], sampling(pipeline, batch_size=1))
    assert difference(together[3], alone[0]) <= 1
    generator = torch.Generator().manual_seed(6)
    by_hand = pipeline(1, num_inference_steps=3, guidance_scale=2.0, generator=generator).images[0]
    assert difference(alone[0], by_hand) == 0
    assert difference(together[0], together[1]) > 1


def test_classes_of_one_name_can_be_told_apart(save_pipeline):
    pipeline = load_pipeline(save_pipeline(["crane", "maillot", "crane"]), "cpu")
    assert class_choices(pipeline) == ["crane (class 0)", "maillot", "crane (class 2)"]


def test_an_interpolation_begins_and_ends_at_its_seeds(pipeline):
    frames = draw_between(pipeline, 1, (5, 9), 4, sampling(pipeline))
    ends = draw_seeds(pipeline, [1, 1], [5, 9], sampling(pipeline))
    assert len(frames) == 4
    assert difference(frames[0], ends[0]) <= 1 and difference(frames[-1], ends[1]) <= 1
    assert difference(frames[1], ends[0]) > 1 and difference(frames[1], ends[1]) > 1


def test_noise_between_two_seeds_keeps_the_length_of_noise():
    first, second = torch.randn(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    middle = spherical_interpolation(first, second, 0.5)
    assert middle.std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(spherical_interpolation(first, second, 0.0), first)
    torch.testing.assert_close(spherical_interpolation(first, first, 0.3), first)


def test_every_scheduler_that_is_offered_draws(pipeline):
    for name in scheduler_names(pipeline):
        assert type(build_scheduler(pipeline, name)).__name__ == name
        images = draw_seeds(pipeline, [0], [1], sampling(pipeline, scheduler=name))
        assert images.shape == (1, 32, 32, 3)
    with pytest.raises(InputError, match="DDIMScheduler must be one of FlowMatchEuler"):
        build_scheduler(pipeline, "DDIMScheduler")


def test_every_guider_that_is_offered_draws_in_its_own_way(pipeline):
    names = guider_names(pipeline)
    images = [draw_seeds(pipeline, [0], [1], sampling(pipeline, guider=name, guidance_scale=6.0))[0] for name in names]
    assert names[0] == "ClassifierFreeGuidance" and len(names) >= 5
    moved = {name: difference(images[0], image) for name, image in zip(names[1:], images[1:], strict=True)}
    assert min(moved.values()) > 0, moved
    assert pipeline.guider is None
    unguided = [
        draw_seeds(pipeline, [0], [1], sampling(pipeline, guider=name, guidance_scale=1)) for name in names[:2]
    ]
    assert difference(*unguided) == 0


def test_the_guider_of_the_pipeline_is_the_first_that_is_offered(pipeline):
    from diffusers.guiders import TangentialClassifierFreeGuidance

    own = TCDiTPipeline(**{**pipeline.components, "guider": TangentialClassifierFreeGuidance()})
    assert guider_names(own)[0] == "TangentialClassifierFreeGuidance"
    drawn = [draw_seeds(each, [0], [1], sampling(each, guidance_scale=6.0)) for each in (own, pipeline)]
    named = draw_seeds(pipeline, [0], [1], sampling(pipeline, guider=guider_names(own)[0], guidance_scale=6.0))
    assert difference(drawn[0], named) == 0 and difference(*drawn) > 0


def test_every_scheduler_of_a_diffusion_model_draws(save_pipeline):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    diffusion = load_latent_pipeline(save_pipeline(["a", "b"], scheduler=scheduler), "cpu", torch.float32)
    assert scheduler_names(diffusion)[0] == "DDIMScheduler" and len(scheduler_names(diffusion)) >= 5
    for name in scheduler_names(diffusion):
        assert build_scheduler(diffusion, name).config.prediction_type == "v_prediction"
        assert len(draw_seeds(diffusion, [0], [1], sampling(diffusion, scheduler=name))) == 1


def test_another_scheduler_keeps_the_shift(pipeline):
    shifted = type(pipeline.scheduler)(shift=4.0)
    other = TCDiTPipeline(**{**pipeline.components, "scheduler": shifted})
    for name in scheduler_names(other):
        config = build_scheduler(other, name).config
        assert config.get("flow_shift", config.get("shift")) == 4.0


def test_drawing_leaves_the_pipeline_of_all_visitors_as_it_was(pipeline):
    pipeline._current_guider = pipeline._interrupt = "of another call"
    before = dict(pipeline.scheduler.config), pipeline.scheduler
    draw_seeds(pipeline, [0], [1], sampling(pipeline, scheduler="UniPCMultistepScheduler"))
    assert (dict(pipeline.scheduler.config), pipeline.scheduler) == before
    assert pipeline._current_guider == pipeline._interrupt == "of another call"


def test_progress_goes_to_one_over_all_batches(pipeline):
    parts = []
    draw_seeds(pipeline, [0] * 5, range(5), sampling(pipeline, batch_size=2, on_step=parts.append))
    assert parts == pytest.approx([2 / 15, 4 / 15, 6 / 15, 8 / 15, 10 / 15, 12 / 15, 13 / 15, 14 / 15, 1])


def test_what_a_step_raises_ends_the_drawing(pipeline):
    def stop(part):
        raise InterruptedError(part)

    with pytest.raises(InterruptedError):
        draw_seeds(pipeline, [0], [1], sampling(pipeline, on_step=stop))


def test_a_session_cancels_its_own_request_and_no_other():
    running = RunningRequests()
    mine, other = running.start("mine"), running.start("other")
    assert running.cancel("mine") and mine.is_set() and not other.is_set()
    assert not running.cancel("third")
    again = running.start("mine")
    running.end("mine", mine)  # the cancelled one ends late
    assert running.cancel("mine") and again.is_set()
    running.end("mine", again)
    assert not running.cancel("mine")
    assert isinstance(again, threading.Event)


# Results


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "report.html").write_text("<p>of a</p>")
    (tmp_path / "outside.html").write_text("<p>secret</p>")
    (folder / "link.html").symlink_to(tmp_path / "outside.html")
    return folder


def test_reports_are_those_of_the_folder(results):
    assert report_names(results) == [ALL_RESULTS, "a/report.html"]
    assert read_report(results, "a/report.html") == "<p>of a</p>"


@pytest.mark.parametrize("name", ["../outside.html", "link.html", "a/../../outside.html", "/etc/passwd", "", "a"])
def test_nothing_outside_the_folder_is_read(results, name):
    with pytest.raises(InputError, match="there is no report"):
        read_report(results, name)


def test_results_behind_a_link_and_pictures_elsewhere_are_not_shown(results, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    cost = {"kind": "cost", "height": 8, "width": 8, "autoencoders": {}, "transformers": {}}
    (private / "cost.json").write_text(json.dumps(cost))
    (results / "old").symlink_to(private)
    with pytest.raises(InputError, match="no results in this folder"):
        read_report(results, ALL_RESULTS)
    (tmp_path / "outside.png").write_bytes(b"secret")
    (results / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        with pytest.raises(InputError, match="which lies elsewhere"):
            embed_png(results, name)


def test_a_folder_without_results_says_so(results):
    with pytest.raises(InputError, match="no results below"):
        read_report(results, ALL_RESULTS)


def test_a_report_runs_no_scripts_and_cannot_leave_its_frame():
    frame = framed('</iframe><script>alert("x")</script>')
    assert "<script" not in frame and frame.count("</iframe>") == 1
    assert 'sandbox="allow-popups"' in frame


# The command


def test_the_demo_is_shown_without_arguments(pipeline_folder, image_folder, tmp_path):
    run = tmp_path / "minutes-1-seed-0"
    (run / "dit").mkdir(parents=True)
    (run / "dit" / "pipeline").symlink_to(pipeline_folder)
    (tmp_path / "minutes-2-seed-0").mkdir()  # not finished
    (run / "report.html").write_text("<p>the demo</p>")
    argv = ["--demo_output", str(tmp_path), "--device", "cpu", "--images", str(image_folder)]
    shown = open_shown(parse_arguments(AppArguments, argv))
    assert list(shown.autoencoders) == list(shown.pipelines) == ["minutes-1-seed-0"]
    assert report_names(shown.results) == [ALL_RESULTS, "minutes-1-seed-0/report.html"]
    assert len(shown.examples.images) == 12 and shown.examples.images[0].size == (32, 32)


def test_a_pipeline_alone_brings_its_autoencoder(pipeline_folder):
    argv = ["--pipeline", f"mine={pipeline_folder}", "--device", "cpu"]
    shown = open_shown(parse_arguments(AppArguments, argv))
    assert shown.autoencoders["mine"].model is shown.pipelines["mine"].vae
    assert shown.results is None and shown.examples.images == []


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in argv])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_gradio_one_sentence_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(capsys).endswith("install it with pip install 'tcae-diffusers[app]'")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--demo_output", "{folder}"], "holds no finished demo; run `make demo`, or give"),
        (["--results", "{folder}/nothing"], "nothing is not a folder"),
        (["--autoencoder", "{folder}/nothing"], "no autoencoder at"),
        (["--pipeline", "{folder}"], "no pipeline at"),
        (
            ["--results", "{folder}", "--demo_output", "x"],
            "must be omitted with --autoencoder, --pipeline or --results",
        ),
        (["--port", "0"], "--port 0 must be"),
    ],
)
def test_what_cannot_be_shown_is_said_at_the_start(capsys, tmp_path, monkeypatch, argv, sentence):
    pytest.importorskip("gradio", reason="gradio, of the extra app, is not installed")
    assert sentence in refused(capsys, *(each.format(folder=tmp_path) for each in argv))
