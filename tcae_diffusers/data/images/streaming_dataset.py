"""Training views from a stream: Hub data sets and tar shards that are read as they come, split by node."""

import functools
import hashlib
import itertools
from collections.abc import Iterator

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from diffusers.utils import logging
from torch.utils.data import IterableDataset, get_worker_info

from ..sample_randomness import sample_generator
from .decoding import BrokenImageError
from .hf_datasets import decode_row, find_image_column, find_label_column
from .multi_crop import MultiCropTransform
from .training_dataset import TooManyBrokenImagesError

logger = logging.get_logger(__name__)


class StreamingTrainingDataset(IterableDataset):
    """Endless stream of training views; epochs follow one another in new orders.

    Prefer [`TokenizerTrainingDataset`] where the data fit on the disk: a stream shuffles within a buffer only, and a
    resume has to read again what it passes over. What holds: a sample's views are a function of (seed, epoch, content
    of its file), whatever rank and worker reads it; a resume repeats and loses no sample, and its order is that of the
    uninterrupted run when `start_batch` is a multiple of the number of workers. In place of a broken image the
    next good one is used twice. Each worker counts broken images for itself.

    Args:
        dataset (`datasets.IterableDataset`): From `load_dataset(..., streaming=True)`.
        transform ([`MultiCropTransform`]): The views.
        seed (`int`), rank (`int`), world_size (`int`): Of the run. Whole shards go to ranks when their number divides,
            else every rank reads all and keeps its share of samples.
        batch_size (`int`): Of the `DataLoader`, by which `start_batch` counts.
        start_batch (`int`, defaults to 0): Batches of this rank that an earlier run has used.
        shuffle_buffer (`int`, defaults to 1000): Samples among which the next is drawn.
        max_broken_images (`int`, defaults to 0): How many broken images to pass over.
        image_column (`str`, *optional*), label_column (`str`, *optional*): As in [`HuggingFaceDatasetSource`]. Labels
            must be whole numbers: a stream's classes cannot be listed beforehand.

    Yields:
        `dict[str, torch.Tensor | int]`: As [`TokenizerTrainingDataset`], without `indices`.

    Raises:
        ValueError: Columns cannot be told, or more workers than shards.
        TooManyBrokenImagesError: On the first broken image beyond `max_broken_images`.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: MultiCropTransform,
        seed: int,
        rank: int,
        world_size: int,
        batch_size: int,
        start_batch: int = 0,
        shuffle_buffer: int = 1000,
        max_broken_images: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        if dataset.features is None:
            raise ValueError("the stream does not tell its columns; pass features= to load_dataset")
        self.image_column = find_image_column(dataset.features, image_column, "the stream")
        self.label_column = find_label_column(dataset.features, label_column, "the stream")
        self.transform = transform
        self.seed = seed
        self.batch_size = batch_size
        self.start_batch = start_batch
        self.max_broken_images = max_broken_images
        dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self._dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | int]]:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if num_workers > self._dataset.num_shards:
            raise ValueError(
                f"{num_workers} DataLoader workers for {self._dataset.num_shards} shards on this rank; use at most "
                "one worker per shard"
            )
        # A DataLoader takes batches from its workers in turn.
        batches_used = len(range(worker_id, self.start_batch, num_workers))
        rows = itertools.islice(self._rows(), batches_used * self.batch_size, None)
        broken, owed = 0, 0
        for epoch, row in rows:
            encoded = row[self.image_column]
            try:
                image = decode_row(encoded, functools.partial(_name_of_row, row))
            except BrokenImageError as error:
                broken, owed = broken + 1, owed + 1
                if broken > self.max_broken_images:
                    raise TooManyBrokenImagesError(
                        f"{broken} broken images, {self.max_broken_images} allowed (max_broken_images); "
                        f"the last: {error}"
                    ) from error
                logger.warning(f"broken image {broken} of {self.max_broken_images} allowed is skipped: {error}")
                continue
            label = 0 if self.label_column is None else int(row[self.label_column])
            content = encoded["bytes"] if encoded["bytes"] is not None else encoded["path"].encode()
            key = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
            # Positions in the stream stay those of its rows, so that a resume can count them without decoding.
            for copy in range(owed + 1):
                views = self.transform(image, sample_generator(self.seed, epoch, (key + copy) % 2**32))
                yield {**views, "labels": label}
            owed = 0

    def _rows(self) -> Iterator[tuple[int, dict]]:
        for epoch in itertools.count():
            self._dataset.set_epoch(epoch)
            empty = True
            for row in self._dataset:
                empty = False
                yield epoch, row
            if empty:
                raise ValueError("the stream has no rows on this rank")


def _name_of_row(row: dict) -> str:
    return str(row.get("__key__", "a row of the stream"))
