"""Reconstruction of any diffusers autoencoder: dialects, counts, independence of the batch size, files."""

import csv
import json

import diffusers
import numpy as np
import pytest
import torch
from accelerate import PartialState

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.evaluation.pictures.chosen_images import spread_indices
from tcae_diffusers.metrics.confidence import jackknife_interval, random_groups
from tcae_diffusers.metrics.features import FeatureNetwork
from tcae_diffusers.metrics.frechet import frechet_distance
from tcae_diffusers.metrics.grouped_moments import StreamedFrechet
from tcae_diffusers.metrics.image_measures.patch_grid import PatchGrid
from tcae_diffusers.metrics.reconstruction import evaluate_reconstruction, reconstruct
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.model_fingerprint import model_fingerprint

from .conftest import TINY_AUTOENCODER, evaluate


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork("efficientnet-lite0")


SMALL_AUTOENCODERS = {
    "AutoencoderKL": {
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (8, 8, 16),
        "decoder_block_out_channels": (8, 8, 16),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()),
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    },
    "AutoencoderRAE": {
        "encoder_hidden_size": 64,
        "encoder_num_hidden_layers": 1,
        "encoder_input_size": 56,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "patch_size": 8,
    },
}


@pytest.mark.parametrize("class_name", SMALL_AUTOENCODERS)
def test_every_dialect_of_diffusers_is_understood(class_name, image_folder):
    torch.manual_seed(0)
    model = getattr(diffusers, class_name)(**SMALL_AUTOENCODERS[class_name]).eval()
    images = open_data_source(str(image_folder), 32)
    result = evaluate_reconstruction(model, images, batch_size=16)
    assert len(result.per_image["psnr"]) == 30
    assert result.latent_shape[-1] == 32 // adapt(model).spatial_ratio
    first = adapt(model).encode(torch.zeros(1, 3, 32, 32))
    assert torch.equal(first, adapt(model).encode(torch.zeros(1, 3, 32, 32)))


def test_the_result_does_not_depend_on_the_batch_size(tiny_autoencoder, image_folder, network):
    images = open_data_source(str(image_folder), 32)
    results = [evaluate_reconstruction(tiny_autoencoder, images, network, batch_size) for batch_size in (1, 7, 64)]
    for other in results[1:]:
        np.testing.assert_allclose(results[0].per_image["psnr"], other.per_image["psnr"], atol=1e-3)
    for one, other in zip(results[0].figures * 2, results[1].figures + results[2].figures, strict=True):
        assert one.name == other.name
        assert one.value == pytest.approx(other.value, rel=1e-4)


def test_a_perfect_autoencoder_has_no_distance(image_folder, network):
    class Identity(torch.nn.Module):
        config = {"spatial_compression_ratio": 1}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x):
            return (x,)

        def decode(self, z):
            return diffusers.models.autoencoders.vae.DecoderOutput(sample=z)

    figures = evaluate_reconstruction(Identity(), open_data_source(str(image_folder), 32), network).figures
    values = {figure.name: figure.value for figure in figures}
    assert values["PSNR (dB)"] == 100.0
    assert values["SSIM"] == pytest.approx(1.0)
    assert values["rFD-efficientnet-lite0"] == pytest.approx(0.0, abs=1e-6)


def test_the_grid_shows_every_class_and_no_image_twice(image_folder):
    images = open_data_source(str(image_folder), 32)
    chosen = spread_indices(images, 11)
    assert len(set(chosen)) == 11
    assert [images.labels[index] for index in chosen[:4]] == [0, 1, 0, 1]


def test_the_command_writes_figures_counts_hashes_and_pictures(tiny_autoencoder, image_folder, tmp_path):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    output = tmp_path / "out"
    arguments = ["--autoencoder", str(tmp_path / "vae"), "--data", str(image_folder), "--output", str(output)]
    assert evaluate("reconstruction", *arguments, "--extractor", "none", "--device", "cpu") == 0
    result = json.loads((output / "reconstruction.json").read_text())
    assert result["data"]["images"] == 30
    assert result["figures"][0]["samples"] == 30
    assert result["figures"][0]["baseline"]["value"] > 0
    assert result["autoencoder"]["weights_sha256"] == model_fingerprint(tiny_autoencoder)["weights_sha256"]
    assert {"torch", "diffusers"} <= set(result["versions"])
    rows = list(csv.DictReader((output / "per_image.csv").open()))
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(result["figures"][0]["value"], abs=1e-3)
    assert {"reconstruction_grid.png", "reconstruction_best.png", "reconstruction_worst.png"} <= {
        file.name for file in output.iterdir()
    }


def reconstruction_result(tmp_path, image_folder, *options):
    """What `evaluation reconstruction` writes of the autoencoder in `tmp_path / "vae"`, without a network."""
    places = ["--autoencoder", tmp_path / "vae", "--data", image_folder, "--output", tmp_path / "out"]
    assert evaluate("reconstruction", *map(str, places), *options, "--extractor", "none", "--device", "cpu") == 0
    return json.loads((tmp_path / "out" / "reconstruction.json").read_text())


