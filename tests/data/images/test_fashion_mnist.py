"""Fashion-MNIST from IDX files or a data set: the same images, padded, and nothing else than Fashion-MNIST."""

import gzip
import hashlib
import struct

import datasets
import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.images import fashion_mnist
from tcae_diffusers.data.images.fashion_mnist import CLASSES, Split, prepare_fashion_mnist, read_idx
from tcae_diffusers.data.images.sources import build_image_source, training_split
from tcae_diffusers.errors import InputError
from tcae_diffusers.training.prepare_fashion_mnist import main

COUNTS = {"train": 20, "test": 10}


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def arrays(monkeypatch):
    """Images and labels that are taken for Fashion-MNIST."""
    generator, made, splits = np.random.default_rng(0), {}, {}
    for (name, count), prefix in zip(COUNTS.items(), ("train", "t10k"), strict=True):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.permutation(count).astype(np.uint8) % 10
        made[name] = images, labels
        digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        splits[name] = Split(prefix, count, digest)
    monkeypatch.setattr(fashion_mnist, "SPLITS", splits)
    return made


@pytest.fixture
def idx_folder(arrays, tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, split in fashion_mnist.SPLITS.items():
        images, labels = arrays[name]
        # Debian compresses them, torchvision leaves both.
        (folder / f"{split.prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{split.prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_images_are_padded_and_keep_their_classes(idx_folder, arrays, tmp_path, capsys):
    main(["--source", str(idx_folder), "--output_dir", str(tmp_path / "out")])
    assert f"datasets:{tmp_path / 'out'}:test: 10 images of 32x32" in capsys.readouterr().out
    for name, count in COUNTS.items():
        spec = f"datasets:{tmp_path / 'out'}:{name}"
        source, (images, labels) = build_image_source(spec), arrays[name]
        assert len(source) == count and tuple(source.classes) == CLASSES
        assert source.labels.tolist() == labels.tolist()
        for index in (0, count - 1):
            pixels = np.asarray(source.image(index))
            assert pixels.shape == (32, 32, 3)
            assert (pixels[2:30, 2:30] == images[index][..., None]).all()
            assert pixels.sum(dtype=int) == 3 * images[index].sum(dtype=int)
        # The linear baseline of held-out images finds what it may be fitted to.
        assert training_split(spec) == (None if name == "train" else f"datasets:{tmp_path / 'out'}:train")


def test_a_data_set_gives_the_same_fingerprint_as_files(idx_folder, arrays, tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
    made = {
        name: datasets.Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features)
        for name, (images, labels) in arrays.items()
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    found = []
    for number, source in enumerate((idx_folder, tmp_path / "saved")):
        prepare_fashion_mnist(str(source), tmp_path / f"out{number}")
        found.append([build_image_source(f"datasets:{tmp_path}/out{number}:{name}").fingerprint for name in COUNTS])
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_other_images_and_labels_are_refused(idx_folder, arrays, tmp_path, capsys):
    _, labels = arrays["test"]
    file = idx_folder / "t10k-labels-idx1-ubyte"
    for content, message in (
        (idx((labels + 1) % 10), "(test) is not Fashion-MNIST: its pixels and labels have the sha256"),
        (idx(labels[:-1]), "labels (9,); expected ((10, 28, 28), (10,))"),
        (idx(labels)[:-1], "holds 9 bytes; expected 10"),
        (b"\0\0\x0d\x01" + idx(labels)[4:], "begins with 00000d01; expected an IDX file of bytes"),
        (b"", "begins with nothing"),
        (None, "lacks t10k-images-idx3-ubyte or t10k-labels-idx1-ubyte"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            main(["--source", str(idx_folder), "--output_dir", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1, error
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": [Image.new("L", (28, 28)), Image.new("L", (20, 20))] * 5},
            "holds images of 2 sizes; expected 28x28",
        ),
        ({"image": [Image.new("L", (28, 28)), None] * 5}, "[1]: the row holds no image"),
        ({"image": [{"bytes": b"abc", "path": None}] * 10}, "[0]: it is not an image"),
        ({"label": [*range(9), None]}, "row 9 of"),
        ({"label": [*range(9), 300]}, "is not Fashion-MNIST"),
        ({"label": [0] * 10}, "(train) has 1 classes; expected 10"),
        ({"picture": [0] * 10, "image": None}, "no image column among label, picture"),
    ],
    ids=["sizes", "no image", "broken image", "no label", "other labels", "one class", "no column"],
)
def test_a_data_set_of_other_rows_is_refused_in_one_line(arrays, tmp_path, capsys, change, message):
    rows = {"image": [Image.new("L", (28, 28))] * 10, "label": [*range(10)], **change}
    rows = {name: values for name, values in rows.items() if values is not None}
    features = {name: datasets.Image() if name == "image" else datasets.Value("int64") for name in rows}
    made = datasets.Dataset.from_dict(rows, datasets.Features(features))
    fashion_mnist.SPLITS["train"] = Split("train", 10, "0")
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "saved")
    with pytest.raises(SystemExit) as stop:
        main(["--source", str(tmp_path / "saved"), "--output_dir", str(tmp_path / "out")])
    error = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert stop.value.code == 2 and len(error) == 1 and message in error[0], error
    assert not (tmp_path / "out").exists()


def test_a_column_of_another_name_can_be_named(arrays, tmp_path):
    made = {
        name: datasets.Dataset.from_dict(
            {"first": list(images), "second": list(images), "label": labels.tolist()},
            datasets.Features(first=datasets.Image(), second=datasets.Image(), label=datasets.Value("int64")),
        )
        for name, (images, labels) in arrays.items()
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    prepare_fashion_mnist(f"{tmp_path / 'saved'}?image=second", tmp_path / "out")
    assert len(build_image_source(f"datasets:{tmp_path / 'out'}:test")) == COUNTS["test"]


def test_damaged_archives_missing_sources_and_taken_folders_are_named(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(2000, np.uint8)))[:-9])
    with pytest.raises(InputError, match=r"x.gz cannot be read \(.*\); download it again"):
        read_idx(path)
    with pytest.raises(InputError, match="exists; choose another folder"):
        prepare_fashion_mnist("anything", tmp_path)
    with pytest.raises(InputError, match=r"cannot be reached|cannot be read"):
        prepare_fashion_mnist(str(tmp_path / "nothing"), tmp_path / "out")


def test_the_known_hashes_are_those_of_two_splits():
    assert [split.count for split in fashion_mnist.SPLITS.values()] == [60_000, 10_000]
    assert len({split.sha256 for split in fashion_mnist.SPLITS.values()}) == 2
