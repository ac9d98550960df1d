"""FDr against matrix square roots and loops, on sets whose ratio is known, and through the command."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from tcae_diffusers.data.images.image_sets import FolderImages
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics import classification_accuracy
from tcae_diffusers.metrics.feature_cache import features_of
from tcae_diffusers.metrics.frechet import FrechetStatistics
from tcae_diffusers.metrics.frechet_ratio import FrechetRatio

from ..evaluation.conftest import draw_images, evaluate, write_folder

TRIO = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


class Projection:
    """A feature network of random weights: mean colours of 4x4 blocks, projected and bent."""

    def __init__(self, name, seed, scale, dimensions=6):
        self.name, self.dimensions, self.weights_sha256 = name, dimensions, f"hash of {name}"
        generator = torch.Generator().manual_seed(seed)
        self._weights = torch.randn(48, dimensions, generator=generator) * scale

    def __call__(self, images):
        blocks = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        return {"features": torch.tanh(blocks @ self._weights / self._weights.abs().max()) * self._weights.abs().max()}


NETWORKS = [Projection("small", 0, 0.1), Projection("large", 1, 40.0, 9)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Real images in three parts of one distribution, and others, which are darker."""
    real, root = draw_images(5, 460, 16), tmp_path_factory.mktemp("fdr")
    parts = {"training": real[:240], "heldout": real[240:340], "unseen": real[340:], "few": real[340:372]}
    parts |= {"reference": real[:24], "labelled": real[240:262]}
    parts["dark"] = (draw_images(6, 100, 16) * 0.6).astype(np.uint8)
    return {name: write_folder(root / name, images) for name, images in parts.items()}


def opened(folders, *names):
    return [FolderImages(folders[name], 16) for name in names]


def distance(first, second):
    """From the definition, in float64, with loops for the moments."""
    means, covariances = [], []
    for features in (first.astype(np.float64), second.astype(np.float64)):
        mean = sum(features) / len(features)
        means.append(mean)
        covariances.append(sum(np.outer(row - mean, row - mean) for row in features) / (len(features) - 1))
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_it_is_the_mean_of_the_ratios_of_all_networks(folders):
    dark, heldout, training = opened(folders, "dark", "heldout", "training")
    figure = FrechetRatio(heldout, training, NETWORKS).figure(dark)
    ratios = []
    for network in NETWORKS:
        features = [features_of(images, network)["features"] for images in (dark, heldout, training)]
        own, of_heldout = (distance(side, features[2]) for side in features[:2])
        described = figure.details["networks"][network.name]
        assert described["distance"] == pytest.approx(own, rel=1e-6)
        assert described["heldout_distance"] == pytest.approx(of_heldout, rel=1e-6)
        assert described["ratio"] == pytest.approx(own / of_heldout, rel=1e-6)
        ratios.append(own / of_heldout)
    assert figure.value == pytest.approx(np.mean(ratios), rel=1e-6)
    assert ratios[0] != pytest.approx(ratios[1], rel=0.01) and min(ratios) > 1.5
    assert (figure.name, figure.better, figure.floor.value) == ("FDr2-small+large", "lower", 1.0)
    assert (figure.samples, figure.reference_images) == (100, 240)
    assert figure.extractor["weights_sha256"] == ["hash of small", "hash of large"]
    assert figure.details["heldout_fingerprint"] == heldout.fingerprint


def test_the_held_out_images_score_one_and_other_real_ones_about_one(folders):
    heldout, training, unseen, few = opened(folders, "heldout", "training", "unseen", "few")
    ratio = FrechetRatio(heldout, training, NETWORKS)
    itself = ratio.figure(heldout)
    assert itself.value == 1.0 and itself.interval == 0.0
    real = ratio.figure(unseen)
    # Of the larger set, the unseen images, a random part of the size of the smaller.
    assert real.samples == 100
    assert real.value == pytest.approx(1, abs=0.7) and abs(real.value - 1) < 1.5 * real.interval
    # A third as many images are three times as far from the training images, real ones as well: the bias cancels.
    of_few = ratio.figure(few)
    assert of_few.samples == 32
    distances = of_few.details["networks"]["small"]
    assert distances["heldout_distance"] > 1.5 * itself.details["networks"]["small"]["heldout_distance"]
    assert of_few.value == pytest.approx(1, abs=0.7)


def test_the_seed_decides_the_random_part_and_the_batch_size_nothing(folders):
    heldout, training, unseen = opened(folders, "heldout", "training", "unseen")
    first, again, other = (
        FrechetRatio(heldout, training, NETWORKS, batch_size=size, seed=seed).figure(unseen)
        for size, seed in ((7, 0), (64, 0), (64, 1))
    )
    assert first.value == pytest.approx(again.value, rel=1e-5) and first.interval == pytest.approx(
        again.interval, rel=1e-4
    )
    assert first.value != pytest.approx(other.value, rel=1e-3)


