"""Work over ranks by explicit index ranges: every image exactly once, whatever the number of ranks."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState


def rank_range(count: int, rank: int, ranks: int) -> range:
    """The contiguous part of `range(count)` that belongs to `rank`; the parts of all ranks tile it without overlap."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def gather_in_rank_order(item: Any, state: PartialState) -> list[Any]:
    """`[item of rank 0, item of rank 1, ...]` on every rank; any picklable object."""
    if state.num_processes == 1:
        return [item]
    import torch.distributed

    gathered: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(gathered, item)
    return gathered