def test_the_grid_of_the_decoders_patches_is_measured_at_their_size(tiny_autoencoder, image_folder, tmp_path):
    class Checked(AutoencoderTC):
        """Every second column of patches is brighter."""

        def decode(self, z, **options):
            sample = super().decode(z, **options).sample.clone()
            sample.unflatten(-1, (-1, 2, self.config.patch_size))[..., 0, :] += 0.5
            return diffusers.models.autoencoders.vae.DecoderOutput(sample=sample)

    images, period = open_data_source(str(image_folder), 32), tiny_autoencoder.config.patch_size
    checked = Checked(**TINY_AUTOENCODER).eval()
    checked.load_state_dict(tiny_autoencoder.state_dict())
    models, measures = (tiny_autoencoder, checked), [PatchGrid(period)]
    plain, seen = (evaluate_reconstruction(model, images, measures=measures).figures[0] for model in models)
    assert seen.value > 1.5 * plain.value

    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    result = reconstruction_result(tmp_path, image_folder)
    figure = next(figure for figure in result["figures"] if figure["name"] == "patch grid")
    assert result["autoencoder"]["patch_size"] == period and figure["value"] == pytest.approx(plain.value)
    assert "ratio of means" in figure["interval_method"] and figure["better"] == "lower"
    rows = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open()))
    assert np.mean([float(row["patch_grid"]) for row in rows]) == pytest.approx(figure["value"], abs=1e-5)


def test_images_that_show_no_border_between_patches_have_no_patch_grid(image_folder, tmp_path):
    config = {"norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    diffusers.AutoencoderKL(block_out_channels=[8], **config).save_pretrained(tmp_path / "vae")
    options = ["--resolution", "32", "--baseline_data", "none", "--max_images", "3"]
    result = reconstruction_result(tmp_path, image_folder, *options)
    assert "no border between patches" in result["not_measured"]["patch grid"]
    assert "patch grid" not in {figure["name"] for figure in result["figures"]}


def test_lpips_equals_the_package_per_image_and_is_named_when_missing(
    tiny_autoencoder, image_folder, tmp_path, capsys
):
    import lpips
    from torchvision.models import squeezenet1_1

    # Random weights stand in for ImageNet's, which are a download: the arithmetic is what is compared.
    torch.manual_seed(0)
    backbone = squeezenet1_1(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "squeeze.pth")
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    arguments = ["reconstruction", "--autoencoder", str(tmp_path / "vae"), "--data", str(image_folder)]
    arguments += ["--extractor", "none", "--device", "cpu", "--output", str(tmp_path / "out"), "--lpips", "squeeze"]
    assert evaluate(*arguments, "--lpips_weights", str(tmp_path / "squeeze.pth"), "--max_images", "5") == 0
    result = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    figure = next(figure for figure in result["figures"] if figure["name"] == "LPIPS-SQUEEZE")

    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    names = {key: "features." + key.split(".", 1)[1] for key in theirs.net.state_dict()}
    theirs.net.load_state_dict({key: backbone.state_dict()[source] for key, source in names.items()})
    images = open_data_source(str(image_folder), 32)
    pixels = torch.stack([torch.from_numpy(images[index * 30 // 5]) for index in range(5)]).permute(0, 3, 1, 2)
    output, _ = reconstruct(tiny_autoencoder, pixels)
    with torch.no_grad():
        expected = theirs(output / 127.5 - 1, pixels / 127.5 - 1).mean().item()
    assert figure["value"] == pytest.approx(expected, rel=1e-4)
    assert figure["better"] == "lower"

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "other.pth")
    other = [*arguments, "--lpips_weights", str(tmp_path / "other.pth"), "--max_images", "5"]
    assert evaluate(*other, "--output", str(tmp_path / "other")) == 0
    results = [f"{name}={tmp_path / name}" for name in ("out", "other")]
    assert evaluate("compare", "--results", *results, "--output", str(tmp_path / "both")) == 0
    rows = json.loads((tmp_path / "both" / "comparison.json").read_text())["rows"]
    # The weights are no part of the name, and decide the figure.
    assert [list(row["values"]) for row in rows if row["name"] == "LPIPS-SQUEEZE"] == [["out"], ["other"]]
    assert evaluate(*arguments, "--lpips_weights", str(tmp_path / "nowhere.pth")) == 2
    assert "nowhere.pth" in capsys.readouterr().err


def test_tiles_are_used_where_the_model_has_them(tiny_autoencoder, image_folder, tmp_path):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    arguments = ["reconstruction", "--autoencoder", str(tmp_path / "vae"), "--data", str(image_folder), "--tiling"]
    arguments += ["--extractor", "none", "--device", "cpu", "--max_images", "3", "--output", str(tmp_path / "out")]
    assert evaluate(*arguments) == 0
    assert json.loads((tmp_path / "out" / "reconstruction.json").read_text())["settings"]["tiling"] is True


@pytest.mark.parametrize("dimensions", [12, 103])
def test_a_streamed_distance_and_its_interval_are_those_of_the_features(dimensions):
    features = np.random.default_rng(0).normal(size=(2, 103, dimensions)).astype(np.float32)
    stream = StreamedFrechet(dimensions, 103)
    for start in range(0, 103, 7):
        indices = range(start, min(start + 7, 103))
        stream.update(*features[:, indices], indices)
    estimate = stream.result(PartialState())
    assert estimate.value == pytest.approx(frechet_distance(*features), rel=1e-6)
    groups = random_groups(103)
    expected = jackknife_interval(lambda group: frechet_distance(*features[:, groups != group]))
    assert estimate.interval == pytest.approx(expected, rel=1e-5)
