"""Texts that name a data set: each is understood, or refused with a list of what there is."""

import os
import shutil

import datasets
import pytest
from accelerate import PartialState

from tcae_diffusers.data.images.dataset_specs import DatasetSpec, open_dataset, open_stream
from tcae_diffusers.data.images.sources import build_image_source
from tcae_diffusers.errors import InputError

from ...tar_files import encoded, write_tar

CONFIGURATIONS = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train/**}
  - {split: test, path: small/test/**}
- config_name: large
  data_files:
  - {split: train, path: large/train/**}
---
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A data set of two configurations: 2 and 1 images in the splits of the small one, 4 in the large one."""
    folder = tmp_path_factory.mktemp("configured")
    (folder / "README.md").write_text(CONFIGURATIONS)
    for place, count in (("small/train", 2), ("small/test", 1), ("large/train", 4)):
        (folder / place / "cat").mkdir(parents=True)
        for number in range(count):
            (folder / place / "cat" / f"{number}.png").write_bytes(encoded(number))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    rows = [{"bytes": encoded(number), "path": None} for number in range(6)]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    dataset.save_to_disk(folder / "single")
    (folder / "empty").mkdir()
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(folder / "splits")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    # The parts of a stream have no cache folder of their own.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _counts(text):
    spec = DatasetSpec.parse(text)
    dataset, files = open_stream(spec)
    assert files
    return len(open_dataset(spec)), len(list(dataset))


def test_configurations_and_splits_are_chosen_by_name(configured, saved):
    assert _counts(f"{configured}?name=small") == (2, 2)
    assert _counts(f"{configured}:test?name=small") == (1, 1)
    assert _counts(f"{configured}?image=image&name=large&label=label") == (4, 4)
    assert _counts(f"{saved}/single") == _counts(f"{saved}/single?image=image") == (6, 6)
    assert _counts(f"{saved}/splits") == _counts(f"{saved}/splits:train") == (6, 6)
    assert _counts(f"{saved}/splits:test") == (1, 1)
    assert len(open_dataset(DatasetSpec.parse(f"{configured}:train[:50%]?name=large"))) == 2
    assert len(open_dataset(DatasetSpec.parse(f"{configured}:train+test?name=small"))) == 3


@pytest.mark.parametrize(
    ("split", "rows"), [("train[:2]", [0, 1]), ("train[4:]+test", [4, 5, 0]), ("train[-50%:]", [3, 4, 5])]
)
def test_a_saved_dataset_is_sliced_as_any_other(saved, split, rows):
    source, whole = (build_image_source(f"datasets:{saved}/splits:{part}") for part in (split, "all"))
    assert [source.image(i).tobytes() for i in range(len(source))] == [whole.image(row).tobytes() for row in rows]
    assert len({build_image_source(f"datasets:{saved}/splits:train{part}").fingerprint for part in ("", "[:2]")}) == 2


@pytest.mark.parametrize("split", ["train[6:]", "train[9:]", "test[1:]+train[6:]"])
def test_a_slice_behind_the_last_row_has_no_rows(saved, split):
    with pytest.raises(InputError, match=r"splits:.* has no rows"):
        open_dataset(DatasetSpec.parse(f"{saved}/splits:{split}"))
    assert len(open_dataset(DatasetSpec.parse(f"{saved}/splits:train[6:]+test"))) == 1


def test_a_slice_that_is_none_is_refused(saved):
    with pytest.raises(InputError, match=r"splits:train\[:x\] cannot be read: Unrecognized instruction format"):
        open_dataset(DatasetSpec.parse(f"{saved}/splits:train[:x]"))
    with pytest.raises(InputError, match=r"supports complete splits only, not 'train\[:1\]'; expected train, test"):
        open_stream(DatasetSpec.parse(f"{saved}/splits:train[:1]"))


@pytest.mark.parametrize("use", [open_dataset, open_stream])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{configured}", r"configured\d* has several configurations \(small, large\); choose one with \?name=CONFIG"),
        ("{configured}?name=huge", "has no configuration 'huge'; expected name= one of small, large"),
        ("{configured}:val?name=small", "has no split 'val'; expected one of train, test"),
        ("{saved}/splits:val", "has no split 'val'; expected one of train, test"),
        ("{saved}/single:val", "is a single dataset without splits; omit :val"),
        ("{saved}/single?name=small", "which has no configurations; omit name="),
        ("{saved}/empty", "empty cannot be read: "),
        ("{saved}/nothing", "nothing.*cannot be (read|reached)"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(configured, saved, use, text, message):
    text = text.format(configured=configured, saved=saved)
    with pytest.raises(InputError, match=message) as caught:
        use(DatasetSpec.parse(text))
    assert "\n" not in str(caught.value) and "load_dataset" not in str(caught.value)


def test_a_linked_folder_that_datasets_would_pass_over_is_refused(tmp_path):
    for name in ("set/cat", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(encoded(1))
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/dog")
    assert len(build_image_source(tmp_path / "set")) == 2
    with pytest.raises(InputError, match="set/dog is a link to a folder"):
        build_image_source(f"datasets:{tmp_path}/set")
    with pytest.raises(InputError, match="set/dog is a link to a folder"):
        open_stream(DatasetSpec.parse(f"{tmp_path}/set"))


def _class_folders(folder, *classes):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(2):
            (folder / name / f"{place}.png").write_bytes(encoded(number))
    return folder


@pytest.mark.parametrize("use", [open_dataset, open_stream])
@pytest.mark.parametrize(
    ("split", "message"), [("val", "has no split 'val'; expected one of train"), ("train[:1]", "complete splits only")]
)
def test_a_split_that_class_folders_lack_is_named(tmp_path, use, split, message):
    spec = DatasetSpec.parse(f"{_class_folders(tmp_path, 'cat', 'dog')}:{split}")
    if (use, split) == (open_dataset, "train[:1]"):
        assert len(use(spec)) == 1
        return
    with pytest.raises(InputError, match=message):
        use(spec)


@pytest.mark.parametrize("use", [open_dataset, open_stream])
@pytest.mark.parametrize("folders", [("a", "b", "b/sub"), ("a/x", "a/y", "b/x"), ("a/x", "b/y"), (".", "a")])
def test_folders_of_which_datasets_makes_other_classes_are_refused(tmp_path, use, folders):
    folder = _class_folders(tmp_path / "set", *folders)
    with pytest.raises(InputError, match="is no class folder beside the others"):
        use(DatasetSpec.parse(str(folder)))
    above = _class_folders(tmp_path / "above", "a/x", "a/y")
    with pytest.raises(InputError, match=r"takes the folders in a for classes, and a for none; name .*/above/a, or"):
        use(DatasetSpec.parse(str(above)))
    assert len(list(use(DatasetSpec.parse(f"{above}/a")))) in (2, 4)
    shutil.make_archive(str(tmp_path / "zips" / "all"), "zip", above / "a")
    with pytest.raises(InputError, match=r"of archives such as all\.zip .* unpack them"):
        use(DatasetSpec.parse(str(tmp_path / "zips")))
    # Parts of a data set, each with the same classes, are what `datasets` is for.
    parts = _class_folders(tmp_path / "parts", "train/a", "train/b", "data/test-01/a", "data/test-01/b")
    assert _counts(f"{parts}:test") == (4, 4)


