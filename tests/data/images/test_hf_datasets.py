import io

import datasets
import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.images import content_fingerprint
from tcae_diffusers.data.images.hf_datasets import HuggingFaceDatasetSource
from tcae_diffusers.data.images.sources import BrokenImageError, ImageSource, build_image_source
from tcae_diffusers.errors import InputError


def _png(color, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (6, 6), color).save(buffer, "PNG")
    return buffer.getvalue()


def _dataset(**columns):
    images = [{"bytes": _png((i * 40, 0, 0)), "path": None} for i in range(6)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    content = {"image": images, "label": [0, 1, 1, 0, 0, 1]}
    for name, (feature, values) in columns.items():
        features[name], content[name] = feature, values
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def test_a_dataset_saved_to_disk_is_an_image_source(tmp_path):
    datasets.DatasetDict({"train": _dataset(), "validation": _dataset().select([4, 2])}).save_to_disk(tmp_path / "set")
    source = build_image_source(f"datasets:{tmp_path / 'set'}")
    assert isinstance(source, ImageSource) and len(source) == 6 and source.classes == ["cat", "dog"]
    assert [source[i][1] for i in range(6)] == [0, 1, 1, 0, 0, 1]
    assert source[3][0].getpixel((0, 0)) == (120, 0, 0) and source[3][0].mode == "RGB"
    held_out = build_image_source(f"datasets:{tmp_path / 'set'}:validation")
    assert [held_out[i][0].getpixel((0, 0))[0] for i in range(2)] == [160, 80]
    _dataset().save_to_disk(tmp_path / "single")
    single = build_image_source(f"datasets:{tmp_path / 'single'}?label=label&image=image")
    assert single.fingerprint == source.fingerprint != held_out.fingerprint
    with pytest.raises(ValueError, match="has no split 'test'; expected one of train, validation"):
        build_image_source(f"datasets:{tmp_path / 'set'}:test")


def test_an_image_folder_opens_through_datasets_too(tmp_path):
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").write_bytes(_png((index, 0, 0)))
    source = build_image_source(f"datasets:{tmp_path / 'images'}", cache_dir=tmp_path / "cache")
    assert source.classes == ["cat", "dog"] and source[1][0].getpixel((0, 0)) == (1, 0, 0) and source[1][1] == 1
    assert len(source.fingerprint) == 64


def _source(dataset, **columns):
    return HuggingFaceDatasetSource(dataset, name="set", **columns)


def test_label_columns_are_found_by_type_then_by_name():
    names = (datasets.ClassLabel(names=["a", "b", "c"]), [0, 1, 2, 2, 1, 0])
    words = (datasets.Value("string"), ["x", "y", "x", "z", "x", "x"])
    plain = _dataset().remove_columns("label")
    assert _source(_dataset(fine_label=names).rename_column("label", "coarse")).label_column == "fine_label"
    assert _source(_dataset(fine_label=names)).label_column == "label"
    by_word = _source(_dataset(word=words), label_column="word")
    assert by_word.classes == ["x", "y", "z"] and by_word.labels.tolist() == [0, 1, 0, 2, 0, 0]
    assert _source(plain).classes == ["image"] and _source(plain)[2][1] == 0
    assert _source(plain.add_column("cls", [7, 7, 9, 9, 7, 7])).classes == ["7", "9"]


def test_columns_that_cannot_be_told_are_listed():
    names = (datasets.ClassLabel(names=["a", "b"]), [0] * 6)
    image = (datasets.Image(), [None] * 6)
    cases = [
        (_dataset(other=image), {}, r"several image columns \(image, other\); name one with \?image=COLUMN"),
        (_dataset().remove_columns("image"), {}, "no image column among label"),
        (_dataset(), {"image_column": "img"}, "no column 'img'; expected one of image, label"),
        (_dataset(), {"label_column": "kind"}, "no column 'kind'; expected one of image, label"),
        (_dataset().select([]), {}, "set has no rows"),
        (_dataset(), {"image_column": "label"}, "column 'label' of set holds ClassLabel.*expected images"),
    ]
    for dataset, columns, message in cases:
        with pytest.raises(ValueError, match=message):
            _source(dataset, **columns)
    with pytest.raises(ValueError, match=r"several label columns \(a, b\); name one with"):
        _ = _source(_dataset(b=names).rename_column("label", "a")).labels
    # A column called label, and one that is of classes by its type: neither is the obvious one.
    by_type = _dataset(split=names, word=(datasets.Value("string"), list("xyxyxy"))).remove_columns("label")
    with pytest.raises(ValueError, match=r"several label columns \(split, label\); name one with"):
        _ = _source(by_type.rename_column("word", "label")).labels
    assert _source(by_type).classes == ["a", "b"]
    with pytest.raises(ValueError, match="row 2 of set has no label"):
        _ = _source(_dataset(hidden=(names[0], [0, 1, -1, 0, 0, 0])), label_column="hidden").labels
    with pytest.raises(ValueError, match="unknown key colour"):
        build_image_source("datasets:name?colour=red")


def _image_column(rows):
    return datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))


