"""Caching against the bare encoder, and training on cached latents against the same step on a tensor in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from tcae_diffusers.metrics.mac_counter import count_macs
from tcae_diffusers.training.bench_arguments import BenchArguments

if TYPE_CHECKING:
    from tcae_diffusers.data.latents.cache import LatentCache

DESCRIPTION = "caching latents against the bare encoder; DiT steps from the cache against a tensor in memory"

_BATCH, _BATCHES_PER_SHARD, _SHARDS = 32, 8, 2
_TRAIN_BATCH, _LATENT, _CLASSES = 64, (32, 4, 4), 9


class _ImagesInMemory:
    """An image source without a disk: what is measured is the command, not the decoder."""

    attribution: str | None = None
    fingerprint = "0" * 64

    def __init__(self, count: int, resolution: int):
        pixels = np.random.default_rng(0).integers(0, 256, (count, resolution, resolution, 3)).astype(np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        self.classes, self.labels = ["a", "b"], np.arange(count) % 2

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return self.images[index]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], int(self.labels[index])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matmul_rate(device: torch.device, size: int) -> float:
    """Multiply-accumulates per second of a square fp32 matrix product, the machine's own yardstick."""
    a, b = torch.randn(2, size, size, device=device)
    a @ b
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    _synchronize(device)
    return 10 * size**3 / (time.perf_counter() - started)