def test_images_that_metadata_does_not_list_are_counted(tmp_path, caplog):
    folder = _class_folders(tmp_path / "set", "a", "b/c")
    (folder / "metadata.csv").write_text("file_name,label\na/0.png,x\nb/c/1.png,y\n")
    PartialState()
    with caplog.at_level("WARNING"):
        assert len(open_dataset(DatasetSpec.parse(str(folder)))) == 2
    assert "metadata lists 2 of the 4 images of train; the others are not used" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [("webdataset:{}", "is a folder; name its tar files, as in"), ("webdataset:{}/s-{{0..2}}.tar", "use a glob")],
)
def test_tar_files_that_are_not_found_so_say_how(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        open_dataset(DatasetSpec.parse(text.format(tmp_path)))


@pytest.mark.parametrize("use", [open_dataset, open_stream])
@pytest.mark.parametrize("name", ["train", "test", "training"])
def test_classes_beside_one_that_datasets_takes_for_a_split_are_not_left_out(tmp_path, use, name):
    folder = _class_folders(tmp_path, "bus", "car", name)
    assert len(build_image_source(folder)) == 6
    with pytest.raises(InputError, match=r"leaves out 4 images such as bus/0\.png; name the folder without datasets:"):
        use(DatasetSpec.parse(f"{folder}:{'test' if name == 'test' else 'train'}"))
    (folder / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: bus/*}]\n---\n")
    assert len(list(use(DatasetSpec.parse(str(folder))))) == 2


def _write_at_one_time(file, content):
    file.write_bytes(content)
    os.utime(file, (1_700_000_000, 1_700_000_000))


def test_files_that_take_the_place_of_others_with_their_times_are_read_anew(tmp_path):
    found = []
    for number in (1, 2):
        write_tar(tmp_path / "a.tar", {"x.png": encoded(number), "x.cls": str(number).encode()})
        rows = {"image": [{"bytes": encoded(number), "path": None}], "label": [str(number)]}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b.parquet")
        for name in ("a.tar", "b.parquet"):
            folder = tmp_path / name.partition(".")[0]
            folder.mkdir(exist_ok=True)
            _write_at_one_time(folder / name, (tmp_path / name).read_bytes())
        sources = [build_image_source(text) for text in (f"webdataset:{tmp_path}/a/a.tar", f"datasets:{tmp_path}/b")]
        assert [source.image(0).getpixel((0, 0))[0] for source in sources] == [10 * number] * 2
        assert [source.classes for source in sources] == [[str(number)]] * 2
        found.append([source.fingerprint for source in sources])
    assert not {*found[0]} & {*found[1]}


def test_a_stream_has_whole_splits_only(configured):
    with pytest.raises(InputError, match=r"supports complete splits only, not 'train\[:1\]'; expected train, test"):
        open_stream(DatasetSpec.parse(f"{configured}:train[:1]?name=small"))
    with pytest.raises(InputError, match=r"has no split 'train' \(the default; choose another.*expected one of only"):
        _open_only_split(configured)


def _open_only_split(folder):
    text = CONFIGURATIONS.replace("split: train", "split: only").replace("split: test", "split: only2")
    (folder / "README.md").write_text(text)
    try:
        open_stream(DatasetSpec.parse(f"{folder}?name=large"))
    finally:
        (folder / "README.md").write_text(CONFIGURATIONS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user/name", {"location": "user/name"}),
        ("user/name:train[:10%]", {"location": "user/name", "split": "train[:10%]"}),
        ("n?label=", {"location": "n", "label_column": ""}),
        ("n:s?name=c&image=i&label=l", {"split": "s", "config": "c", "image_column": "i", "label_column": "l"}),
        ("webdataset:a-?.tar", {"location": "a-?.tar", "is_tar": True}),
        ("webdataset:a-?.tar?image=jpg", {"location": "a-?.tar", "is_tar": True, "image_column": "jpg"}),
        ("webdataset:https://host/a.tar", {"location": "https://host/a.tar", "split": None}),
    ],
)
def test_the_parts_of_a_text(text, expected):
    spec = DatasetSpec.parse(text)
    assert {key: getattr(spec, key) for key in expected} == expected and spec.text == text


def test_a_file_is_no_data_set(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    for opened in (open_dataset, open_stream):
        with pytest.raises(InputError, match=r"train.parquet is a file; name the folder that it is in"):
            opened(DatasetSpec.parse(f"{tmp_path}/train.parquet"))


def test_a_path_may_hold_colons(tmp_path):
    (tmp_path / "10:30").mkdir()
    for split in (None, "test"):
        spec = DatasetSpec.parse(f"{tmp_path}/10:30" + (f":{split}" if split else ""))
        assert (spec.location, spec.split) == (f"{tmp_path}/10:30", split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' does not specify a dataset"),
        (":train", "':train' does not specify a dataset"),
        ("n?colour=red", "unknown key colour in 'n.colour=red'; expected name=, image=, label="),
        ("n?image=a&image=b", "gives image= more than once"),
        ("n?name=", "has an empty name="),
        ("webdataset:", "should be webdataset:FILES"),
        ("webdataset:a.tar?name=c", "should be webdataset:FILES"),
    ],
)
def test_texts_that_say_nothing_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        DatasetSpec.parse(text)


@pytest.mark.parametrize(("text", "instead"), [("n:s", "datasets:n:s"), ("webdataset:a.tar", "webdataset:a.tar")])
def test_a_stream_is_refused_where_images_are_read_at_an_index(text, instead):
    with pytest.raises(InputError, match=f"stream:{text} is a stream, which only .*use {instead}$"):
        build_image_source(f"stream:{text}")
