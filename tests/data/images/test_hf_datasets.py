import io
import itertools
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.sources import BrokenImageError, ImageSource, build_image_source
from tcae_diffusers.data.images.streaming_dataset import StreamingTrainingDataset
from tcae_diffusers.data.images.training_dataset import TooManyBrokenImagesError, collate_training_views


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


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Four shards of five images; the red channel tells which."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(4):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for place in range(5):
                number = shard * 5 + place
                for suffix, content in (("png", _png((number * 10, 7, 7))), ("cls", str(number % 3).encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


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


def test_tar_shards_are_an_image_source(tars, tmp_path):
    source = build_image_source(f"webdataset:{tars}/part-*.tar", cache_dir=tmp_path)
    assert len(source) == 20 and source.classes == ["0", "1", "2"]
    for index in (0, 7, 19):
        image, label = source[index]
        assert image.getpixel((0, 0))[0] == index * 10 and label == index % 3


def _source(dataset, **columns):
    from tcae_diffusers.data.images.hf_datasets import HuggingFaceDatasetSource

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
        (_dataset(b=names).rename_column("label", "a"), {}, r"several label columns \(a, b\); name one with"),
        (_dataset().select([]), {}, "set has no rows"),
        (_dataset(hidden=(names[0], [0, 1, -1, 0, 0, 0])), {"label_column": "hidden"}, "row 2 of set has no label"),
    ]
    for dataset, columns, message in cases:
        with pytest.raises(ValueError, match=message):
            _source(dataset, **columns)
    with pytest.raises(ValueError, match="unknown key colour"):
        build_image_source("datasets:name?colour=red")


def test_broken_rows_are_named_and_every_mode_becomes_rgb():
    images = [{"bytes": _png(200, "L"), "path": "x/grey.png"}, {"bytes": b"no", "path": "x/bad.png"}, None]
    source = _source(datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image())))
    assert source[0][0].getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(BrokenImageError, match=r"set\[1\] \(x/bad.png\)"):
        source[1]
    with pytest.raises(BrokenImageError, match=r"set\[2\].*holds no image"):
        source.__getitem__(2)


TRANSFORM = MultiCropTransform(6, 6, horizontal_flip=False)


def _stream(tars, batches, workers=0, files="part-*.tar", **arguments):
    dataset = datasets.load_dataset(
        "webdataset", data_files={"train": f"{tars}/{files}"}, split="train", streaming=True
    )
    settings = {"seed": 1, "rank": 0, "world_size": 1, "batch_size": 2, "shuffle_buffer": 4, **arguments}
    stream = StreamingTrainingDataset(dataset, TRANSFORM, **settings)
    loader = iter(DataLoader(stream, settings["batch_size"], num_workers=workers, collate_fn=collate_training_views))
    return [next(loader) for _ in range(batches)]


def _numbers(batches):
    return [(batch["pixel_values"][:, 0, 0, 0] // 10).tolist() for batch in batches]


def _flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_a_stream_is_split_by_node_shuffled_anew_each_epoch_and_resumes(tars):
    ranks = [_numbers(_stream(tars, 10, rank=rank, world_size=2)) for rank in range(2)]
    epochs = [_flat(rank[start : start + 5]) for start in (0, 5) for rank in ranks]
    assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == list(range(20))
    assert epochs[0] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert _numbers(_stream(tars, 3, rank=1, world_size=2, start_batch=7)) == ranks[1][7:]


def test_views_of_a_stream_do_not_depend_on_workers_and_a_resume_loses_nothing(tars):
    def views(batches):
        return {
            int(batch["pixel_values"][i, 0, 0, 0]): batch["global_crops"][i] for batch in batches for i in range(2)
        }

    alone, shared = _stream(tars, 10), _stream(tars, 10, workers=2)
    assert views(alone).keys() == views(shared).keys() and len(views(alone)) == 20
    assert all(torch.equal(view, views(shared)[number]) for number, view in views(alone).items())
    assert torch.equal(torch.cat([b["labels"] for b in alone]), torch.tensor(_flat(_numbers(alone))) % 3)
    rest = _stream(tars, 6, workers=2, start_batch=4)
    assert sorted(map(tuple, _numbers(rest))) == sorted(map(tuple, _numbers(shared)[4:]))


def test_a_stream_passes_over_broken_images_up_to_the_bound(tars, tmp_path):
    for shard in range(2):
        (tmp_path / f"part-{shard}.tar").write_bytes((tars / f"part-{shard}.tar").read_bytes())
    with tarfile.open(tmp_path / "part-1.tar", "a") as tar:
        for suffix in ("png", "cls"):
            info = tarfile.TarInfo(f"bad.{suffix}")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
    numbers = _flat(_numbers(_stream(tmp_path, 5, max_broken_images=1)))
    assert len(numbers) == 10 and set(numbers) <= set(range(10)) and len(set(numbers)) >= 9
    with pytest.raises(TooManyBrokenImagesError, match=r"1 broken images, 0 allowed .*bad"):
        _stream(tmp_path, 6)


def test_more_workers_than_shards_is_an_error_and_not_silence(tars):
    with pytest.raises(ValueError, match="2 DataLoader workers for 1 shards"):
        _stream(tars, 1, workers=2, files="part-0.tar")


def test_decoded_arrays_need_no_pil_decoder_of_datasets():
    image = Image.fromarray(np.full((4, 4, 3), 9, np.uint8))
    dataset = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features(image=datasets.Image()))
    assert _source(dataset)[0][0].getpixel((1, 1)) == (9, 9, 9)