def test_the_interval_is_as_wide_as_the_figure_scatters_over_draws(tmp_path):
    network, values, intervals = NETWORKS[:1], [], []
    for turn in range(12):
        images = draw_images(20 + turn, 200, 16)
        images[160:] = (images[160:] * 0.85).astype(np.uint8)
        parts = {"training": images[:120], "heldout": images[120:160], "samples": images[160:]}
        sets = {name: FolderImages(write_folder(tmp_path / f"{turn}{name}", part), 16) for name, part in parts.items()}
        figure = FrechetRatio(sets["heldout"], sets["training"], network).figure(sets["samples"])
        values.append(figure.value)
        intervals.append(figure.interval)
    assert 0.7 * np.std(values) < np.median(intervals) < 6 * np.std(values)
    tiny = FolderImages(write_folder(tmp_path / "tiny", draw_images(1, 9, 16)), 16)
    assert FrechetRatio(tiny, sets["training"], network).figure(sets["samples"]).interval is None


def test_statistics_of_a_file_take_the_place_of_the_images_for_inception_alone(folders):
    dark, heldout, training = opened(folders, "dark", "heldout", "training")
    inception = Projection("inception", 2, 1.0)
    statistics = FrechetStatistics.from_features(features_of(training, inception)["features"])
    of_images = FrechetRatio(heldout, training, [inception]).figure(dark)
    of_file = FrechetRatio(heldout, None, [inception], statistics).figure(dark)
    assert of_file.value == pytest.approx(of_images.value, rel=1e-6)
    assert (of_file.name, of_file.reference_images) == ("FDr1-inception", None)
    with pytest.raises(InputError, match="--fdr_networks small needs real images as --reference"):
        FrechetRatio(heldout, None, NETWORKS, statistics)
    with pytest.raises(InputError, match="are the same images"):
        FrechetRatio(training, training, NETWORKS)
    with pytest.raises(InputError, match="there is no ratio to it"):
        same = FrechetRatio(heldout, training, [Constant("constant", 0, 1.0)])
        same.figure(dark)


class Constant(Projection):
    def __call__(self, images):
        return {"features": torch.ones(len(images), self.dimensions)}


def test_the_command_measures_it_beside_classification_accuracy_which_alone_needs_labels(
    folders, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(classification_accuracy, "_STEPS", 3)
    command = ["generation", "--samples", folders["few"], "--reference", folders["reference"], "--device", "cpu"]
    command += ["--feature_cache", tmp_path / "cache", "--fdr_networks", *TRIO]
    flat = tmp_path / "heldout"
    flat.mkdir()
    for path in sorted(folders["dark"].rglob("*.png"))[:20]:
        (flat / path.name).write_bytes(path.read_bytes())
    for name, heldout in (("labelled", folders["labelled"]), ("flat", flat)):
        assert evaluate(*command, "--heldout", heldout, "--output", tmp_path / name) == 0
    results = {name: json.loads((tmp_path / name / "generation.json").read_text()) for name in ("labelled", "flat")}
    names = {name: [figure["name"] for figure in result["sets"][0]["figures"]] for name, result in results.items()}
    expected = "FDr3-" + "+".join(TRIO)
    assert names["labelled"][-2:] == ["CAS-convnet", expected]
    assert names["flat"][-1] == expected and "CAS-convnet" not in names["flat"]
    assert f"classification accuracy is omitted: no labels of several classes in {flat}" in caplog.text
    figure = results["labelled"]["sets"][0]["figures"][-1]
    assert list(figure["networks"]) == TRIO and figure["samples"] == 22 and figure["reference_images"] == 24
    assert figure["value"] == pytest.approx(np.mean([entry["ratio"] for entry in figure["networks"].values()]))
    assert results["labelled"]["settings"]["fdr_networks"] == TRIO
    # Held-out images are a condition: figures with others are not subtracted.
    compared = [f"{name}={tmp_path / name}" for name in results]
    assert evaluate("compare", "--results", *compared, "--output", tmp_path / "both", "--title", "FDr") == 0
    rows = json.loads((tmp_path / "both" / "comparison.json").read_text())["rows"]
    assert [len(row["values"]) for row in rows if row["name"] == expected] == [1, 1]
    assert f"{expected} ↓" in (tmp_path / "both" / "comparison.html").read_text()
    curve = ["--curve", "one", f"10={tmp_path / 'labelled'}", "--output", tmp_path / "curve", "--figure", expected]
    assert evaluate("convergence", *curve) == 0
    assert json.loads((tmp_path / "curve" / "convergence.json").read_text())["figure"] == expected
