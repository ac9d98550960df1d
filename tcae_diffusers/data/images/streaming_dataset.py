"""Training views from a stream: Hub data sets and tar shards that are read as they come, split over ranks."""

import functools
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import datasets
import fsspec.asyn
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...errors import InputError
from ..sample_randomness import block_permutation, epoch_permutation, sample_generator
from .decoding import BrokenImageError, load_rgb_image
from .hf_datasets import read_row
from .multi_crop import MultiCropTransform
from .training_dataset import TooManyBrokenImagesError, collate_training_views


class StreamBatch(NamedTuple):
    """
    Args:
        views (`dict[str, torch.Tensor]`): As [`collate_training_views`] stacks them, without `indices`; empty where
            there are more broken images than allowed.
        reader (`int`): Which of the rank's readers made it.
        position (`dict`): Where that reader goes on after it; JSON.
        broken (`dict[str, str]`): What is wrong with each broken image that it passed over for this batch, by row.
    """

    views: dict[str, torch.Tensor]
    reader: int
    position: dict[str, Any]
    broken: dict[str, str]


class _Row(NamedTuple):
    encoded: dict | None
    shard: int
    number: int

    @property
    def name(self) -> str:
        path = (self.encoded or {}).get("path")
        return f"row {self.number} of shard {self.shard} of the stream" + (f" ({path})" if path else "")


def start_of_epoch(epoch: int) -> dict[str, Any]:
    """
    The position of a reader that has all of `epoch` before it. Positions are these numbers:

    `epoch`; `shard`, a place in the reader's order of shards; `row`, how many rows of that shard were read before the
    current block, and `state`, how `datasets` finds that place again; `used`, how many rows of the shuffled block
    were taken.
    """
    return {"epoch": epoch, "shard": 0, "row": 0, "state": None, "used": 0}