def test_broken_rows_are_named_and_every_mode_becomes_rgb(tmp_path):
    gone = str(tmp_path / "gone.png")
    rows = [
        {"bytes": _png(200, "L"), "path": "x/grey.png"},
        {"bytes": b"no", "path": "x/bad.png"},
        None,
        {"path": gone},
    ]
    source = _source(_image_column(rows))
    assert source[0][0].getpixel((0, 0)) == (200, 200, 200)
    for row, message in ((1, r"set\[1\] \(x/bad.png\)"), (2, r"set\[2\].*holds no image"), (3, r"set\[3\].*gone.png")):
        with pytest.raises(BrokenImageError, match=message):
            source.image(row)
    assert len(source.fingerprint) == 64


def test_the_fingerprint_is_of_the_images_and_labels_alone(tmp_path):
    def fingerprint(contents, names="abc", labels=(0, 1, 1), in_files=False):
        rows = [{"bytes": content, "path": f"{name}.png"} for content, name in zip(contents, names, strict=True)]
        if in_files:
            for row in rows:
                row["path"] = str(tmp_path / row["path"])
                if row["bytes"] is not None:
                    (tmp_path / row["path"]).write_bytes(row["bytes"])
                row["bytes"] = None
        return _source(_image_column(rows).add_column("label", list(labels))).fingerprint

    # Of one size, as the encoded images of a data set may well be.
    red, green, blue = b"red...", b"green.", b"blue.."
    first = fingerprint([red, green, blue])
    assert fingerprint([red, green, blue], names="xyz") == first
    assert fingerprint([red, green, blue], in_files=True) == first
    others = [
        fingerprint([red, green, red]),
        fingerprint([green, red, blue]),
        fingerprint([red, green, None]),
        fingerprint([red, green, None], in_files=True, names="uvw"),
        fingerprint([red, green, blue], labels=(0, 1, 0)),
    ]
    assert len({first, *others}) == 5 and others[2] == others[3]


def test_images_behind_urls_are_told_apart_by_the_urls():
    def fingerprint(names):
        rows = [{"bytes": None, "path": f"https://images.example/{name}.png"} for name in names]
        return _source(_image_column(rows).add_column("label", [0, 1, 1])).fingerprint

    assert fingerprint("abc") == fingerprint("abc")
    assert len({fingerprint("abc"), fingerprint("abd"), fingerprint("bac")}) == 3


def test_images_in_arrow_are_hashed_once_while_their_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TCAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_fingerprint, "_SETTLED_NS", 0)
    hashed = []
    compute = HuggingFaceDatasetSource._content_of_images
    monkeypatch.setattr(
        HuggingFaceDatasetSource, "_content_of_images", lambda source: hashed.append(source) or compute(source)
    )

    def fingerprint(dataset=None):
        if dataset is not None:
            dataset.save_to_disk(tmp_path / "set")
        return build_image_source(f"datasets:{tmp_path}/set").fingerprint

    first = fingerprint(_dataset())
    assert fingerprint() == first and len(hashed) == 1
    half = datasets.load_from_disk(tmp_path / "set").select(range(3))
    assert _source(half).fingerprint != first and len(hashed) == 2
    assert fingerprint(_dataset().select([1, 0, 2, 3, 4, 5])) != first and len(hashed) == 3


def test_labels_that_cannot_be_used_are_refused_when_they_are_asked_for():
    kinds = datasets.Features(image=datasets.Image(), label=datasets.List(datasets.Value("int64")))
    images = [{"bytes": _png((i, 0, 0)), "path": None} for i in range(2)]
    source = _source(datasets.Dataset.from_dict({"image": images, "label": [[1, 2], [3]]}, features=kinds))
    assert source.image(1).getpixel((0, 0)) == (1, 0, 0) and len(source.fingerprint) == 64
    for ask in (lambda: source.classes, lambda: source.labels, lambda: source[0]):
        with pytest.raises(InputError, match="row 0 of set names no single class: column 'label'"):
            ask()
    unlabelled = _source(source._dataset, label_column="")
    assert unlabelled.classes == ["image"] and unlabelled[1][1] == 0


def test_decoded_arrays_need_no_pil_decoder_of_datasets():
    image = Image.fromarray(np.full((4, 4, 3), 9, np.uint8))
    dataset = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features(image=datasets.Image()))
    assert _source(dataset)[0][0].getpixel((1, 1)) == (9, 9, 9)
