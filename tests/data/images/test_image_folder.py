import os
import pickle

import numpy as np
import pytest
from diffusers.utils import logging
from PIL import Image

from tcae_diffusers.data.images.decoding import BrokenImageError, load_rgb_image
from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.data.images.sources import ImageSource, build_image_source
from tcae_diffusers.errors import InputError


def _folder(root, files):
    for name, color in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), color).save(root / name)
    return root


@pytest.fixture
def two_classes(tmp_path):
    files = {"cat/b.png": "red", "cat/a.png": "blue", "dog/deep/z.JPG": "green", "dog/é.webp": "white"}
    return _folder(tmp_path / "images", files)


def test_images_and_classes_come_sorted(two_classes):
    source = build_image_source(two_classes)
    assert isinstance(source, ImageSource)
    (two_classes / "cat/notes.txt").write_text("not an image")
    (two_classes / ".cache").mkdir()
    assert ImageFolderSource(two_classes).fingerprint == source.fingerprint
    assert source.classes == ["cat", "dog"]
    assert [source.name(i) for i in range(len(source))] == ["cat/a.png", "cat/b.png", "dog/deep/z.JPG", "dog/é.webp"]
    assert [source[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert source[0][0].getpixel((0, 0)) == (0, 0, 255) and source.name(-1) == "dog/é.webp"
    assert pickle.loads(pickle.dumps(source)).name(3) == "dog/é.webp"


def test_fingerprint_sees_added_renamed_and_altered_files(two_classes):
    seen = {ImageFolderSource(two_classes).fingerprint}
    (two_classes / "cat/a.png").rename(two_classes / "cat/a2.png")
    seen.add(ImageFolderSource(two_classes).fingerprint)
    _folder(two_classes, {"cat/c.png": "red"})
    seen.add(ImageFolderSource(two_classes).fingerprint)
    content = bytearray((two_classes / "cat/c.png").read_bytes())
    content[-1] ^= 1
    (two_classes / "cat/c.png").write_bytes(content)
    seen.add(ImageFolderSource(two_classes).fingerprint)
    assert len(seen) == 4


def test_linked_folders_and_files_are_followed_but_not_in_circles(two_classes, tmp_path):
    elsewhere = _folder(tmp_path / "elsewhere", {"owl/a.png": "red", "owl/deep/b.png": "blue"})
    os.symlink(elsewhere / "owl", two_classes / "owl")
    os.symlink(elsewhere / "owl/a.png", two_classes / "dog/linked.png")
    os.symlink(two_classes, two_classes / "dog/everything")
    os.symlink("..", elsewhere / "owl/deep/back")
    source = ImageFolderSource(two_classes)
    assert source.classes == ["cat", "dog", "owl"]
    names = [source.name(index) for index in range(len(source))]
    assert [name for name in names if name.startswith("owl")] == ["owl/a.png", "owl/deep/b.png"]
    assert "dog/linked.png" in names
    assert not any("everything" in name or "back" in name for name in names)


def _break(root, case):
    if case == "missing":
        return root / "nowhere"
    if case == "a file":
        (root / "file").write_text("")
        return root / "file"
    if case == "no class":
        (root / "flat").mkdir()
        (root / "flat/notes.txt").write_text("")
        return root / "flat"
    if case == "mixed":
        return _folder(root / "mixed", {"cat/a.png": "red", "b.png": "red"})
    _folder(root / "set", {"cat/a.png": "red"})
    (root / "set/empty_class").mkdir()
    return root / "set"


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("missing", FileNotFoundError, "nowhere does not exist; expected a folder of root/class/image.png"),
        ("a file", FileNotFoundError, "file is a file; expected"),
        ("no class", ValueError, "flat contains no images"),
        ("mixed", ValueError, r"images both inside and outside class folders \(cat/a.png and b.png\)"),
        ("empty class", ValueError, "empty_class contains no images"),
    ],
)
def test_folders_that_cannot_serve_are_named(tmp_path, case, error, message):
    with pytest.raises(error, match=message):
        build_image_source(_break(tmp_path, case))


@pytest.mark.parametrize("ending", ["jfif", "jp2", "tga", "avif", "PNG"])
def test_images_of_other_endings_count(tmp_path, ending):
    _folder(tmp_path / "set", {"cat/a.png": "red", f"cat/b.{ending}": "red"})
    source = build_image_source(tmp_path / "set")
    assert len(source) == 2 and source.image(1).getpixel((0, 0))[0] > 250


def test_a_class_that_is_a_link_to_nothing_or_hidden_is_named(two_classes, caplog, monkeypatch):
    logging.enable_propagation()
    try:
        _folder(two_classes / ".NET", {"a.png": "red"})
        assert ".NET" not in build_image_source(two_classes).classes
    finally:
        logging.disable_propagation()
    assert ".NET is hidden, so its images are left out" in caplog.text
    # What nobody reads may be closed to us, such as the wastebasket of a disk.
    listdir = os.listdir

    def closed(folder="."):
        if os.path.basename(folder) == ".NET":
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", closed)
    assert ".NET" not in build_image_source(two_classes).classes
    os.symlink(two_classes / "gone", two_classes / "zebra")
    with pytest.raises(InputError, match="zebra is a link to something that does not exist"):
        build_image_source(two_classes)