class StreamingTrainingDataset(IterableDataset):
    """
    Endless batches of training views; epochs follow one another in new orders.

    The order is a function of (seed, epoch, reader), where every worker of every rank is a reader: shards are
    permuted, and their rows, one shard after the other, are read in blocks of `shuffle_buffer` that are permuted each.
    So a few numbers say where a reader is. To go on there it reads the rows of one shard up to the block, which are
    not decoded, and the block.

    A sample's views are a function of (seed, epoch, content of its file), whatever rank and worker reads it.

    Args:
        dataset (`datasets.IterableDataset`): In the order of its files.
        image_column (`str`): Of encoded images or paths.
        transform ([`MultiCropTransform`]): The views.
        seed (`int`), rank (`int`), world_size (`int`): Of the run. Readers take whole shards where there are enough
            for all of them; otherwise each rank's workers read all shards, and the rank keeps its share of the rows.
        batch_size (`int`): Samples in a batch.
        positions (`list[dict]`): Where each reader of this rank starts: one per worker of the `DataLoader`, or one.
        first_reader (`int`, defaults to 0): The reader that the `DataLoader`'s first worker is.
        shuffle_buffer (`int`, defaults to 10000): Encoded images that a reader shuffles and holds in memory.
        max_broken_images (`int`, defaults to 0): From how many more on a reader does not complete a batch.

    Yields:
        [`StreamBatch`]; give the `DataLoader` `batch_size=None`.

    Raises:
        InputError: There are more readers than shards, or no rows for one.
        TooManyBrokenImagesError: None of a reader's images can be read.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        image_column: str,
        transform: MultiCropTransform,
        seed: int,
        rank: int,
        world_size: int,
        batch_size: int,
        positions: list[dict[str, Any]],
        first_reader: int = 0,
        shuffle_buffer: int = 10_000,
        max_broken_images: int = 0,
    ):
        self.num_shards = dataset.num_shards
        if len(positions) > self.num_shards:
            raise InputError(
                f"{len(positions)} DataLoader workers for {self.num_shards} shards; use at most one worker per shard"
            )
        self.image_column = image_column
        self.transform = transform
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        self.positions = positions
        self.first_reader = first_reader
        self.shuffle_buffer = shuffle_buffer
        self.max_broken_images = max_broken_images
        self._dataset = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        if worker is not None:
            # A forked worker has the parent's lock of asynchronous file systems, which nobody there gives back.
            fsspec.asyn.reset_lock()
        reader = ((0 if worker is None else worker.id) + self.first_reader) % len(self.positions)
        samples: list[dict] = []
        broken: dict[str, str] = {}
        for position, views, problem in self._samples(reader, self.positions[reader]):
            if problem is not None:
                broken.update(problem)
            if views is not None:
                samples.append(views)
            if len(samples) == self.batch_size:
                yield StreamBatch(collate_training_views(samples), reader, position, broken)
                samples, broken = [], {}
            elif len(broken) > self.max_broken_images:
                # Who counts for all workers ends the run; an exception here would be one with a worker's traceback.
                yield StreamBatch({}, reader, position, broken)

    def _samples(self, reader: int, position: dict) -> Iterator[tuple[dict, dict | None, dict | None]]:
        """Position, and either the views of a row or what is wrong with it, on and on."""
        for epoch in itertools.count(position["epoch"]):
            whole = position == start_of_epoch(epoch)
            rows = readable = 0
            for row, behind in self._rows(reader, position):
                rows += 1
                try:
                    content = read_row(row.encoded, functools.partial(getattr, row, "name"))
                    image = load_rgb_image(content, row.name)
                except BrokenImageError as error:
                    yield behind, None, {f"{row.shard}:{row.number}": str(error)}
                    continue
                readable += 1
                key = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
                yield behind, self.transform(image, sample_generator(self.seed, epoch, key)), None
            if whole and not rows:
                raise InputError(
                    f"the stream has no rows for reader {reader} of rank {self.rank}; use fewer ranks or workers"
                )
            if whole and not readable:
                raise TooManyBrokenImagesError(f"none of the {rows} images of the stream can be read")
            position = start_of_epoch(epoch + 1)

    def _rows(self, reader: int, position: dict) -> Iterator[tuple[_Row, dict]]:
        """The rest of an epoch in its order, each row with the position behind it."""
        for block, start in self._blocks(reader, position):
            order = block_permutation(self.seed, start["epoch"], block[0].shard, block[0].number, len(block))
            for used in range(start["used"], len(order)):
                # Taken out, so that memory is given back on the way.
                yield block.pop(int(order[used])), {**start, "used": used + 1}

    def _blocks(self, reader: int, position: dict) -> Iterator[tuple[dict[int, _Row], dict]]:
        """The rest of an epoch as blocks of rows, numbered in the order of the files, and the position of each."""
        shards, share = self._shards(position["epoch"], reader)
        block: dict[int, _Row] = {}
        start = position
        for place in range(position["shard"], len(shards)):
            rows = self._dataset.shard(self.num_shards, shards[place])
            first = 0
            if place == position["shard"] and position["state"] is not None:
                first = position["row"]
                rows.load_state_dict(position["state"])
            # One at a time, so that the state is that behind each row; and `iter` does not ask for the worker, which
            # `datasets` would have read other shards.
            for number, batch in enumerate(rows.iter(batch_size=1), first):
                if number % share == self.rank % share:
                    block[len(block)] = _Row(batch[self.image_column][0], shards[place], number)
                if len(block) == self.shuffle_buffer:
                    state = {"shard": place, "row": number + 1, "state": rows.state_dict()}
                    yield block, start
                    block, start = {}, {**start_of_epoch(position["epoch"]), **state}
        if block:
            yield block, start

    def _shards(self, epoch: int, reader: int) -> tuple[list[int], int]:
        """A reader's shards in order, and among how many ranks their rows are shared out."""
        order = epoch_permutation(self.seed, epoch, self.num_shards).tolist()
        readers = len(self.positions)
        if self.num_shards >= self.world_size * readers:
            return order[self.rank * readers + reader :: self.world_size * readers], 1
        return order[reader::readers], self.world_size
