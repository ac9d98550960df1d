"""A data set that is read as it comes, named by a text such as `stream:NAME`, and how far a run has come in it."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.utils import logging
from torch.utils.data import DataLoader

from ...errors import InputError
from .class_labels import find_label_column
from .dataset_specs import DatasetSpec, open_stream
from .hf_datasets import find_image_column
from .multi_crop import MultiCropTransform
from .streaming_dataset import StreamingTrainingDataset, start_of_epoch
from .training_dataset import TooManyBrokenImagesError

logger = logging.get_logger(__name__)

SCHEME = "stream"


class StreamedImages:
    """
    What `spec` names, opened but not read; [`loader`] gives a rank its batches from where the run is.

    Args:
        spec (`str`): `stream:NAME[:SPLIT]` (Hub or local data set) or `stream:webdataset:FILES` (tar shards: a path or
            glob), with `?name=CONFIG&image=COLUMN` behind it where they cannot be told. Labels are not used.
        transform ([`MultiCropTransform`]): The views.
        seed (`int`): Of the run.
        max_broken_images (`int`): How many broken images each rank passes over, every one counted once.
        shuffle_buffer (`int`, defaults to 10000): Samples that a worker shuffles and holds in memory, encoded.

    Raises:
        InputError: No such data set, configuration or split, or columns that cannot be told.
    """

    def __init__(
        self,
        spec: str,
        transform: MultiCropTransform,
        seed: int,
        max_broken_images: int,
        shuffle_buffer: int = 10_000,
    ):
        if max_broken_images < 0:
            raise InputError(f"max_broken_images {max_broken_images} is negative")
        self.spec = DatasetSpec.parse(spec.removeprefix(f"{SCHEME}:"))
        self.max_broken_images = max_broken_images
        self._dataset, self._files = open_stream(self.spec)
        features = self._dataset.features
        if features is None:
            raise InputError(f"{spec} does not declare its columns; use datasets: instead of stream:")
        if self.spec.label_column:
            find_label_column(features, self.spec.label_column, self.spec.name)
        self._options: dict[str, Any] = {
            "image_column": find_image_column(features, self.spec.image_column, self.spec.name),
            "transform": transform,
            "seed": seed,
            "shuffle_buffer": shuffle_buffer,
            "max_broken_images": max_broken_images,
        }
        self._state: dict[str, Any] = {}
        self._loaded: list[dict[str, Any]] = []

    @cached_property
    def fingerprint(self) -> str:
        """
        sha256 of what is known before a stream is read: configuration, split and column, size and first 64 KiB of each
        local file, address (which names the revision) of the others. Copying the files elsewhere changes nothing.
        """
        digest = hashlib.sha256(
            json.dumps([self.spec.config, self.spec.split or "train", self._options["image_column"]]).encode()
        )
        with ThreadPoolExecutor(16) as pool:
            for state in pool.map(_state_of_file, self._files):
                digest.update(hashlib.sha256(state).digest())
        return digest.hexdigest()

    @property
    def description(self) -> str:
        return f"a stream of {self._dataset.num_shards} shards"

    def loader(
        self, rank: int, world_size: int, batch_size: int, num_workers: int = 0, pin_memory: bool = False
    ) -> Iterator[dict[str, torch.Tensor]]:
        """
        Endless batches for this rank, from the state that was loaded on, or from the start.

        With each batch that is taken, `state_dict` moves on by that batch; what workers have prepared beyond it is
        made again after a resume.

        Args:
            rank, world_size (`int`): Of this process and of the run.
            batch_size (`int`): Samples of this rank in a batch.
            num_workers (`int`): Processes that read and decode.
            pin_memory (`bool`): Whether batches go to a GPU.

        Yields:
            `dict[str, torch.Tensor]`: As of [`collate_training_views`], without `indices`.

        Raises:
            TooManyBrokenImagesError: On the first broken image beyond `max_broken_images`.
        """
        self._state = self._resumed_state(rank, world_size, max(1, num_workers))
        stream = StreamingTrainingDataset(
            self._dataset,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            positions=list(self._state["positions"]),
            first_reader=self._state["next_reader"],
            **self._options,
        )
        loader: DataLoader = DataLoader(
            stream, batch_size=None, collate_fn=_unchanged, num_workers=num_workers, pin_memory=pin_memory
        )
        return self._followed(loader)

    def _followed(self, loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
        for batch in loader:
            views, reader, position, broken = batch
            self._state["positions"][reader] = position
            # A DataLoader takes batches from its workers in turn.
            self._state["next_reader"] = (reader + 1) % len(self._state["positions"])
            for row, problem in broken.items():
                self._count_broken(row, problem)
            yield views

    def _count_broken(self, row: str, problem: str) -> None:
        known = self._state["broken"]
        if row in known:
            return
        known.append(row)
        if len(known) > self.max_broken_images:
            raise TooManyBrokenImagesError.of(len(known), self.max_broken_images, problem)
        logger.warning(f"broken image {len(known)} of {self.max_broken_images} allowed is skipped: {problem}")

    def _resumed_state(self, rank: int, world_size: int, readers: int) -> dict[str, Any]:
        states = self._loaded
        if len(states) == world_size and all(len(state["positions"]) == readers for state in states):
            known = len(states[rank]["broken"])
            if known > self.max_broken_images:
                raise InputError(
                    f"--max_broken_images {self.max_broken_images}: the checkpoint knows of {known} broken images"
                    " already; allow as many or start anew"
                )
            return json.loads(json.dumps(states[rank]))
        epoch = 0
        if states:
            epoch = 1 + max(position["epoch"] for state in states for position in state["positions"])
            logger.warning(
                f"the checkpoint was written by {len(states)} ranks with {len(states[0]['positions'])} readers each, "
                f"but this run has {world_size} with {readers}, so the stream resumes at the start of epoch {epoch}; "
                "for the order of the uninterrupted run use the same number of ranks and of --dataloader_num_workers"
            )
        return {"positions": [start_of_epoch(epoch)] * readers, "next_reader": 0, "broken": []}

    def state_dict(self) -> dict[str, Any]:
        """How far this rank has come: the position of each of its readers behind the batches taken so far. JSON."""
        if not self._state:
            raise RuntimeError("a stream has no state before loader() was called")
        return json.loads(json.dumps(self._state))

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from the `state_dict` of every rank, in order. Call it before [`loader`]."""
        self._loaded = states

    def register_for_checkpointing(self, accelerator: Accelerator) -> None:
        """
        Make the positions part of the checkpoints of `accelerator`, in a file per rank.

        accelerate saves the state of what is registered with it from the main process alone.
        """

        def save(models: list, weights: list, folder: str) -> None:
            file = Path(folder) / f"stream-{accelerator.process_index:05d}.json"
            file.write_text(json.dumps(self.state_dict()))

        def load(models: list, folder: str) -> None:
            files = sorted(Path(folder).glob("stream-*.json"))
            self.load_state_dict([json.loads(file.read_text()) for file in files])

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)


def _state_of_file(path: str) -> bytes:
    if not os.path.isfile(path):
        return path.encode()
    with open(path, "rb") as file:
        return f"{os.path.getsize(path)}\0".encode() + file.read(2**16)


def _unchanged(batch: Any) -> Any:
    return batch
