"""Autoencoders and pipelines are measured at other sizes than those that they were trained at, non-square ones too."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.models.tcae.transformer_tc_dit import TCDiTTransformer2DModel
from tcae_diffusers.pipelines.pipeline_tc_dit import TCDiTPipeline

from ..latent_commands import FOREIGN
from .conftest import TINY_AUTOENCODER, evaluate


@pytest.fixture(scope="module")
def any_size(tmp_path_factory):
    """A pipeline whose transformer takes latents of any size."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(1)
    transformer = TCDiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, in_channels=4, sample_size=4, num_classes=2
    )
    pipeline = TCDiTPipeline(
        vae=AutoencoderTC(**TINY_AUTOENCODER),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        id2label={0: "circles", 1: "squares"},
    )
    folder = tmp_path_factory.mktemp("any_size")
    pipeline.save_pretrained(folder)
    return folder


def generate(pipeline, output, *extra):
    arguments = ["generate", "--pipeline", pipeline, "--output", output, "--num_images", 10, "--device", "cpu"]
    return evaluate(*arguments, "--num_inference_steps", 2, *extra)


@pytest.mark.parametrize("command", ["reconstruction", "latents"])
def test_an_autoencoder_is_measured_on_images_that_are_not_square(any_size, make_image_folder, tmp_path, command):
    # As many as the linear baseline needs.
    images = make_image_folder(tmp_path / "images", 0, 80)
    arguments = [command, "--autoencoder", any_size, "--data", images, "--output", tmp_path / "wide"]
    arguments += ["--device", "cpu", "--resolution", 32, "--width", 48]
    assert evaluate(*arguments) == 0
    content = json.loads((tmp_path / "wide" / f"{command}.json").read_text())
    assert (content["data"]["height"], content["data"]["width"]) == (32, 48)
    assert all(np.isfinite(figure["value"]) for figure in content["figures"])
    if command == "reconstruction":
        assert content["autoencoder"]["latent_shape"] == [4, 4, 6]
        # The baseline has a latent of the same shape.
        assert content["linear_baseline"]["block"] == 8


def test_tokens_of_images_that_are_not_square_are_probed(any_size, image_folder, other_folder, tmp_path, capsys):
    arguments = ["probing", "--autoencoder", any_size, "--train", image_folder, "--test", other_folder]
    arguments += ["--device", "cpu", "--epochs", 1, "--resolution", 32, "--output", tmp_path / "wide"]
    assert evaluate(*arguments, "--width", 48) == 0
    content = json.loads((tmp_path / "wide" / "probing.json").read_text())
    assert (content["data"]["height"], content["data"]["width"]) == (32, 48)
    assert any(figure["name"].endswith("latent 4x6") for figure in content["figures"])
    assert evaluate(*arguments, "--width", 36) == 2
    assert "width 36 is not a multiple of 8" in capsys.readouterr().err.strip().splitlines()[-1]


def test_samples_of_another_size_are_drawn_and_compared_with_images_cropped_to_it(any_size, image_folder, tmp_path):
    for name, extra in {"square": [], "wide": ["--height", 32, "--width", 48]}.items():
        assert generate(any_size, tmp_path / name, *extra) == 0
    sizes = {Image.open(file).size for file in (tmp_path / "wide").rglob("*.png")}
    assert sizes == {(48, 32)} and len(list((tmp_path / "wide").rglob("*.png"))) == 10
    arguments = ["generation", "--reference", image_folder, "--device", "cpu", "--no_feature_cache"]
    assert evaluate(*arguments, "--samples", tmp_path / "wide", "--output", tmp_path / "measured") == 0
    assert "resized to 48x32" in (tmp_path / "measured" / "generation.json").read_text()


def test_a_set_is_not_completed_with_images_of_another_size(any_size, tmp_path, capsys):
    assert generate(any_size, tmp_path / "set") == 0
    assert generate(any_size, tmp_path / "set", "--height", 48) == 2
    assert "height" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--height", 36], "height 36"),
        (
            ["--baseline", "class-mean", "--data", "photos", "--height", 48],
            "--height 48 must be omitted with --baseline class-mean",
        ),
        (["--width", 0], "--width 0 must be at least 1 pixel"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_named(any_size, tmp_path, capsys, extra, message):
    assert generate(any_size, tmp_path / "set", *extra) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_transformer_of_squares_says_so(pipeline_folder, tmp_path, capsys):
    assert generate(pipeline_folder, tmp_path / "set", "--width", 48) == 2
    assert "square images only" in capsys.readouterr().err.strip().splitlines()[-1]


def test_sizes_that_an_autoencoder_cannot_reconstruct_are_named(any_size, image_folder, tmp_path, capsys):
    torch.manual_seed(0)
    FOREIGN["AutoencoderRAE"]().save_pretrained(tmp_path / "rae")
    for autoencoder, extra, message in [
        (any_size, ["--resolution", 32, "--width", 36], "width 36 is not a multiple of 8"),
        (any_size, ["--width", 48], "--width 48 has no effect without --resolution"),
        (tmp_path / "rae", ["--resolution", 16, "--width", 32], "AutoencoderRAE decodes square images of one size"),
    ]:
        arguments = ["reconstruction", "--autoencoder", autoencoder, "--data", image_folder, "--device", "cpu"]
        assert evaluate(*arguments, "--output", tmp_path / "result", *extra) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert not (tmp_path / "result").exists()
