"""Probes and latent statistics on features whose answer is known."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from tcae_diffusers.data.images.image_sets import open_data_source, open_labelled_source
from tcae_diffusers.metrics.component_colours import component_colours, feature_maps
from tcae_diffusers.metrics.frechet import FrechetStatistics
from tcae_diffusers.metrics.latent_diagnostics import evaluate_latents
from tcae_diffusers.metrics.latent_shape import channel_figures, spectrum_figures
from tcae_diffusers.metrics.linear_probe import (
    LEARNING_RATES,
    ProbeResult,
    linear_probe,
    nearest_neighbours,
    standardise,
    structure_loss,
)
from tcae_diffusers.metrics.probing import evaluate_probing

from ..latent_commands import FOREIGN
from ..tiny_segmenter import save_tiny_segmenter
from .conftest import evaluate


def clusters(seed, count, distance, dimensions=16, classes=4):
    centres = np.random.default_rng(9).normal(size=(classes, dimensions)) * distance
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    return centres[labels] + generator.normal(size=(count, dimensions)), labels


@pytest.mark.parametrize("probe", [linear_probe, nearest_neighbours])
def test_probes_read_what_is_there_and_nothing_else(probe):
    separable = probe(*clusters(0, 400, 2.0), *clusters(1, 200, 2.0), classes=4)
    assert separable.accuracy > 0.97
    assert separable.learning_rate is None or separable.learning_rate in LEARNING_RATES
    nothing = probe(*clusters(0, 400, 0.0), *clusters(1, 200, 0.0), classes=4)
    assert nothing.accuracy == pytest.approx(0.25, abs=0.12)


def test_the_linear_probe_is_as_good_as_a_converged_logistic_regression():
    train, train_labels = clusters(2, 600, 0.5)
    test, test_labels = clusters(3, 400, 0.5)
    ours = linear_probe(train, train_labels, test, test_labels, classes=4)
    x, y = map(torch.from_numpy, standardise(train, test))
    layer = torch.nn.Linear(16, 4)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), torch.from_numpy(train_labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    converged = (layer(y).argmax(1).numpy() == test_labels).mean()
    assert ours.accuracy == pytest.approx(converged, abs=0.03)


def probe_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    train, test = order[:1200], order[1200:]
    features, labels = digits.data.astype(np.float32), digits.target
    return linear_probe(features[train], labels[train], features[test], labels[test], classes=10)


def test_the_learning_rates_of_the_probe_reach_beyond_the_best_one(caplog):
    """With a grid that ended at 0.03 that end was chosen here, and 1.7 percentage points were lost."""
    result = probe_digits()
    assert result.accuracy > 0.965
    assert result.learning_rate == 0.1
    assert not result.is_at_end_of_grid
    assert not caplog.records


def test_a_learning_rate_at_an_end_of_the_grid_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr("tcae_diffusers.metrics.linear_probe.LEARNING_RATES", (1e-4, 1e-3, 1e-2))
    result = probe_digits()
    assert result.learning_rate == 1e-2
    assert result.is_at_end_of_grid
    assert "chose learning rate 0.01, an endpoint of the grid from 0.0001 to 0.01" in caplog.text


def test_units_and_dead_dimensions_do_not_matter():
    train, test = clusters(4, 100, 1.0)[0], clusters(5, 50, 1.0)[0]
    scaled = [np.concatenate([part * 1000 + 7, np.full((len(part), 1), 3.0)], axis=1) for part in (train, test)]
    for plain, other in zip(standardise(train, test), standardise(*scaled), strict=True):
        np.testing.assert_allclose(plain, other[:, :-1], atol=1e-5)
        assert not other[:, -1].any()


def test_structure_loss_and_its_paired_interval():
    labels = np.zeros(200, dtype=int)
    tokens = ProbeResult(np.arange(200) < 120, labels)
    latent = ProbeResult(np.arange(200) < 30, labels)
    value, low, high = structure_loss(tokens, latent)
    assert value == pytest.approx(0.75)
    assert low < value < high
    assert structure_loss(tokens, tokens) == (0.0, 0.0, 0.0)


def test_balanced_accuracy_sees_through_the_largest_class():
    guess = ProbeResult(np.array([True] * 90 + [False] * 10), np.array([0] * 90 + [1] * 10))
    assert guess.accuracy == 0.9
    assert guess.balanced_accuracy == 0.5


def test_spectra_with_known_answers():
    sphere = spectrum_figures(np.eye(8) * 3.0)
    assert sphere["effective_rank"] == pytest.approx(8)
    assert sphere["participation_ratio"] == pytest.approx(8)
    assert sphere["isotropy"] == pytest.approx(1)
    line = spectrum_figures(np.diag([5.0] + [0.0] * 7))
    assert line["effective_rank"] == pytest.approx(1)
    assert line["isotropy"] == 0
    assert spectrum_figures(np.zeros((3, 3)))["effective_rank"] == 0


def test_dead_channels_are_found():
    values = np.random.default_rng(0).normal(size=(500, 6)) * np.array([1, 2, 0, 1, 1e-4, 1])
    figures = channel_figures(FrechetStatistics.from_features(values))
    assert figures["dead_channels"] == [2, 4]


class Pixels(torch.nn.Module):
    """An autoencoder whose latent is the image: everything about it is known."""

    config = {"spatial_compression_ratio": 1}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return (x,)

    def decode(self, z):
        return DecoderOutput(sample=z)


def test_an_autoencoder_that_does_nothing_is_equivariant_and_loses_with_noise(image_folder):
    result = evaluate_latents(Pixels(), open_data_source(str(image_folder), 32), None, 8, (0.0, 0.2, 0.8))
    assert result.channels["channels"] == 3
    for name, values in result.equivariance.items():
        assert values["nearest"] == 1.0
        assert values["cosine"] == pytest.approx(1.0, abs=1e-5 if "noise" not in name else 0.05)
    values = [point["psnr"] for point in result.noise]
    assert values[0] == 100.0
    assert values[1] > values[2]


def test_noise_does_not_depend_on_the_batch_size(tiny_autoencoder, image_folder):
    images = open_data_source(str(image_folder), 32)
    first, second = (evaluate_latents(tiny_autoencoder, images, None, size, (0.4,)) for size in (4, 30))
    assert first.noise[0]["psnr"] == pytest.approx(second.noise[0]["psnr"], abs=1e-4)
    np.testing.assert_allclose(first.channels["channel_std"], second.channels["channel_std"], rtol=1e-4)


def test_the_commands_write_their_results(tiny_autoencoder, image_folder, other_folder, tmp_path):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    common = ["--autoencoder", str(tmp_path / "vae"), "--device", "cpu", "--output", str(tmp_path)]
    data = ["--train", str(other_folder), "--test", str(image_folder), "--epochs", "2"]
    assert evaluate("probing", *common, *data) == 0
    probing = json.loads((tmp_path / "probing.json").read_text())
    names = [figure["name"] for figure in probing["figures"]]
    assert {"linear probe, tokens", "linear probe, latent", "structure loss 1 - A2/A1"} <= set(names)
    assert len(probing["pictures"]["latent"]["points"]) == 30
    assert {"LDS, tokens 8x8", "CDS, latent 4x4", "RMSC, first stage 16x16"} <= set(names)
    assert evaluate("report", "--results", str(tmp_path), "--output", str(tmp_path / "report.html")) == 0
    assert "LDS, tokens 8x8 ↑" in (tmp_path / "report.html").read_text().split("All figures")[1]
    results = [f"{name}={tmp_path / 'probing.json'}" for name in ("one", "two")]
    assert evaluate("compare", "--results", *results, "--output", str(tmp_path / "compared")) == 0
    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "CDS, latent 4x4"]
    assert row["better"] == "higher" and row["differences"][0]["difference"] == 0
    assert evaluate("latents", *common, "--data", str(image_folder), "--extractor", "none") == 0
    latents = json.loads((tmp_path / "latents.json").read_text())
    assert latents["channels"]["channels"] == 4
    assert latents["figures"][0]["value"] == latents["channels"]["effective_rank"]


def test_objects_that_a_segmenter_finds_are_set_against_what_is_outside(
    tiny_autoencoder, image_folder, other_folder, tmp_path
):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    segmenter = save_tiny_segmenter(tmp_path / "segmenter")
    arguments = ["probing", "--autoencoder", tmp_path / "vae", "--train", other_folder, "--test", image_folder]
    arguments += ["--epochs", "1", "--device", "cpu", "--object_finder", segmenter, "--object_points", "2"]
    for batch_size in (4, 30):
        assert evaluate(*arguments, "--batch_size", batch_size, "--output", tmp_path / str(batch_size)) == 0
    found = [json.loads((tmp_path / name / "probing.json").read_text()) for name in ("4", "30")]
    for result in found:
        assert "SRSS" not in result["not_measured"]
    figures = [{figure["name"]: figure for figure in result["figures"]} for result in found]
    for name in ("SRSS, first stage 16x16", "SRSS, tokens 8x8", "SRSS, latent 4x4"):
        one, other = (named[name] for named in figures)
        assert one["value"] == pytest.approx(other["value"], abs=1e-6) and -2 < one["value"] < 2
        assert one["samples"] == other["samples"] <= 30 and one["extractor"]["name"] == "sam2"
    assert "extractor" not in figures[0]["LDS, tokens 8x8"]
    # Another grid of points finds other objects.
    assert evaluate(*arguments[:-1], "3", "--output", tmp_path / "more") == 0
    compared = [f"{name}={tmp_path / name}" for name in ("4", "30", "more")]
    assert evaluate("compare", "--results", *compared, "--output", tmp_path / "compared") == 0
    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    sides = {frozenset(row["values"]) for row in rows if row["name"] == "SRSS, tokens 8x8"}
    assert sides == {frozenset({"4", "30"}), frozenset({"more"})}
    assert evaluate("report", "--results", tmp_path / "4", "--output", tmp_path / "report.html") == 0
    assert "SRSS, tokens 8x8" in (tmp_path / "report.html").read_text()


def test_tokens_of_other_autoencoders_come_from_a_named_module(tmp_path, image_folder, other_folder, capsys):
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=[8, 8],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    ).save_pretrained(tmp_path / "vae")
    arguments = ["probing", "--autoencoder", str(tmp_path / "vae"), "--device", "cpu", "--output", str(tmp_path)]
    arguments += ["--train", str(other_folder), "--test", str(image_folder), "--epochs", "1", "--token_module"]
    assert evaluate(*arguments, "encoder.mid_block") == 0
    names = [figure["name"] for figure in json.loads((tmp_path / "probing.json").read_text())["figures"]]
    structure = [f"{name}, {depth} 16x16" for depth in ("tokens", "latent") for name in ("LDS", "CDS", "RMSC")]
    assert names[-6:] == structure
    assert evaluate(*arguments, "encoder.nothing") == 2
    assert "has no module 'encoder.nothing'" in capsys.readouterr().err
    assert evaluate(*arguments, "decoder.mid_block") == 2
    assert "was not called while encoding" in capsys.readouterr().err


def test_component_pictures_show_where_the_latent_differs():
    maps = torch.zeros(2, 5, 4, 4)
    maps[:, 2, :2] = 7.0  # the upper half is another thing, in both images
    colours = component_colours(maps, (4, 4)).numpy()
    assert colours.shape == (2, 3, 4, 4)
    assert np.ptp(colours[:, :, :2], axis=(0, 2, 3)).max() == 0
    assert abs(int(colours[0, 0, 0, 0]) - int(colours[0, 0, 3, 0])) == 255
    # Fewer channels than colours leave the others black.
    assert not component_colours(torch.rand(1, 2, 3, 3), (3, 3))[:, 2].any()


def test_component_pictures_show_what_varies_most_in_red():
    maps = torch.zeros(2, 5, 4, 4)
    maps[..., :2] += torch.tensor([3.0, -3, 3, 0, 0]).view(5, 1, 1)
    maps[:, 3, :2] += 1.0
    colours = component_colours(maps, (8, 8))
    assert colours.shape == (2, 3, 8, 8) and colours.dtype == torch.uint8
    # Left against right in red, above against below in green, nothing in blue; 2x2 pixels for a position.
    assert (colours[:, 0, :, :4] == colours[0, 0, 0, 0]).all() and (colours[:, 0, :, 4:] == colours[0, 0, 0, 7]).all()
    assert abs(int(colours[0, 0, 0, 0]) - int(colours[0, 0, 0, 7])) == 255
    assert abs(int(colours[0, 1, 0, 0]) - int(colours[0, 1, 7, 0])) == 255
    assert torch.equal(colours[0], component_colours(maps + 5, (8, 8))[0])


def test_the_picture_has_a_row_for_each_stage_also_of_oblong_images(tiny_autoencoder):
    maps = feature_maps(tiny_autoencoder, torch.zeros(2, 3, 32, 64))
    assert list(maps) == ["first-stage tokens", "last tokens", "latent"]
    assert maps["first-stage tokens"].shape == (2, 32, 16, 32)
    assert maps["latent"].shape == (2, 4, 4, 8)


def test_tsne_is_an_option_that_says_what_it_needs(
    monkeypatch, tiny_autoencoder, image_folder, other_folder, tmp_path, capsys
):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    command = ["probing", "--autoencoder", str(tmp_path / "vae"), "--device", "cpu", "--output", str(tmp_path)]
    command += ["--train", str(other_folder), "--test", str(image_folder), "--epochs", "1", "--tsne"]
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert evaluate(*command) == 2
    assert "--tsne needs scikit-learn" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sklearn.manifold")
    pytest.importorskip("sklearn")
    assert evaluate(*command) == 0
    picture = json.loads((tmp_path / "probing.json").read_text())["pictures"]["latent"]
    assert np.isfinite(picture["tsne"]).all()
    assert len(picture["tsne"]) == 30


def test_an_autoencoder_of_one_size_is_not_measured_at_another(image_folder, tmp_path, capsys):
    FOREIGN["AutoencoderRAE"]().save_pretrained(tmp_path / "rae")
    command = ["latents", "--autoencoder", tmp_path / "rae", "--data", image_folder, "--output", tmp_path / "out"]
    assert evaluate(*command, "--resolution", "32", "--extractor", "none") == 2
    assert "AutoencoderRAE returned 16x16 pixels for images of 32x32; pass --resolution 16" in capsys.readouterr().err
    assert evaluate(*command, "--resolution", "16", "--extractor", "none") == 0


def test_where_the_probe_is_never_right_there_is_no_structure_loss(tiny_autoencoder, image_folder, other_folder):
    train, test = (open_labelled_source(folder, 16) for folder in (other_folder, image_folder))
    wrong = ProbeResult(np.zeros(len(test), bool), np.array(test.labels), 1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcae_diffusers.metrics.probing.linear_probe", lambda *_, **__: wrong)
        found = evaluate_probing(tiny_autoencoder, train, test, epochs=1)
    assert "structure loss 1 - A2/A1" not in [figure.name for figure in found.figures]
    assert found.not_measured["structure loss 1 - A2/A1"] == "the probe of the tokens was right about no image"
