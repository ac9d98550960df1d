"""Training views from a data set that is read as it comes, named by a short text such as `stream:NAME`."""

from typing import Any

import datasets

from .hf_datasets import parse_dataset_spec, split_off_columns
from .multi_crop import MultiCropTransform
from .streaming_dataset import StreamingTrainingDataset

SCHEME = "stream"


class StreamedImages:
    """
    What `spec` names, opened but not read; [`open`] starts each rank's stream where a run goes on.

    Args:
        spec (`str`): `stream:NAME[:SPLIT]` (Hub or local data set) or `stream:webdataset:FILES` (tar shards: a path or
            glob), with `?image=COLUMN&label=COLUMN` behind it where columns cannot be told.
        transform ([`MultiCropTransform`]): The views.
        seed (`int`): Of the run.
        max_broken_images (`int`): How many broken images each worker passes over.
        shuffle_buffer (`int`, defaults to 10000): Samples among which the next is drawn.

    Raises:
        ValueError, FileNotFoundError: no such data set or split, or columns that cannot be told.
    """

    def __init__(
        self,
        spec: str,
        transform: MultiCropTransform,
        seed: int,
        max_broken_images: int,
        shuffle_buffer: int = 10_000,
    ):
        self.spec = spec
        self.options: dict[str, Any] = {
            "transform": transform,
            "seed": seed,
            "max_broken_images": max_broken_images,
            "shuffle_buffer": shuffle_buffer,
        }
        rest = spec.removeprefix(f"{SCHEME}:")
        if rest.startswith("webdataset:"):
            files, columns = split_off_columns(rest.removeprefix("webdataset:"))
            self._dataset = datasets.load_dataset(
                "webdataset", data_files={"train": files}, split="train", streaming=True
            )
        else:
            name, split, columns = parse_dataset_spec(rest)
            self._dataset = datasets.load_dataset(name, split=split, streaming=True)
        self.options |= columns
        # Columns are checked here, where an error is the user's, and not in the first step.
        self.open(rank=0, world_size=1, batch_size=1, start_batch=0)

    @property
    def fingerprint(self) -> str:
        """The spec: the content of a stream is not known before it was read."""
        return self.spec

    @property
    def description(self) -> str:
        return f"a stream of {self._dataset.num_shards} shards"

    def open(self, rank: int, world_size: int, batch_size: int, start_batch: int) -> StreamingTrainingDataset:
        """This rank's endless stream; see [`StreamingTrainingDataset`] for what a resume keeps."""
        return StreamingTrainingDataset(
            self._dataset,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            start_batch=start_batch,
            **self.options,
        )
