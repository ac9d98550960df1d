"""Work over ranks by explicit index ranges: every image exactly once, whatever the number of ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from accelerate import PartialState


def rank_range(count: int, rank: int, ranks: int) -> range:
    """The contiguous part of `range(count)` that belongs to `rank`; the parts of all ranks tile it without overlap."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def gather_in_rank_order(item: Any, state: PartialState) -> list[Any]:
    """`[item of rank 0, item of rank 1, ...]` on every rank; any picklable object."""
    if state.num_processes == 1:
        return [item]
    gathered: list[Any] = [None] * state.num_processes
    dist.all_gather_object(gathered, item)
    return gathered


def is_distributed() -> bool:
    """Whether there is more than one rank to reduce over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
