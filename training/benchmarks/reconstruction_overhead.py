"""Overhead of the reconstruction measures: the complete command against its forward passes alone."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import numpy as np
import torch

from tcae_diffusers.data.images.image_sets import uint8_batches
from tcae_diffusers.metrics.features import FeatureNetwork
from tcae_diffusers.metrics.reconstruction import evaluate_reconstruction, reconstruct
from tcae_diffusers.training.bench_arguments import BenchArguments

DESCRIPTION = "reconstruction at 64 px: PSNR, SSIM, MS-SSIM, rFD with interval, against the forwards alone (goal 1.3)"

_BATCH = 32
_LARGEST = 10_000


class RandomImages:
    """Smooth random pictures, made anew at every access, so that any number of them takes no memory."""

    name, labels, classes, attribution, fingerprint = "random", None, None, None, "random-64"

    def __init__(self, count: int, size: int = 64):
        self._count, self._size = count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        coarse = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return np.kron(coarse, np.ones((self._size // 8, self._size // 8, 1), dtype=np.uint8))


def _forwards_alone(model: torch.nn.Module, network: FeatureNetwork, images: RandomImages) -> float:
    start = time.perf_counter()
    for batch in uint8_batches(images, _BATCH):
        output, _ = reconstruct(model, batch)
        network(batch)
        network(output)
    return time.perf_counter() - start


def run(arguments: BenchArguments) -> dict[str, Any]:
    """Both take turns on parts of the set until `arguments.seconds` are over; 10,000 images at most, 64 at least."""
    from tcae_diffusers.models.tcae.autoencoder_tc import AutoencoderTC

    torch.manual_seed(0)
    model = AutoencoderTC.from_preset("tc-ae-xs-f16c32").eval()
    network = FeatureNetwork("efficientnet-lite0")
    warm = RandomImages(_BATCH)
    _forwards_alone(model, network, warm)
    rate = _BATCH / _forwards_alone(model, network, warm)
    count = int(min(_LARGEST, max(64, rate * arguments.seconds / 2.3)))
    images = RandomImages(count)
    # The forwards are timed before and after: a shared machine's rate drifts, and the mean of both is fairer.
    before = _forwards_alone(model, network, RandomImages(count // 2))
    start = time.perf_counter()
    evaluate_reconstruction(model, images, network, _BATCH)
    whole = time.perf_counter() - start
    after = _forwards_alone(model, network, RandomImages(count - count // 2))
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "images": float(count),
        "forwards alone (s)": before + after,
        "reconstruction measures (s)": whole,
        "ratio (goal 1.3)": whole / (before + after),
        "peak memory of the process (GiB, goal 4)": peak / 2**30,
    }
