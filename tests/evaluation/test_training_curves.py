"""Curves of training runs: every tag that a command logs has a captioned chart, and no chart waits in vain."""

import os
import re

import pytest
from torch.utils.tensorboard import SummaryWriter

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.report.training_curves import all_charts, read_scalars, run_charts
from tcae_diffusers.objectives.perceptual import LPIPS_BACKBONES
from tcae_diffusers.objectives.reconstruction import PIXEL_LOSSES
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

from .. import latent_commands, tokenizer_commands

# What the runs below do not log, and the options of train_tcae that make it.
WITH_OTHER_OPTIONS = {
    "train/loss_charbonnier": ("--pixel_loss", "charbonnier"),
    "train/loss_lpips-vgg": ("--perceptual", "lpips-vgg"),
    "train/loss_kl": ("--autoencoder", "an AutoencoderKL's config.json"),
    "train/loss_mae": ("--ssl", "mae"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each training command with everything on that logs something."""
    pytest.importorskip("efficientnet_lite_pytorch")
    folder, images = tmp_path_factory.mktemp("runs"), latent_commands.home() / "images"
    short = {"max_train_steps": 2, "checkpointing_steps": 9, "log_steps": 1, "report_to": "tensorboard"}
    shaping = {"latent_equivariance": 0.5, "latent_denoising": 3.0, "latent_min_channels": 2, "ssl_koleo_weight": 0.1}
    shaping |= {"latent_alignment": "efficientnet-lite0"}
    heldout = {"heldout_data": images, "heldout_rfd": "efficientnet-lite0", "perceptual": "efficientnet-lite0"}
    adversary = {"adversarial_start_step": 0, "discriminator_start_step": 0}
    online = {"gfd_steps": 2, "gfd_samples": 8, "gfd_reference": images, "direction_weight": 1.0}
    dit = latent_commands.train(folder / "dit", **short, **online)
    decoder = {**tokenizer_commands.NEW_DECODER, **heldout, "perceptual": "none"}
    decoder |= {"autoencoder": latent_commands.calibrated()[0], "heldout_pipeline": dit / "pipeline"}
    decoder |= {"heldout_images": 9, "heldout_samples": 8, "heldout_num_inference_steps": 1}
    return {
        "tokenizer": tokenizer_commands.train(folder / "tokenizer", **short, **heldout, **shaping),
        "decoder": tokenizer_commands.finetune(folder / "decoder", **short, **adversary, **decoder),
        "DiT": dit,
    }


@pytest.fixture(scope="module")
def logged(runs):
    return {tag for run in runs.values() for tag in read_scalars(run)}


def test_every_logged_tag_belongs_in_one_chart_with_a_caption(logged):
    assert len(logged) > 30
    for tag in logged | set(WITH_OTHER_OPTIONS):
        (chart,) = (chart for chart in all_charts() if chart.select({tag: None}))
        assert len(chart.caption) > 10, tag


def test_every_tag_that_a_chart_waits_for_is_logged(logged):
    for chart in all_charts():
        for pattern in chart.tags:
            assert any(re.fullmatch(pattern, tag) for tag in logged | set(WITH_OTHER_OPTIONS)), pattern


def test_other_options_are_needed_for_what_the_runs_do_not_log(logged):
    assert not logged & set(WITH_OTHER_OPTIONS)
    for option in WITH_OTHER_OPTIONS.values():
        parse_arguments(TokenizerArguments, ["--output_dir", "unused", *option])


@pytest.mark.parametrize("name", [*PIXEL_LOSSES, *(f"lpips-{net}" for net in LPIPS_BACKBONES)])
def test_losses_are_named_in_their_charts(name):
    (drawn,) = run_charts({f"train/loss_{name}": ([1, 2], [3.0, 4.0])})["main"]
    assert drawn["title"].endswith(f"loss: {name}") and drawn["caption"]


def test_charts_of_a_run_show_what_was_learned_apart_from_how_it_went(runs):
    charts = {name: run_charts(read_scalars(run)) for name, run in runs.items()}
    titles = {name: [chart["title"] for chart in parts["main"]] for name, parts in charts.items()}
    assert {"Loss", "Self-distillation losses", "Is the teacher alive? Class token"} <= set(titles["tokenizer"])
    assert "Held-out distance: rFD-efficientnet-lite0" in titles["tokenizer"]
    assert {"Reconstruction loss", "Adversarial losses", "Adaptive weight"} <= set(titles["decoder"])
    assert "Online distance: gFD-efficientnet-lite0 of 8 samples" in titles["DiT"]
    for parts in charts.values():
        assert {"Learning rate", "Gradient norm", "Speed"} <= {chart["title"] for chart in parts["health"]}
        assert all(chart["caption"] and "<svg" in chart["svg"] for chart in [*parts["main"], *parts["health"]])


def test_tags_of_others_are_shown_as_they_were_logged():
    curve = ([1, 2], [3.0, 4.0])
    charts = run_charts({"train/loss": curve, "mine/loss (a+b)": curve})
    assert [chart["title"] for chart in charts["health"]] == ["mine/loss (a+b)"]
    assert "from 3 at 1 to 4 at 2" in charts["health"][0]["svg"]


def test_curves_of_a_resumed_run_are_one_curve(tmp_path):
    for start, value in ((0, 1.0), (5, 2.0)):
        with SummaryWriter(tmp_path, filename_suffix=f".{start}") as writer:
            for step in range(start, start + 8):
                writer.add_scalar("loss", value, step)
    steps, values = read_scalars(tmp_path)["loss"]
    assert steps == list(range(13))
    assert values == [1.0] * 5 + [2.0] * 8
    # Within a second, names follow the process and a counter: "10" comes before "9".
    second, first = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    first.rename(tmp_path / "events.out.tfevents.1700000000.host.1.9")
    second.rename(tmp_path / "events.out.tfevents.1700000000.host.1.10")
    assert read_scalars(tmp_path)["loss"] == (steps, values)
    # Copied, files may have any date.
    for date, file in enumerate(sorted(tmp_path.iterdir(), reverse=True)):
        os.utime(file, (date, date))
    assert read_scalars(tmp_path)["loss"] == (steps, values)


def test_what_a_run_logged_that_was_given_up_is_no_part_of_the_next_one(tmp_path):
    for number, (value, steps) in enumerate(((1.0, 10), (2.0, 3))):
        with SummaryWriter(tmp_path, filename_suffix=f".{number}") as writer:
            for step in range(1, steps + 1):
                writer.add_scalar("loss", value, step)
            if number == 0:
                writer.add_scalar("gone", value, 5)
    assert read_scalars(tmp_path) == {"loss": ([1, 2, 3], [2.0] * 3)}


def test_curves_of_several_runs_are_not_mixed(tmp_path):
    for name in ("one", "two"):
        with SummaryWriter(tmp_path / name / "logs") as writer:
            writer.add_scalar("loss", 1.0, 1)
    with pytest.raises(InputError, match=r"several training runs .*one/logs and .*two/logs\); name each of them"):
        read_scalars(tmp_path)
    os.symlink(tmp_path / "one", tmp_path / "one" / "logs" / "again")
    assert read_scalars(tmp_path / "one") == {"loss": ([1], [1.0])}
