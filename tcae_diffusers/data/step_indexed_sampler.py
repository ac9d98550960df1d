"""Data order as a function of (seed, step, slot): a resume needs one integer, the step."""

from collections.abc import Iterator

import numpy as np

from .sample_randomness import epoch_permutation


class StepIndexedBatchSampler:
    """Batches of `(epoch, index)` keys for the `batch_sampler` argument of a `DataLoader`, one rank's share.

    Sample position `p = step * global_batch + slot` runs on without end; its epoch is `p // num_samples` and its index
    is place `p % num_samples` of the permutation of `(seed, epoch)`. Nothing is padded, dropped or repeated: a batch
    may span two epochs. Slots of one optimizer step are numbered micro-batch first, then rank, then place in the
    batch, so 1 rank with batch 8, 2 ranks with batch 4 and 8 micro-batches of 1 take the same samples in each step.

    Hand the loader to the training loop as it is: `accelerator.prepare` would shard these batches a second time.

    Args:
        num_samples (`int`): Size of the data set.
        batch_size_per_rank (`int`): Samples in one forward pass of one rank.
        rank (`int`), world_size (`int`): This process, and how many there are.
        seed (`int`): Of the run.
        start_step (`int`): First optimizer step to yield, 0 for a new run.
        num_steps (`int`): How many optimizer steps to yield from there.
        gradient_accumulation_steps (`int`, defaults to 1): Forward passes in an optimizer step.

    Yields:
        `list[tuple[int, int]]`: `batch_size_per_rank` keys; `num_steps * gradient_accumulation_steps` such lists.

    Raises:
        ValueError: A number is out of range (the message names it).
    """

    def __init__(
        self,
        num_samples: int,
        batch_size_per_rank: int,
        rank: int,
        world_size: int,
        seed: int,
        start_step: int,
        num_steps: int,
        gradient_accumulation_steps: int = 1,
    ):
        least = {
            "num_samples": (num_samples, 1),
            "batch_size_per_rank": (batch_size_per_rank, 1),
            "world_size": (world_size, 1),
            "seed": (seed, 0),
            "start_step": (start_step, 0),
            "num_steps": (num_steps, 0),
            "gradient_accumulation_steps": (gradient_accumulation_steps, 1),
        }
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"{name} {value} is below {minimum}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not within [0, world_size={world_size})")
        self.num_samples = num_samples
        self.batch_size_per_rank = batch_size_per_rank
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.start_step = start_step
        self.num_steps = num_steps
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._cached_epoch = -1
        self._cached_order = np.empty(0, dtype=np.int64)

    @property
    def global_batch_size(self) -> int:
        """Samples in an optimizer step, over all ranks and micro-batches."""
        return self.batch_size_per_rank * self.world_size * self.gradient_accumulation_steps

    def __len__(self) -> int:
        return self.num_steps * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.start_step + self.num_steps):
            for micro_batch in range(self.gradient_accumulation_steps):
                first = (micro_batch * self.world_size + self.rank) * self.batch_size_per_rank
                start = step * self.global_batch_size + first
                yield [self.key(position) for position in range(start, start + self.batch_size_per_rank)]

    def key(self, position: int) -> tuple[int, int]:
        """`(epoch, index)` of sample position `position` of the run."""
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._cached_epoch:
            self._cached_order = epoch_permutation(self.seed, epoch, self.num_samples)
            self._cached_epoch = epoch
        return epoch, int(self._cached_order[place])
