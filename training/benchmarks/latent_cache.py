"""Caching against the bare encoder, and training on cached latents against the same step on a tensor in memory."""

from __future__ import annotations

import functools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from tcae_diffusers.metrics.latency import time_in_turns
from tcae_diffusers.metrics.mac_counter import count_macs
from tcae_diffusers.training.bench_arguments import BenchArguments

DESCRIPTION = "caching latents against the bare encoder; DiT steps from the cache against a tensor in memory"

_BATCH, _BATCHES_PER_SHARD, _SHARDS = 32, 8, 2
_TRAIN_BATCH = 64


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

    def image_size(self, index: int) -> tuple[int, int]:
        return self.images[index].height, self.images[index].width

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], int(self.labels[index])


def _matmul_rate(device: torch.device, size: int) -> float:
    """Multiply-accumulates per second of a square fp32 matrix product, the machine's own yardstick."""
    a, b = torch.randn(2, size, size, device=device)
    times = time_in_turns({"matmul": lambda: a @ b}, device, least_rounds=10)["matmul"]
    return size**3 / statistics.fmean(times)


def _caching(seconds: float, accelerator: Accelerator, folder: Path) -> tuple[dict[str, Any], Path]:
    """
    Rounds of: encode batches that are ready on the device; cache the same number of images with the command. Returns
    the table and one of the caches.
    """
    from tcae_diffusers import AutoencoderTC
    from tcae_diffusers.data.images.multi_crop import to_uint8
    from tcae_diffusers.models.adapters import adapt
    from tcae_diffusers.trainer.signals import StopSignal
    from tcae_diffusers.training import cache_latents

    device = accelerator.device
    preset, resolution, batch = (
        ("tc-ae-f32c128", 256, 256) if device.type == "cuda" else ("tc-ae-xs-f8c32", 32, _BATCH)
    )
    model = AutoencoderTC.from_preset(preset).eval().to(device)
    source = _ImagesInMemory(batch * _BATCHES_PER_SHARD * _SHARDS, resolution)
    arguments = cache_latents.CacheArguments(
        tokenizer="",
        output_dir=str(folder),
        resolution=resolution,
        batch_size=batch,
        shard_size=batch * _BATCHES_PER_SHARD,
        dataloader_num_workers=8 if device.type == "cuda" else 0,
    )
    ready = torch.stack([to_uint8(image) for image in source.images[:batch]])[:, None].to(device)
    encode, _ = cache_latents.build_encode(model, arguments, device)
    views = cache_latents.ViewsOfImages(
        source, cache_latents.build_samples(arguments, adapt(model), source), arguments
    )

    @torch.no_grad()
    def encode_alone() -> None:
        for _ in range(_BATCHES_PER_SHARD * _SHARDS):
            cache_latents.encode_views(encode, ready, arguments)

    def cache() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        writer = cache_latents.open_writer(arguments, model, encode, views, device, None)
        with StopSignal() as stop, tqdm(disable=True) as bar:
            shards = writer.pending_shards()
            cache_latents.encode_shards(encode, views, writer, shards, arguments, accelerator, stop, bar)
        writer.finalize()

    times = time_in_turns({"bare": encode_alone, "cached": cache}, device, seconds, least_rounds=2)
    ratios = [first / second for first, second in zip(times["bare"], times["cached"], strict=True)]
    return {
        "caching: model": f"{preset} at {resolution}, batch {batch}, two views",
        "caching: images/s of the bare encoder": len(source) / statistics.median(times["bare"]),
        "caching: images/s of the command": len(source) / statistics.median(times["cached"]),
        "caching: share of the bare encoder (goal 0.95)": statistics.median(ratios),
    }, folder


def _training(seconds: float, device: torch.device, folder: Path) -> dict[str, Any]:
    """Blocks of steps in turns: batches from the cache as train_dit reads them, and slices of a tensor."""
    from tcae_diffusers.data.latents.cache import LatentCache
    from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
    from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective
    from tcae_diffusers.training.dit_objectives import compute_losses, draw_step_randomness
    from tcae_diffusers.training.dit_transformers import build_transformer, set_training_mode

    block, cache = 5, LatentCache(folder)
    cache.normalize_with(cache.latent_mean, cache.latent_std)
    count, shape, classes = len(cache), cache.latent_shape, len(cache.id2label)
    model = build_transformer("dit", shape, classes, classes, 6, 6, 32).to(device)
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

    waits: dict[str, list[float]] = {"cache": [], "memory": []}

    def take_steps(name: str, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        waited = 0.0
        for step in range(block):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            randomness = draw_step_randomness(0, step, _TRAIN_BATCH, shape, objective, 0.1, device)
            seen, given = (batch[name].to(device, non_blocking=True) for name in ("latents", "labels"))
            compute_losses(model, objective, seen, given, classes, randomness)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        waits[name].append(waited)

    sources = {"cache": iter(loader), "memory": from_memory()}
    parts = {name: functools.partial(take_steps, name, batches) for name, batches in sources.items()}
    times = time_in_turns(parts, device, seconds, least_rounds=2)
    ratios = [first / second for first, second in zip(times["cache"], times["memory"], strict=True)]
    shares = [wait / whole for wait, whole in zip(waits["cache"][1:], times["cache"], strict=True)]
    step_seconds = statistics.median(times["cache"]) / block
    sample = (latents[:1], torch.zeros(1, device=device), labels[:1])
    macs = count_macs(model.eval(), *sample).total
    rate = _matmul_rate(device, 8192 if device.type == "cuda" else 1024)
    return {
        "training: model": f"{model.num_parameters() / 1e6:.1f} M DiT on {shape} latents, batch {_TRAIN_BATCH}",
        "training: images/s from the cache": _TRAIN_BATCH / step_seconds,
        "training: share of a step spent in the loader (goal below 0.02)": statistics.median(shares),
        "training: step time over that of a tensor in memory (goal below 1.1)": statistics.median(ratios),
        # Backward costs two forwards.
        "training: MFU, of a measured fp32 matrix product": 3 * macs * _TRAIN_BATCH / step_seconds / rate,
    }


def run(arguments: BenchArguments) -> dict[str, Any]:
    """Half of the time for each of the two questions."""
    accelerator = Accelerator()
    table: dict[str, Any] = {"device": str(accelerator.device), "threads": float(torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as folder:
        caching, cache = _caching(arguments.seconds / 2, accelerator, Path(folder) / "cache")
        return table | caching | _training(arguments.seconds / 2, accelerator.device, cache)
