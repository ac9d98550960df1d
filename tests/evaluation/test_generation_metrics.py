"""Figures of sample sets: agreement with torch-fidelity's own run, floors, cache, references."""

import json

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from tcae_diffusers.data.images.image_sets import FolderImages, NpzImages
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.feature_cache import features_of
from tcae_diffusers.metrics.features import FeatureNetwork
from tcae_diffusers.metrics.frechet import FrechetStatistics
from tcae_diffusers.metrics.generation import evaluate_generation, generation_figures
from tcae_diffusers.metrics.reference import Reference, open_reference
from tcae_diffusers.metrics.set_measures import SampleFeatures
from tcae_diffusers.metrics.set_measures.kernel_distance import kid

from .conftest import evaluate


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork("efficientnet-lite0")


@pytest.fixture(scope="module")
def features(network, image_folder, other_folder):
    sets = FolderImages(image_folder), FolderImages(other_folder)
    return [features_of(images, network, 64)["features"] for images in sets]


def known_to_torch_fidelity(network):
    """The name under which torch-fidelity runs `network`."""

    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)

        def forward(self, images):
            return (network(images)["features"],)

        @staticmethod
        def get_provided_features_list():
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "pooled"

    register_feature_extractor(f"tested-{network.name}", Extractor)
    return f"tested-{network.name}"