def test_images_that_cannot_be_read_are_left_out_with_a_word(two_classes, caplog):
    (two_classes / "cat/photo.HEIC").write_bytes(b"")
    (two_classes / "dog/deep/drawing.svg").write_text("")
    logging.enable_propagation()
    try:
        assert len(build_image_source(two_classes)) == 4
    finally:
        logging.disable_propagation()
    assert "2 files of" in caplog.text and "left out because their format cannot be read, such as cat/photo.HEIC" in (
        caplog.text
    )


@pytest.mark.parametrize("parts", [["train", "val"], ["Test"], ["train", "validation", "test"]])
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    root = _folder(tmp_path / "set", {f"{part}/{name}/a.png": "red" for part in parts for name in ("cat", "dog")})
    for use in (build_image_source, open_image_set):
        with pytest.raises(InputError, match=rf"name one part, such as .*/{sorted(parts)[0]}$"):
            use(root)
        assert use(root / parts[0]).classes == ["cat", "dog"]
    # A class may be called so.
    _folder(root, {"bus/deep/a.png": "red"})
    assert build_image_source(root).classes == sorted([*parts, "bus"])
    # Parts without classes of their own, as a tokenizer trains on.
    flat = _folder(tmp_path / "flat", {"train/a.png": "red", "test/deep/a.png": "red"})
    with pytest.raises(InputError, match=r"name one part, such as .*/test$"):
        build_image_source(flat)
    assert build_image_source(flat / "train").classes == ["image"]


def test_an_empty_name_is_not_the_working_directory(two_classes, monkeypatch):
    monkeypatch.chdir(two_classes)
    for use in (build_image_source, open_image_set):
        with pytest.raises(InputError, match="the name of the images is empty"):
            use("")
        assert len(use(".")) == 4


def test_a_folder_without_class_folders_is_one_class(tmp_path):
    source = build_image_source(_folder(tmp_path / "flat", {"b.png": "red", "a.png": "blue"}))
    assert (source.classes, source.labels.tolist(), source.name(0)) == (["image"], [0, 0], "a.png")
    assert source.image(1).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("case", ["empty", "text", "truncated", "dangling link", "float", "huge"])
def test_a_broken_image_is_named_and_others_still_load(two_classes, case, monkeypatch):
    broken = two_classes / "cat/c.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if case == "empty":
        broken.write_bytes(b"")
    elif case == "text":
        broken.write_text("<html>404</html>")
    elif case == "truncated":
        Image.fromarray(noise).save(broken)
        broken.write_bytes(broken.read_bytes()[:4000])
    elif case == "dangling link":
        os.symlink(two_classes / "gone.png", broken)
    elif case == "float":
        broken = broken.with_suffix(".tif")
        Image.fromarray(np.full((4, 4), 1e9, np.float32)).save(broken)
    else:
        Image.fromarray(noise).save(broken)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source = ImageFolderSource(two_classes)
    with pytest.raises(BrokenImageError, match=r"cannot read image .*cat/c.*replace or remove") as caught:
        source[2]
    assert caught.value.path == str(broken) and caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, str(copy)) == (caught.value.path, str(caught.value))
    assert source[0][0].mode == "RGB"


def _gradient16():
    return (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(_gradient16()).save(tmp_path / "a.png")
    pixels = np.asarray(load_rgb_image(tmp_path / "a.png"))
    assert (pixels[..., 0] == np.arange(256).reshape(16, 16)).all() and (pixels[..., 0] == pixels[..., 2]).all()
    Image.fromarray(_gradient16().astype(np.int32)).save(tmp_path / "b.tif")
    assert (np.asarray(load_rgb_image(tmp_path / "b.tif")) == pixels).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composed_on_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255)])
    image.convert(mode).save(tmp_path / "a.png")
    rgb = load_rgb_image(tmp_path / "a.png")
    assert [rgb.getpixel((0, 0)), rgb.getpixel((1, 0))] == [(255, 255, 255), (0, 0, 0)]


def test_a_transparent_colour_of_an_rgb_png_becomes_white(tmp_path):
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "a.png", transparency=(10, 20, 30))
    assert load_rgb_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_value_of_a_16_bit_grey_png_becomes_white(tmp_path):
    Image.fromarray(np.array([[30_000, 257]], np.uint16)).save(tmp_path / "a.png", transparency=30_000)
    rgb = load_rgb_image(tmp_path / "a.png")
    assert [rgb.getpixel((0, 0)), rgb.getpixel((1, 0))] == [(255, 255, 255), (1, 1, 1)]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 16), "red")
    image.paste("blue", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to view
    image.save(tmp_path / "a.png", exif=exif)
    upright = load_rgb_image(tmp_path / "a.png")
    assert upright.size == (16, 8)
    assert upright.getpixel((0, 0)) == (255, 0, 0) and upright.getpixel((15, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("mode", "color"), [("L", 128), ("1", 1), ("CMYK", (0, 255, 255, 0)), ("YCbCr", (76, 85, 255))]
)
def test_other_modes_become_rgb(tmp_path, mode, color):
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new(mode, (8, 8), color).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    expected = {"L": (128,) * 3, "1": (255,) * 3, "CMYK": (255, 0, 0), "YCbCr": (255, 0, 0)}[mode]
    image = load_rgb_image(path)
    assert image.mode == "RGB"
    assert np.abs(np.subtract(image.getpixel((4, 4)), expected)).max() <= 2