def _caching(seconds: float, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Rounds of: encode batches that are ready on the device; cache the same number of images with the command."""
    from tcae_diffusers import AutoencoderTC
    from tcae_diffusers.data.images.multi_crop import to_uint8
    from tcae_diffusers.data.latents.writer import LatentShardWriter
    from tcae_diffusers.models.fingerprint import TokenizerFingerprint
    from tcae_diffusers.trainer.signals import StopSignal
    from tcae_diffusers.training import cache_latents

    on_gpu = accelerator.device.type == "cuda"
    preset, resolution, batch = ("tc-ae-f32c128", 256, 256) if on_gpu else ("tc-ae-xs-f8c32", 32, _BATCH)
    model = AutoencoderTC.from_preset(preset).eval().to(accelerator.device)
    source = _ImagesInMemory(batch * _BATCHES_PER_SHARD * _SHARDS, resolution)
    arguments = cache_latents.CacheArguments(tokenizer="", output_dir="", resolution=resolution, batch_size=batch)
    arguments.dataloader_num_workers = 8 if on_gpu else 0
    ready = torch.stack([to_uint8(image) for image in source.images[:batch]])[:, None].to(accelerator.device)
    encode, _ = cache_latents.build_encode(model, arguments, accelerator.device)
    with torch.no_grad():
        _, channels, height, width = cache_latents.encode_views(encode, ready[:1], arguments)["latents"].shape
    fingerprint = TokenizerFingerprint.of(model)

    bare: list[float] = []
    cached: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(bare) < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        with torch.no_grad():
            for _ in range(_BATCHES_PER_SHARD * _SHARDS):
                cache_latents.encode_views(encode, ready, arguments)
        _synchronize(accelerator.device)
        bare.append(time.perf_counter() - started)

        started = time.perf_counter()
        writer = LatentShardWriter(
            folder / str(len(cached)),
            num_samples=len(source),
            latent_shape=(channels, height, width),
            tokenizer=fingerprint,
            id2label=dict(enumerate(source.classes)),
            data_fingerprint=source.fingerprint,
            transform={},
            views=arguments.views,
            shard_size=batch * _BATCHES_PER_SHARD,
        )
        with StopSignal() as stop, tqdm(disable=True) as bar:
            shards = writer.pending_shards()
            cache_latents.encode_shards(encode, source, writer, shards, arguments, accelerator, stop, bar)
        writer.finalize()
        cached.append(time.perf_counter() - started)
    # The first round pays for allocation and kernel selection.
    ratios = [first / second for first, second in zip(bare[1:], cached[1:], strict=True)]
    return {
        "caching: model": f"{preset} at {resolution}, batch {batch}, two views",
        "caching: images/s of the bare encoder": len(source) / statistics.median(bare[1:]),
        "caching: images/s of the command": len(source) / statistics.median(cached[1:]),
        "caching: share of the bare encoder (goal 0.95)": statistics.median(ratios),
    }


def _synthetic_cache(folder: Path, count: int) -> LatentCache:
    from tcae_diffusers.data.latents.cache import LatentCache
    from tcae_diffusers.data.latents.writer import LatentShardWriter
    from tcae_diffusers.models.fingerprint import TokenizerFingerprint

    writer = LatentShardWriter(
        folder,
        num_samples=count,
        latent_shape=_LATENT,
        tokenizer=TokenizerFingerprint("AutoencoderTC", "0" * 64, "0" * 64),
        id2label={label: str(label) for label in range(_CLASSES)},
        data_fingerprint="0" * 64,
        transform={},
        views=("latents", "latents_flip"),
    )
    generator = torch.Generator().manual_seed(0)
    for shard in writer.shards:
        size = shard.stop - shard.start
        with writer.open_shard(shard) as out:
            latents = {view: torch.randn(size, *_LATENT, generator=generator) for view in ("latents", "latents_flip")}
            out.add(range(shard.start, shard.stop), latents, torch.arange(size) % _CLASSES)
    writer.finalize()
    return LatentCache(folder).normalize_with(torch.zeros(_LATENT[0]), torch.ones(_LATENT[0]))


def _training(seconds: float, device: torch.device, folder: Path) -> dict[str, Any]:
    """Blocks of steps in turns: batches from the cache as train_dit reads them, and slices of a tensor."""
    from tcae_diffusers.data.latents.cache import LatentCache
    from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
    from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective
    from tcae_diffusers.training.dit_objectives import compute_losses, draw_step_randomness
    from tcae_diffusers.training.dit_transformers import build_transformer, set_training_mode

    count, block = 8192, 5
    cache = _synthetic_cache(folder, count)
    model = build_transformer("dit", _LATENT, _CLASSES, _CLASSES, 6, 6, 32).to(device)
    set_training_mode(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    objective = FlowMatchingObjective()
    sampler = StepIndexedBatchSampler(count, _TRAIN_BATCH, 0, 1, seed=0, start_step=0, num_steps=10**6)
    loader = DataLoader(cache, batch_sampler=sampler, collate_fn=LatentCache.collate, pin_memory=device.type == "cuda")
    latents, labels = cache.read(range(count))
    latents, labels = latents.to(device), labels.to(device)

    def from_memory() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for start in range(0, count, _TRAIN_BATCH):
                part = slice(start, start + _TRAIN_BATCH)
                yield {"latents": latents[part], "labels": labels[part]}

    waited = 0.0

    def steps(batches: Iterator, first_step: int) -> float:
        nonlocal waited
        waited = 0.0
        _synchronize(device)
        started = time.perf_counter()
        for step in range(first_step, first_step + block):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            randomness = draw_step_randomness(0, step, _TRAIN_BATCH, _LATENT, objective, 0.1, device)
            seen, classes = (batch[name].to(device, non_blocking=True) for name in ("latents", "labels"))
            compute_losses(model, objective, seen, classes, _CLASSES, randomness)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        _synchronize(device)
        return time.perf_counter() - started

    cached_batches, memory_batches = iter(loader), from_memory()
    times: dict[str, list[float]] = {"cache": [], "memory": []}
    shares: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(shares) < 3 or time.perf_counter() < deadline:
        times["cache"].append(steps(cached_batches, len(shares) * block))
        shares.append(waited / times["cache"][-1])
        times["memory"].append(steps(memory_batches, len(shares) * block))
    ratios = [first / second for first, second in zip(times["cache"][1:], times["memory"][1:], strict=True)]
    step_seconds = statistics.median(times["cache"][1:]) / block
    sample = (latents[:1], torch.zeros(1, device=device), labels[:1])
    macs = count_macs(model.eval(), *sample).total
    rate = _matmul_rate(device, 8192 if device.type == "cuda" else 1024)
    return {
        "training: model": f"{model.num_parameters() / 1e6:.1f} M DiT on {_LATENT} latents, batch {_TRAIN_BATCH}",
        "training: images/s from the cache": _TRAIN_BATCH / step_seconds,
        "training: share of a step spent in the loader (goal below 0.02)": statistics.median(shares[1:]),
        "training: step time over that of a tensor in memory (goal below 1.1)": statistics.median(ratios),
        # Backward costs two forwards.
        "training: MFU, of a measured fp32 matrix product": 3 * macs * _TRAIN_BATCH / step_seconds / rate,
    }


def run(arguments: BenchArguments) -> dict[str, Any]:
    """Half of the time for each of the two questions."""
    accelerator = Accelerator()
    table: dict[str, Any] = {"device": str(accelerator.device), "threads": float(torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as folder:
        table |= _caching(arguments.seconds / 2, accelerator, Path(folder) / "caches")
        return table | _training(arguments.seconds / 2, accelerator.device, Path(folder) / "latents")
