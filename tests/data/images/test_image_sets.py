"""What the images of an evaluation are: decoded as everywhere, of the size they are said to be, with their labels."""

import os

import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.images.decoding import load_rgb_image
from tcae_diffusers.data.images.image_sets import FolderImages, NpzImages, SourceImages, open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.frechet import FrechetStatistics
from tcae_diffusers.metrics.reference import open_reference_content


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (16, 16), (len(path.name), 0, 0))).save(path, **options)
    return path


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to view
    image = Image.new("RGB", (16, 16), "red")
    image.paste("blue", (0, 0, 16, 8))
    return image, exif


UNUSUAL = {
    "16-bit grey": (Image.fromarray(np.full((16, 16), 30_000, np.uint16)), {}),
    "transparent": (Image.new("RGBA", (16, 16), (10, 20, 30, 0)), {}),
    "transparent palette": (Image.new("P", (16, 16)), {"transparency": 0}),
    "to be turned": (rotated()[0], {"exif": rotated()[1]}),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_files_are_decoded_as_in_training(tmp_path, kind):
    image, options = UNUSUAL[kind]
    file = save(tmp_path / "a.png", image, **options)
    expected = np.asarray(load_rgb_image(file))
    assert (expected != np.asarray(image.convert("RGB"))).any()
    for size in (None, 16):
        np.testing.assert_array_equal(FolderImages(tmp_path, size)[0], expected)


def test_linked_folders_count_in_every_role_and_circles_do_not(tmp_path):
    for index in range(8):
        save(tmp_path / "set/a" / f"{index}.png")
        save(tmp_path / "elsewhere" / f"{index}.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/b")
    os.symlink("..", tmp_path / "elsewhere/back")
    for size in (None, 16):
        images = open_image_set(tmp_path / "set", size)
        assert (len(images), images.classes, images.labels) == (16, ["a", "b"], [0] * 8 + [1] * 8)


def test_an_archive_without_images_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.npz"):
        open_image_set(tmp_path / "a.npz")


def test_every_kind_of_file_is_a_sample_and_a_reference(tmp_path):
    for ending in ("png", "PNG", "bmp", "gif", "ppm", "tif", "webp"):
        save(tmp_path / f"a.{ending}")
    assert len(open_image_set(tmp_path)) == len(open_image_set(tmp_path, 8)) == 7


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a/0.png"), save(tmp_path / "sheet.png")
    with pytest.raises(InputError, match=r"inside and outside class folders \(a/0.png and sheet.png\)"):
        open_image_set(tmp_path)


def test_samples_of_several_sizes_are_refused_and_real_images_resized(tmp_path):
    save(tmp_path / "0.png"), save(tmp_path / "1.png", Image.new("RGB", (40, 24)))
    with pytest.raises(InputError, match=r"1\.png is 40x24 pixels, expected 16x16"):
        open_image_set(tmp_path)[1]
    images = open_image_set(tmp_path, 16)
    assert images[0].shape == images[1].shape == (16, 16, 3)


def test_fingerprints_tell_content_and_preprocessing_apart(tmp_path):
    save(tmp_path / "set/0.bmp")
    np.savez(tmp_path / "set.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))

    def fingerprints():
        return {open_image_set(tmp_path / name, size).fingerprint for name in ("set", "set.npz") for size in (None, 8)}

    before = fingerprints()
    assert len(before) == 4
    save(tmp_path / "set/0.bmp", Image.new("RGB", (16, 16), "blue"))
    np.savez(tmp_path / "set.npz", arr_0=np.ones((2, 16, 16, 3), np.uint8))
    assert not before & fingerprints()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(16), r"float64 \(16,\) labels for 16 images"),
        (np.array(["cat"] * 16), r"<U3 \(16,\) labels for 16 images"),
        (np.array([True] * 16), r"bool \(16,\) labels for 16 images"),
        (np.eye(16, dtype=np.int64), r"int64 \(16, 16\) labels for 16 images"),
        (np.zeros(10, np.int64), r"int64 \(10,\) labels for 16 images"),
        (np.array([0] * 15 + [-1]), "the label of image 15 is -1"),
        (np.array([0] * 15 + [2**40]), "the label of image 15 is 1099511627776"),
        (np.array([None] * 16), "Object arrays cannot be loaded"),
    ],
)
def test_labels_that_are_no_class_indices_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "set.npz", arr_0=np.zeros((16, 8, 8, 3), np.uint8), arr_1=labels)
    with pytest.raises(InputError, match=rf"set.npz.*{message}") as caught:
        open_image_set(tmp_path / "set.npz")
    assert "\n" not in str(caught.value)


def test_class_indices_of_any_width_are_labels(tmp_path):
    for kind in (np.uint8, np.int32, np.int64):
        np.savez(tmp_path / "set.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), arr_1=np.array([2, 0, 2], kind))
        images = NpzImages(tmp_path / "set.npz")
        assert images.labels == [2, 0, 2] and images.classes == ["0", "1", "2"]


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    file = tmp_path / "set.npz"
    np.savez_compressed(file, arr_0=np.random.default_rng(0).integers(0, 255, (9, 8, 8, 3), dtype=np.uint8))
    content = bytearray(file.read_bytes())
    content[600:700] = bytes(100)
    file.write_bytes(content[:500] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"cannot read image archive .*set\.npz"):
        open_image_set(file)


@pytest.mark.parametrize("use", [open_image_set, open_reference_content, FrechetStatistics.from_adm_npz])
@pytest.mark.parametrize("content", ["nothing", "text", "one array"])
def test_what_is_no_archive_is_named(tmp_path, use, content):
    file = tmp_path / "set.npz"
    file.write_bytes(b"" if content == "nothing" else b"text")
    if content == "one array":
        with open(file, "wb") as stream:
            np.save(stream, np.zeros((9, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"cannot read .*set\.npz: it is not an \.npz archive"):
        use(str(file))


@pytest.mark.parametrize("name", ["12:30/flat", "openmoji:train", "datasets:x", "lr=1e-4", "folder.npz"])
def test_a_folder_that_exists_is_one_whatever_its_name(tmp_path, monkeypatch, name):
    save(tmp_path / name / "a/0.png")
    monkeypatch.chdir(tmp_path)
    for size in (None, 8):
        assert isinstance(open_image_set(name, size), FolderImages)


def test_a_scheme_is_one_where_no_such_path_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_image_set("openmoji:heldout", 16), SourceImages)
    with pytest.raises(InputError, match="12:30/flat does not exist"):
        open_image_set("12:30/flat")


def test_a_class_folder_whose_name_is_no_text_has_a_name_that_can_be_written(tmp_path):
    folder = os.fsencode(tmp_path) + b"/set/caf\xe9"
    os.makedirs(folder)
    Image.new("RGB", (16, 16)).save(os.fsdecode(folder + b"/0.png"))
    images = open_image_set(tmp_path / "set")
    assert images.classes == ["caf\\xe9"] and images[0].shape == (16, 16, 3)
