"""Random numbers that depend on nothing but (seed, epoch, sample index).

Augmentation, masks and flips drawn from these are the same on every rank, in every worker and after every resume.
"""

import numpy as np

# First word of each use, so that no two uses share a stream. A tag in front and not a further number behind:
# SeedSequence pads with zeros, which makes (seed, epoch) and (seed, epoch, 0) the same.
_SAMPLE, _ORDER = 1, 2


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
