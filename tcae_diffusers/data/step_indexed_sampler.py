"""Data order as a function of (seed, step, slot): a resume needs one integer, the step."""

from collections.abc import Iterator

import numpy as np

from .sample_randomness import epoch_permutation, round_permutation


class StepIndexedBatchSampler:
    """Batches of `(epoch, index)` keys for the `batch_sampler` argument of a `DataLoader`, one rank's share.

    Sample position `p = step * global_batch + slot` runs on without end; its epoch is `p // num_samples` and its index
    is place `p % num_samples` of the permutation of `(seed, epoch)`. Nothing is padded, dropped or repeated: a batch
    may span two epochs. Slots of one optimizer step are numbered micro-batch first, then rank, then place in the
    batch, so 1 rank with batch 8, 2 ranks with batch 4 and 8 micro-batches of 1 take the same samples in each step.

    Samples of different sizes are in buckets. All samples of an optimizer step are of one bucket, so that ranks have
    equal work and every way to divide a step keeps its samples; [`BucketSchedule`] says of which. Each bucket has
    positions and epochs of its own, as above.

    Hand the loader to the training loop as it is: `accelerator.prepare` would shard these batches a second time.

    Args:
        num_samples (`int`): Size of the data set.
        batch_size_per_rank (`int`): Samples in one forward pass of one rank.
        rank (`int`), world_size (`int`): This process, and how many there are.
        seed (`int`): Of the run.
        start_step (`int`): First optimizer step to yield, 0 for a new run.
        num_steps (`int`): How many optimizer steps to yield from there.
        gradient_accumulation_steps (`int`, defaults to 1): Forward passes in an optimizer step.
        bucket_of (`np.ndarray`, *optional*): The bucket of each sample, int64 `(num_samples,)`; one for all if unset.

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
        bucket_of: np.ndarray | None = None,
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
        if bucket_of is None:
            bucket_of = np.zeros(num_samples, dtype=np.int64)
        if bucket_of.shape != (num_samples,):
            raise ValueError(f"bucket_of has shape {bucket_of.shape}, expected ({num_samples},), a bucket per sample")
        self._members = [np.flatnonzero(bucket_of == bucket) for bucket in np.unique(bucket_of)]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def global_batch_size(self) -> int:
        """Samples in an optimizer step, over all ranks and micro-batches."""
        return self.batch_size_per_rank * self.world_size * self.gradient_accumulation_steps

    def __len__(self) -> int:
        return self.num_steps * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        schedule = BucketSchedule([len(members) for members in self._members], self.global_batch_size, self.seed)
        for step in range(self.start_step, self.start_step + self.num_steps):
            bucket, steps_before = schedule.bucket_of_step(step)
            for micro_batch in range(self.gradient_accumulation_steps):
                first = (micro_batch * self.world_size + self.rank) * self.batch_size_per_rank
                start = steps_before * self.global_batch_size + first
                yield [self._key(bucket, position) for position in range(start, start + self.batch_size_per_rank)]

    def _key(self, bucket: int, position: int) -> tuple[int, int]:
        """`(epoch, index)` of a sample position of a bucket."""
        members = self._members[bucket]
        epoch, place = divmod(position, len(members))
        if self._orders.get(bucket, (-1,))[0] != epoch:
            self._orders[bucket] = epoch, members[epoch_permutation(self.seed, epoch, len(members))]
        return epoch, int(self._orders[bucket][1][place])


class BucketSchedule:
    """The bucket of each step, a function of (seed, step).

    Steps come in rounds. By the end of round `r`, counted from 1, a bucket of `n` samples has been taken from in
    `floor(r * n / B)` steps of `B` samples, so every bucket goes through its samples at the same pace, and what does
    not fill a step is left for the next round. Within a round the steps are in a random order.

    Args:
        counts (`list[int]`): Samples in each bucket, at least one.
        samples_per_step (`int`): B.
        seed (`int`): Of the run.
    """

    def __init__(self, counts: list[int], samples_per_step: int, seed: int):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples_per_step = samples_per_step
        self.seed = seed
        # The round at hand: its first step, how often each bucket came before it, and the buckets of its steps.
        self._first_step, self._before, self._buckets = 0, np.zeros_like(self.counts), np.empty(0, dtype=np.int64)

    def steps_before_round(self, number: int) -> np.ndarray:
        """Steps of each bucket in all rounds before `number`, counted from 0: int64 `(buckets,)`."""
        return number * self.counts // self.samples_per_step

    def bucket_of_step(self, step: int) -> tuple[int, int]:
        """The bucket of `step`, and how many steps before it were of this bucket."""
        if not 0 <= step - self._first_step < len(self._buckets):
            self._enter_round_of(step)
        place = step - self._first_step
        bucket = int(self._buckets[place])
        return bucket, int(self._before[bucket] + np.count_nonzero(self._buckets[:place] == bucket))

    def _enter_round_of(self, step: int) -> None:
        # Rounded down, steps never run ahead of samples, so this round is not too late; it may be too early.
        number = step * self.samples_per_step // int(self.counts.sum())
        while self.steps_before_round(number + 1).sum() <= step:
            number += 1
        self._before = self.steps_before_round(number)
        in_round = self.steps_before_round(number + 1) - self._before
        self._first_step = int(self._before.sum())
        buckets = np.repeat(np.arange(len(self.counts)), in_round)
        self._buckets = buckets[round_permutation(self.seed, number, len(buckets))]