def test_figures_equal_torch_fidelity_on_the_same_folders(network, features, image_folder, other_folder):
    theirs = torch_fidelity.calculate_metrics(
        input1=str(image_folder),
        input2=str(other_folder),
        feature_extractor=known_to_torch_fidelity(network),
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=12,
        samples_find_deep=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    figures = Reference(features[1]).compare(SampleFeatures(features[0]), None)[1]
    assert figures["FID"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert figures["precision"].value == theirs["precision"]
    assert figures["recall"].value == theirs["recall"]
    ours = kid(features[0], features[1], subset_size=12)
    assert ours.details["subset_size"] == 12
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_features_do_not_depend_on_batch_size_or_cache(network, features, image_folder, tmp_path):
    images = FolderImages(image_folder)
    for batch_size in (1, 7):
        again = features_of(images, network, batch_size, tmp_path)["features"]
        np.testing.assert_allclose(again, features[0], atol=2e-4)
    (entry,) = tmp_path.iterdir()
    stored = np.load(entry)["features"]
    np.testing.assert_array_equal(features_of(images, network, 7, tmp_path)["features"], stored)
    # A damaged entry is computed again, not believed.
    entry.write_bytes(b"not an archive")
    np.testing.assert_allclose(features_of(images, network, 7, tmp_path)["features"], features[0], atol=2e-4)


def test_features_of_pixels_as_they_were_decoded_before_are_not_used(network, image_folder, tmp_path, monkeypatch):
    images = FolderImages(image_folder)
    for entries, version in ((1, 7), (1, 7), (2, 8)):
        monkeypatch.setattr("tcae_diffusers.metrics.feature_cache.DECODING_VERSION", version)
        features_of(images, network, 7, tmp_path)
        assert len(list(tmp_path.iterdir())) == entries


def test_the_floor_is_what_real_images_score_and_grows_with_fewer_images(features):
    generator = np.random.default_rng(0)
    real = generator.normal(size=(400, 16))
    reference = Reference(real)
    sizes, floor = reference.floor(150, 150)
    assert sizes == (150, 150)
    assert floor["precision"].value > 0.7
    _, small = reference.floor(40, 40)
    assert small["FID"].value > floor["FID"].value > 0
    same = reference.compare(SampleFeatures(generator.normal(size=(150, 16))), 150)[1]
    other = reference.compare(SampleFeatures(generator.normal(loc=1.0, size=(150, 16))), 150)[1]
    assert same["FID"].value == pytest.approx(floor["FID"].value, rel=0.3)
    assert other["FID"].value > 5 * floor["FID"].value
    assert abs(same["KID"].value) < 0.1 * other["KID"].value


@pytest.mark.parametrize(
    ("samples", "count", "used", "sizes"),
    [
        # As many real images as samples, however many there are.
        (100, "equal", 100, [100, 100]),
        (100, "all", 900, [100, 800]),
        (300, "50", 50, [300, 50]),
        (600, "equal", 600, [450, 450]),
        (1000, "equal", 900, [450, 450]),
    ],
)
def test_the_floor_is_of_sets_as_large_as_those_compared(samples, count, used, sizes, network, monkeypatch):
    # Of more real images than this all were taken once, for however few samples.
    monkeypatch.setattr("tcae_diffusers.metrics.generation.FULL_SAMPLE_COUNT", 650)
    generator = np.random.default_rng(0)
    reference = Reference(generator.normal(size=(900, 8)))
    drawn = SampleFeatures(generator.normal(size=(samples, 8)))
    figures = {figure.name: figure for figure in generation_figures(drawn, reference, network, count)}
    distance = figures["gFD-efficientnet-lite0"]
    assert (distance.samples, distance.reference_images) == (samples, used)
    assert distance.floor.details["images"] == sizes
    # What is no better and no worse than real images scores as they do.
    assert distance.value == pytest.approx(distance.floor.value, rel=0.5)
    largest = max(figures["gFD-inf-efficientnet-lite0"].details["sizes"])
    assert largest == figures["gFD-inf-efficientnet-lite0"].reference_images or samples < used
    assert largest <= min(samples, used)


def test_names_and_counts_are_honest(network, features, image_folder, other_folder, tmp_path):
    reference = Reference(features[1])
    figures = evaluate_generation(FolderImages(image_folder), reference, network, "equal", 16, tmp_path)
    names = {figure.name: figure for figure in figures}
    distance = names["gFD-efficientnet-lite0"]
    assert (distance.samples, distance.reference_images) == (30, 24)
    assert distance.floor.details["images"] == [12, 12]
    assert not any("FID" in name or name.startswith("IS") for name in names)


def test_an_adm_reference_gives_statistics_for_fid_and_images_for_the_rest(features, image_folder, tmp_path):
    class Inception:
        """Stands in for the network whose weights are not at hand; any features will do here."""

        name, weights_sha256, dimensions = "inception", "0", 6

        def __call__(self, images):
            return {"features": images.float().mean(dim=(2, 3)).repeat(1, 2) + images[:, :1, 0, :6].squeeze(1).float()}

        def describe(self):
            return {"name": self.name}

    network = Inception()
    images = FolderImages(image_folder)
    pixels = np.stack([images[index] for index in range(len(images))])
    values = features_of(images, network)["features"].astype(np.float64)
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    reference, description = open_reference(str(tmp_path / "adm.npz"), 32, network)
    assert (description["images"], description["statistics"]) == (30, True)
    figures = {figure.name: figure for figure in evaluate_generation(images, reference, network)}
    assert figures["gFID-30"].value == pytest.approx(0.0, abs=1e-6)
    assert figures["gFID-30"].reference_images is None
    assert figures["precision-30"].value == 1.0

    np.savez(tmp_path / "only.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    reference, _ = open_reference(str(tmp_path / "only.npz"), 32, network)
    assert isinstance(reference.statistics, FrechetStatistics)
    assert [figure.name for figure in evaluate_generation(images, reference, network)] == ["gFID-30"]


def test_inception_statistics_are_refused_for_other_features(network, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(InputError, match="Inception statistics"):
        open_reference(str(tmp_path / "adm.npz"), 32, network)


def test_compressed_and_plain_archives_are_read_alike(tmp_path, image_folder):
    images = FolderImages(image_folder)
    pixels = np.stack([images[index] for index in range(4)])
    np.savez(tmp_path / "plain.npz", arr_0=pixels, arr_1=np.array([0, 1, 0, 1]))
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=pixels)
    plain, compressed = NpzImages(tmp_path / "plain.npz"), NpzImages(tmp_path / "compressed.npz")
    assert isinstance(plain._images, np.memmap)
    assert plain.labels == [0, 1, 0, 1]
    for index in range(4):
        np.testing.assert_array_equal(plain[index], pixels[index])
        np.testing.assert_array_equal(compressed[index], pixels[index])


def test_the_command_compares_several_sets(image_folder, other_folder, tmp_path):
    arguments = ["generation", "--samples", f"good={image_folder}", f"same={image_folder}", "--device", "cpu"]
    arguments += ["--reference", str(other_folder), "--feature_cache", str(tmp_path / "cache")]
    assert evaluate(*arguments, "--output", str(tmp_path / "out")) == 0
    result = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert [entry["name"] for entry in result["sets"]] == ["good", "same"]
    assert result["sets"][0]["figures"][0]["value"] == result["sets"][1]["figures"][0]["value"]
    assert result["sets"][0]["grid_rows"] == ["circles", "squares"]
    assert (tmp_path / "out" / "samples_good.png").is_file()


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A weights file of Inception's shape with random values: the real one is a download."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(module.state_dict(), path)
    return path


def test_with_inception_all_figures_equal_torch_fidelity(inception_weights, make_image_folder, tmp_path):
    for name, seed in (("samples", 5), ("real", 6)):
        make_image_folder(tmp_path / name, seed, 10)
    arguments = ["generation", "--samples", str(tmp_path / "samples"), "--reference", str(tmp_path / "real")]
    arguments += ["--extractor", "inception", "--extractor_weights", str(inception_weights), "--no_feature_cache"]
    assert evaluate(*arguments, "--device", "cpu", "--output", str(tmp_path / "out")) == 0
    result = json.loads((tmp_path / "out" / "generation.json").read_text())
    figures = {figure["name"]: figure["value"] for figure in result["sets"][0]["figures"]}
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "real"),
        feature_extractor_weights_path=str(inception_weights),
        feature_extractor="inception-v3-compat",
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        isc_splits=1,
        kid_subset_size=5,
        samples_find_deep=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    assert figures["gFID-10"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert figures["gKID-10"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert figures["IS-10"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert figures["precision-10"] == theirs["precision"]
    assert figures["recall-10"] == theirs["recall"]
