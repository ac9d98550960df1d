"""This rank's part of a set of images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data.distributed import rank_range
from ..data.images.image_sets import ImageSet, uint8_batches


def rank_batches(images: ImageSet, batch_size: int, description: str) -> Iterator[tuple[range, torch.Tensor]]:
    """Indices and uint8 images `(B, 3, H, W)` of each batch, in order, one in memory; the main process shows a bar."""
    state = PartialState()
    indices = rank_range(len(images), state.process_index, state.num_processes)
    with tqdm(total=len(indices), desc=description, unit="image", disable=not state.is_main_process) as bar:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            (batch,) = uint8_batches(images, batch_size, chosen)
            yield chosen, batch
            bar.update(len(chosen))
