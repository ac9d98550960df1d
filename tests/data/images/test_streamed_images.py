"""Streams: every row once an epoch, in an order that a resume keeps without reading again what was used."""

import itertools
import json
import logging

import datasets
import pytest
import torch

from tcae_diffusers.data.images import streamed_images
from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.training_dataset import TooManyBrokenImagesError
from tcae_diffusers.errors import InputError

from ...tar_files import encoded, write_shards, write_tar

TRANSFORM = MultiCropTransform(6, 6, horizontal_flip=False)
ROWS, SHARDS = 20, 4


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """The same 20 images in 4 shards of each kind; the red channel tells which."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "tars").mkdir()
    write_shards(folder / "tars", SHARDS, ROWS // SHARDS)
    rows = [{"bytes": encoded(number), "path": None} for number in range(ROWS)]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    (folder / "parquet").mkdir()
    for shard in range(SHARDS):
        dataset.shard(SHARDS, shard).to_parquet(folder / "parquet" / f"{shard}.parquet")
    dataset.save_to_disk(folder / "saved")
    return {
        "tar": f"stream:webdataset:{folder}/tars/part-*.tar",
        "parquet": f"stream:{folder}/parquet",
        "saved": f"stream:{folder}/saved",
    }


def _images(spec, max_broken=0, shuffle_buffer=4):
    return StreamedImages(spec, TRANSFORM, seed=1, max_broken_images=max_broken, shuffle_buffer=shuffle_buffer)


def _take(images, count, rank=0, world_size=1, workers=0, batch_size=2):
    loader = images.loader(rank, world_size, batch_size, workers)
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def _numbers(batches):
    return [(batch["pixel_values"][:, 0, 0, 0] // 10).tolist() for batch in batches]


def _flat(lists):
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("kind", ["tar", "parquet", "saved"])
def test_an_epoch_has_every_row_once_over_all_ranks_and_the_next_another_order(specs, kind):
    ranks = [_numbers(_take(_images(specs[kind]), 10, rank, world_size=2)) for rank in range(2)]
    epochs = [_flat(rank[start : start + 5]) for start in (0, 5) for rank in ranks]
    assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == list(range(ROWS))
    assert epochs[0] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_shards_and_the_rows_of_each_block_have_another_order_in_each_epoch(specs):
    in_order = _flat(_numbers(_take(_images(specs["tar"], shuffle_buffer=1), 30)))
    shards = [[number // 5 for number in in_order[start : start + ROWS : 5]] for start in (0, ROWS, 2 * ROWS)]
    assert in_order[:5] == [*range(5 * shards[0][0], 5 * shards[0][0] + 5)] and len({*map(tuple, shards)}) == 3

    def blocks(spec):
        return [tuple(batch) for batch in _numbers(_take(_images(spec, shuffle_buffer=5), 8, batch_size=5))]

    places = {tuple(number % 5 for number in block) for block in blocks(specs["tar"])}
    assert len(places) > 4 and blocks(specs["tar"]) == blocks(specs["parquet"])


def test_ranks_share_the_rows_of_shards_that_are_too_few(specs):
    # 20 rows of 4 shards: each of 5 ranks has one row of every shard.
    ranks = [_flat(_numbers(_take(_images(specs["tar"]), 2, rank, world_size=5))) for rank in range(5)]
    assert sorted(_flat(ranks)) == list(range(ROWS))
    assert all(len({number // 5 for number in rank}) == SHARDS for rank in ranks)


@pytest.mark.parametrize("kind", ["tar", "parquet", "saved"])
@pytest.mark.parametrize(("rank", "world_size", "workers"), [(0, 1, 0), (1, 2, 0), (3, 5, 0), (0, 1, 2), (1, 2, 2)])
def test_a_resume_goes_on_with_the_next_batch(specs, kind, rank, world_size, workers):
    if kind != "tar" and workers and world_size > 1:
        pytest.skip("what differs between kinds is tested without workers")
    place = {"rank": rank, "world_size": world_size, "workers": workers}
    count = 16 if not workers else 9
    whole = _take(_images(specs[kind]), count, **place)
    for used in range(1, count, 1 if not workers else 3):
        first = _images(specs[kind])
        _take(first, used, **place)
        state = json.loads(json.dumps(first.state_dict()))
        others = [_started(specs[kind], other, world_size, workers) for other in range(world_size)]
        resumed = _images(specs[kind])
        resumed.load_state_dict([*others[:rank], state, *others[rank + 1 :]])
        rest = _take(resumed, count - used, **place)
        for ours, theirs in zip(rest, whole[used:], strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        last = _images(specs[kind])
        _take(last, count, **place)
        assert resumed.state_dict() == last.state_dict()


def _started(spec, rank, world_size, workers):
    images = _images(spec)
    images.loader(rank, world_size, 2, workers).close()
    return images.state_dict()


def test_batches_that_workers_prepared_but_nobody_took_come_again(specs):
    images = _images(specs["tar"])
    loader = images.loader(0, 1, 2, 2)
    next(loader)
    state = images.state_dict()
    next(loader)
    loader.close()
    assert [position["used"] for position in state["positions"]] == [2, 0] and state["next_reader"] == 1


def test_views_depend_on_the_content_and_not_on_who_reads_it(specs, tmp_path):
    def views(batches):
        return {
            int(batch["pixel_values"][i, 0, 0, 0]): batch["global_crops"][i] for batch in batches for i in range(2)
        }

    alone = views(_take(_images(specs["tar"]), 10))
    files = [{"image": str(tmp_path / f"{number}.png")} for number in range(ROWS)]
    for number, row in enumerate(files):
        (tmp_path / row["image"]).write_bytes(encoded(number))
    paths = datasets.Dataset.from_list(files).cast_column("image", datasets.Image())
    paths.save_to_disk(tmp_path / "paths")
    for other in (
        _take(_images(specs["tar"]), 10, workers=2),
        _take(_images(specs["parquet"]), 10),
        _take(_images(f"stream:{tmp_path}/paths"), 10),
    ):
        assert views(other).keys() == alone.keys() and len(alone) == ROWS
        assert all(torch.equal(view, views(other)[number]) for number, view in alone.items())


class _CountedRows:
    """Two shards of 500 rows each; `read` counts those that were asked for."""

    read = 0

    @classmethod
    def rows(cls, shards):
        content = encoded(3)
        for shard in shards:
            for row in range(500):
                cls.read += 1
                yield {"image": {"bytes": content, "path": f"{shard}-{row}.png"}}


def test_a_resume_reads_one_shard_up_to_the_block_and_the_block(monkeypatch):
    features = datasets.Features(image=datasets.Image(decode=False))
    dataset = datasets.IterableDataset.from_generator(
        _CountedRows.rows, features=features, gen_kwargs={"shards": [0, 1]}
    )
    monkeypatch.setattr(streamed_images, "open_stream", lambda spec: (dataset, []))
    # 5,310 rows are five epochs and 310 rows: the block of 50 rows from 300 on.
    images = _images("stream:counted", shuffle_buffer=50)
    _take(images, 531, batch_size=10)
    resumed = _images("stream:counted", shuffle_buffer=50)
    resumed.load_state_dict([images.state_dict()])
    _CountedRows.read = 0
    _take(resumed, 1, batch_size=10)
    assert _CountedRows.read == 350


def test_another_number_of_readers_goes_on_with_a_new_epoch_and_says_so(specs, caplog):
    images = _images(specs["tar"])
    _take(images, 13)
    resumed = _images(specs["tar"])
    resumed.load_state_dict([images.state_dict()])
    with caplog.at_level(logging.WARNING):
        batches = _take(resumed, 10, workers=2)
    assert "by 1 ranks with 1 readers each, but this run has 1 with 2" in caplog.text and "epoch 2" in caplog.text
    assert sorted(_flat(_numbers(batches))) == list(range(ROWS))
    assert {position["epoch"] for position in resumed.state_dict()["positions"]} == {2}


@pytest.fixture
def broken(tmp_path):
    """Ten images, and three rows that hold none."""
    write_shards(tmp_path, 2, 5)
    write_tar(tmp_path / "part-0.tar", {"bad.png": b"0", "bad.cls": b"0", "none.cls": b"0"}, mode="a")
    write_tar(tmp_path / "part-1.tar", {"worse.jpg": encoded(1, "JPEG")[:200]}, mode="a")
    return f"stream:webdataset:{tmp_path}/part-*.tar"


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_skipped_and_counted_once_up_to_the_bound(broken, workers, caplog):
    images = _images(broken, max_broken=3)
    with caplog.at_level(logging.WARNING):
        numbers = _flat(_numbers(_take(images, 15, workers=workers)))
    # Workers take the turn of batches, and each goes through epochs of its own.
    assert set(numbers) == set(range(10)) and (workers or sorted(numbers) == sorted([*range(10)] * 3))
    assert sorted(images.state_dict()["broken"]) == ["0:5", "0:6", "1:5"]
    assert caplog.text.count("is skipped") == 3 and "broken image 3 of 3 allowed" in caplog.text
    with pytest.raises(TooManyBrokenImagesError, match=r"3 broken images, 2 allowed .*(bad|none|worse)"):
        _take(_images(broken, max_broken=2), 15, workers=workers)
    with pytest.raises(TooManyBrokenImagesError, match=r"1 broken images, 0 allowed .*row \d of shard \d"):
        _take(_images(broken), 15, workers=workers)


def test_broken_images_are_not_counted_again_after_a_resume(broken):
    images = _images(broken, max_broken=3)
    _take(images, 7)
    resumed = _images(broken, max_broken=3)
    resumed.load_state_dict([images.state_dict()])
    assert len(_flat(_numbers(_take(resumed, 15)))) == 30


def test_a_resume_with_fewer_broken_images_than_are_known_says_so(broken):
    images = _images(broken, max_broken=3)
    _take(images, 7)
    resumed = _images(broken, max_broken=1)
    resumed.load_state_dict([images.state_dict()])
    with pytest.raises(InputError, match="--max_broken_images 1: the checkpoint knows of 3 broken images already"):
        _take(resumed, 1)


def test_a_stream_of_nothing_readable_ends(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": b"0", "1.png": b"1"})
    with pytest.raises(TooManyBrokenImagesError, match="none of the 2 images of the stream can be read"):
        _take(_images(f"stream:webdataset:{tmp_path}/a.tar", max_broken=9), 1)
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0)})
    with pytest.raises(InputError, match="no rows for reader 0 of rank 1; use fewer ranks"):
        _take(_images(f"stream:webdataset:{tmp_path}/a.tar"), 1, rank=1, world_size=2)


def test_more_workers_than_shards_is_an_error_and_not_silence(specs):
    with pytest.raises(InputError, match="5 DataLoader workers for 4 shards"):
        _take(_images(specs["tar"]), 1, workers=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [("?image=photo", "no column 'photo'"), ("?label=kind", "no column 'kind'"), ("?image=label", "holds Value")],
)
def test_columns_are_checked_before_the_first_step(tmp_path, options, message):
    rows = {"image": [{"bytes": encoded(1), "path": None}], "label": [3]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        _images(f"stream:{tmp_path}/set{options}")


def test_the_fingerprint_is_of_the_files_and_not_of_their_place(specs, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, SHARDS, ROWS // SHARDS)
    same = {_images(f"stream:webdataset:{tmp_path}/{folder}/part-*.tar").fingerprint for folder in ("a", "b")}
    assert same == {_images(specs["tar"]).fingerprint}
    write_tar(tmp_path / "b" / "part-3.tar", {"0000.png": encoded(9), "0000.cls": b"1"})
    assert _images(f"stream:webdataset:{tmp_path}/b/part-*.tar").fingerprint not in same
    assert _images(specs["parquet"]).fingerprint not in same
