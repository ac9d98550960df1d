"""The classification accuracy score against what is known of the images and against scikit-learn's classifier."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tcae_diffusers.data.images.image_sets import FolderImages
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics import classification_accuracy
from tcae_diffusers.metrics.classification_accuracy import (
    ClassificationAccuracy,
    LabelledPixels,
    train_classifier,
    trained_accuracy,
)

from ..evaluation.conftest import write_folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(classification_accuracy, "_STEPS", 60)


def blobs(seed, count, mislabelled=0.0, side=12):
    """Noise with a bright spot in one of the four corners, which is the class; labels, some of them wrong."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, 3, side, side))
    truth = generator.integers(0, 4, count)
    for image, corner in zip(images, truth, strict=True):
        top, left = side // 2 * (corner // 2) + 2, side // 2 * (corner % 2) + 2
        image[:, top : top + 3, left : left + 3] += 120
    labels = np.where(generator.random(count) < mislabelled, generator.integers(0, 4, count), truth)
    return LabelledPixels(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


def test_it_tells_labels_that_fit_from_labels_that_do_not():
    # A class that a linear model can read, so that another library gives the same answer.
    train, test = blobs(0, 300), blobs(1, 400)
    flat = [part.pixels.flatten(1).numpy() / 255 for part in (train, test)]
    theirs = LogisticRegression(max_iter=1000).fit(flat[0], train.labels).score(flat[1], test.labels)
    ours = trained_accuracy(train, test, 4)
    assert theirs > 0.95 and ours.value == pytest.approx(theirs, abs=0.05)
    chance = trained_accuracy(blobs(2, 300, mislabelled=1.0), test, 4)
    assert chance.value == pytest.approx(0.25, abs=0.15)
    assert ours.value > trained_accuracy(blobs(3, 300, mislabelled=0.8), test, 4).value > chance.value
    assert ours.details["training_images"] == 300


def test_it_is_the_mean_over_classifiers_which_the_seed_decides():
    train, test = blobs(0, 100, mislabelled=0.5), blobs(1, 200)
    first, again, other = (trained_accuracy(train, test, 4, seed) for seed in (0, 0, 3))
    assert first.details["accuracies"] == again.details["accuracies"] != other.details["accuracies"]
    assert first.value == pytest.approx(np.mean(first.details["accuracies"]))
    assert len(set(first.details["accuracies"])) > 1
    state = torch.get_rng_state()
    single = train_classifier(train, 4, 1, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    correct = classification_accuracy.classify(single, test, "cpu") == test.labels.numpy()
    assert first.details["accuracies"][1] == correct.mean()
    # Other test images of the same kind: the interval covers them, and is not far wider.
    scatter = np.std([trained_accuracy(train, blobs(seed, 200), 4).value for seed in range(4, 10)])
    assert scatter < first.interval < 20 * max(scatter, 0.01)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def write(name, seed, count, classes, mislabelled=0.0):
        images, root = blobs(seed, count, mislabelled), tmp_path_factory.mktemp(name)
        arrays = images.pixels.permute(0, 2, 3, 1).numpy()
        for label, class_name in enumerate(classes):
            write_folder(root, arrays[images.labels == label], [class_name])
        return root

    names = ["a", "b", "c", "d"]
    return {
        "samples": write("samples", 0, 80, names, mislabelled=0.6),
        "real": write("real", 1, 120, names),
        "heldout": write("heldout", 2, 100, names),
        "others": write("others", 3, 40, ["a", "b", "c", "z"]),
    }


def test_a_figure_stands_beside_that_of_as_many_real_images(folders):
    opened = {name: FolderImages(folder, 12) for name, folder in folders.items()}
    score = ClassificationAccuracy(opened["heldout"], opened["real"])
    figure = score.figure(opened["samples"])
    assert (figure.name, figure.better) == ("CAS-convnet", "higher")
    assert (figure.samples, figure.reference_images) == (80, 100)
    assert figure.floor.details["training_images"] == 80
    assert figure.baseline.value < figure.value < figure.floor.value
    assert figure.details["heldout_fingerprint"] == opened["heldout"].fingerprint
    # More samples than real images: all of these.
    assert (
        ClassificationAccuracy(opened["heldout"], opened["samples"])
        .figure(opened["real"])
        .floor.details["training_images"]
        == 80
    )
    with pytest.raises(InputError, match=r"has the class 'z', which is none of .*: a, b, c, d"):
        score.figure(opened["others"])


def test_classes_are_matched_by_name(folders):
    heldout, real = (FolderImages(folders[name], 12) for name in ("heldout", "real"))

    renumbered = FolderImages(folders["real"], 12)
    renumbered.classes, renumbered.labels = real.classes[::-1], [3 - label for label in real.labels]
    score = ClassificationAccuracy(heldout, FolderImages(folders["samples"], 12))
    assert score.figure(renumbered).value == score.figure(real).value


def test_classes_of_one_name_are_matched_by_id_or_refused(folders):
    heldout, real, samples = (FolderImages(folders[name], 12) for name in ("heldout", "real", "samples"))
    expected = ClassificationAccuracy(heldout, real).figure(samples).value
    for each in (heldout, real, samples):
        each.classes = ["crane", "maillot", "crane", "d"]
    score = ClassificationAccuracy(heldout, real)
    assert score.labels_of(samples) == samples.labels and score.figure(samples).value == expected
    samples.classes = ["maillot", "crane", "d", "crane"]
    with pytest.raises(InputError, match="has several classes called 'crane'"):
        score.labels_of(samples)
    samples.classes = ["maillot", "crane", "d", "other crane"]
    with pytest.raises(InputError, match="has several classes called 'crane'"):
        score.labels_of(samples)


def test_a_single_class_says_nothing(folders):
    heldout, real = (FolderImages(folders[name], 12) for name in ("heldout", "real"))
    heldout.classes, heldout.labels = ["image"], [0] * len(heldout)
    with pytest.raises(InputError, match="has the single class 'image'"):
        ClassificationAccuracy(heldout, real)


def test_large_images_are_resized_to_32_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (8, 80, 50, 3)).astype(np.uint8)
    images[..., 0] = 200
    read = FolderImages(write_folder(tmp_path, images))
    pixels = LabelledPixels.read(read, read.labels).pixels
    assert pixels.shape == (8, 3, 32, 32) and pixels.dtype == torch.uint8
    assert (pixels[:, 0] == 200).all()
