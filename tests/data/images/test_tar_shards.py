"""Tar shards as map-style sources and as streams: every image, whatever its format, with its own label."""

import os

import datasets
import pytest

from tcae_diffusers.data.images.dataset_specs import DatasetSpec, open_stream
from tcae_diffusers.data.images.sources import build_image_source
from tcae_diffusers.errors import InputError

from ...tar_files import encoded, write_shards, write_tar


def _red(image):
    return round(image.getpixel((0, 0))[0] / 10)


def _open(folder, options=""):
    return build_image_source(
        f"webdataset:{folder}/*.tar{options}", cache_dir=folder.with_name(f"{folder.name}-cache")
    )


def _streamed(folder, scheme="webdataset:", files="/*.tar"):
    dataset, _ = open_stream(DatasetSpec.parse(f"{scheme}{folder}{files}"))
    return list(dataset.cast_column("image", datasets.Image(decode=False)))


def test_tar_shards_are_an_image_source(tmp_path):
    source = _open(write_shards(tmp_path))
    assert len(source) == 20 and source.classes == ["0", "1", "2"]
    for index in (0, 7, 19):
        image, label = source[index]
        assert _red(image) == index and label == index % 3


FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "JPEG": "JPEG"}


def _mixed(folder):
    """A tar for each of three formats, and one with all of them."""
    for number, suffix in enumerate(("jpg", "png", "webp")):
        write_tar(folder / f"{number}.tar", {f"{number}.{suffix}": encoded(number, FORMATS[suffix])})
    last = {f"{number}.{suffix}": encoded(number, FORMATS[suffix]) for number, suffix in enumerate(FORMATS, 3)}
    write_tar(folder / "3.tar", last)
    return folder


def test_no_format_is_lost_where_shards_have_several(tmp_path):
    source = _open(_mixed(tmp_path))
    assert [_red(source.image(index)) for index in range(len(source))] == list(range(7))
    assert [row["image"]["path"] for row in _streamed(tmp_path)][-2:] == ["5.webp", "6.JPEG"]
    # The same of a folder that `datasets` itself takes for tar shards.
    folder = build_image_source(f"datasets:{tmp_path}", cache_dir=tmp_path.with_name("other-cache"))
    assert len(folder) == 7 and folder.fingerprint == source.fingerprint
    assert len(_streamed(tmp_path, scheme="", files="")) == 7


def test_the_plain_image_of_several_is_taken_or_the_one_that_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.jpg": encoded(1, "JPEG"), "x.mask.png": encoded(2), "x.cls": b"0"})
    assert _red(_open(tmp_path).image(0)) == 1
    assert _red(_open(tmp_path, "?image=mask.png").image(0)) == 2
    write_tar(tmp_path / "a.tar", {"x.photo.jpg": encoded(3, "JPEG"), "x.cls": b"0"})
    assert _red(_open(tmp_path).image(0)) == 3
    write_tar(tmp_path / "a.tar", {"x.jpg": encoded(1, "JPEG"), "x.png": encoded(2)})
    with pytest.raises(
        InputError, match=r"sample x of .*a.tar has several images \(jpg, png\); name one with \?image=jpg"
    ):
        _open(tmp_path)
    assert _red(_open(tmp_path, "?image=png").image(0)) == 2
    with pytest.raises(InputError, match="no column 'photo'; expected one of jpg, png"):
        _open(tmp_path, "?image=photo")
    with pytest.raises(InputError, match="no column 'kind'; expected one of jpg, png"):
        _open(tmp_path, "?label=kind")


def test_a_sample_without_an_image_or_a_label_is_named(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {"README.md": b"", "0.png": encoded(0), "0.cls": b"4", "1.cls": b"5", "2.png": encoded(2), ".hidden": b""},
    )
    source = _open(tmp_path)
    assert len(source) == 3 and len(source.fingerprint) == 64
    with pytest.raises(InputError, match=r"tar\[1\]: the row holds no image"):
        source.image(1)
    with pytest.raises(InputError, match=r"row 2 of .* has no label: column 'label' is None"):
        _ = source.classes
    assert _open(tmp_path, "?label=").classes == ["image"]


def test_shards_without_labels_have_one_class_and_texts_may_be_labels(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.txt": b"cat\n", "1.png": encoded(1), "1.txt": b"dog"})
    assert _open(tmp_path).classes == ["image"]
    assert _open(tmp_path, "?label=txt").classes == ["cat", "dog"]


def test_what_is_no_tar_shard_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"\*.tar does not specify a tar file; expected a path, a glob or a URL"):
        _open(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"hello" * 400)
    for use in (_open, _streamed):
        with pytest.raises(InputError, match=r"a\.tar is damaged or not a tar file"):
            use(tmp_path)
    whole = write_tar(tmp_path / "a.tar", {f"{number}.png": encoded(number, size=60) for number in range(24)})
    whole.write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"a\.tar is damaged or not a tar file"):
        _open(tmp_path)
    # Between two files, and within the header of the second.
    for end in (1024, 1200):
        write_tar(tmp_path / "b.tar", {"0.png": encoded(0), "1.png": encoded(1)})
        os.truncate(tmp_path / "b.tar", end)
        write_tar(whole, {"0.png": encoded(0)})
        for use in (_open, _streamed):
            with pytest.raises(InputError, match=r"b\.tar is damaged: it was cut off"):
                use(tmp_path)
    (tmp_path / "b.tar").unlink()
    write_tar(whole, {"0.png": encoded(0)})
    write_tar(whole, {"0.png": encoded(1)}, mode="a")
    with pytest.raises(InputError, match=r"a\.tar holds 0\.png twice"):
        _open(tmp_path)
