"""Random numbers that depend on nothing but (seed, epoch, sample index).

Augmentation, masks and flips drawn from these are the same on every rank, in every worker and after every resume.
"""

import numpy as np
import torch

# First word of each use, so that no two uses share a stream. A tag in front and not a further number behind:
# SeedSequence pads with zeros, which makes (seed, epoch) and (seed, epoch, 0) the same.
_SAMPLE, _ORDER, _SLOT, _BLOCK, _STEP, _ROUND = 1, 2, 3, 4, 5, 6


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Generator for one sample of one epoch.

    Args:
        seed, epoch, index (`int`): Each in [0, 2**32). Different triples give independent streams (`SeedSequence`).
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((_SAMPLE, seed, epoch, index))))


def epoch_permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of epoch `epoch`: a permutation of `range(num_samples)` as int64, the same for equal arguments."""
    sequence = np.random.SeedSequence((_ORDER, seed, epoch))
    return np.random.Generator(np.random.PCG64(sequence)).permutation(num_samples)


def round_permutation(seed: int, round_number: int, num_steps: int) -> np.ndarray:
    """The order of the `num_steps` steps of a round, see [`~data.step_indexed_sampler.BucketSchedule`]: int64."""
    sequence = np.random.SeedSequence((_ROUND, seed, round_number))
    return np.random.Generator(np.random.PCG64(sequence)).permutation(num_steps)


def block_permutation(seed: int, epoch: int, shard: int, row: int, num_rows: int) -> np.ndarray:
    """The order of the `num_rows` rows of a stream that are read in one go, from `row` of shard `shard` on: int64."""
    sequence = np.random.SeedSequence((_BLOCK, seed, epoch, shard, row))
    return np.random.Generator(np.random.PCG64(sequence)).permutation(num_rows)


def slot_generators(seed: int, step: int, first_slot: int, count: int) -> list[torch.Generator]:
    """CPU generators for the images of one forward pass, each a function of (seed, step, slot).

    Noise drawn from them is the same however a step is divided over ranks and micro-batches.

    Args:
        seed (`int`): Of the run.
        step (`int`): Optimizer step.
        first_slot (`int`): Place of the first image within the step's global batch.
        count (`int`): Images.
    """
    generators = []
    for slot in range(first_slot, first_slot + count):
        state = np.random.SeedSequence((_SLOT, seed, step, slot)).generate_state(1, np.uint64)
        generators.append(torch.Generator().manual_seed(int(state[0] >> np.uint64(1))))
    return generators


def step_seed(seed: int, step: int) -> int:
    """
    Seed, in [0, 2**32), of a `torch.Generator` for an optimizer step: a generator on a CPU looks at no more bits. Runs
    whose seeds are small do not meet in any number of steps that is trained for.
    """
    # Multiples of 2**32 over the golden ratio are as far from each other, around the circle, as they can be.
    return (seed * 0x9E3779B1 + step) % 2**32


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Generator for what all images of an optimizer step share, a function of (seed, step)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((_STEP, seed, step))))


def choose_per_sample(seed: int, epochs: int | np.ndarray, indices: np.ndarray, num_choices: int) -> np.ndarray:
    """Choose one of `num_choices` for each sample, a function of (seed, epoch, index), for a whole batch at once.

    Args:
        seed (`int`): Of the run.
        epochs (`int` or `np.ndarray`): One for all, or one each.
        indices (`np.ndarray`): int64 `(B,)`.
        num_choices (`int`): At least 1, small.

    Returns:
        `np.ndarray`: int64 `(B,)` in [0, num_choices).
    """
    state = _splitmix64(np.full(len(indices), seed, dtype=np.uint64))
    for word in (epochs, indices):
        state = _splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return (state % np.uint64(num_choices)).astype(np.int64)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood (2014), a bijection on 64 bits whose output passes statistical test suites."""
    # Products wrap around modulo 2**64, as they should.
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
