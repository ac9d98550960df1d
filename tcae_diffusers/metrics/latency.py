"""How long an autoencoder takes on the device that it is on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..models.adapters import adapt


def time_in_turns(
    parts: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float = 0.0, least_rounds: int = 3
) -> dict[str, list[float]]:
    """
    Seconds of each call of `parts`. They take turns, so that a machine that slows down is slow for all of them.

    Args:
        parts: What is timed, by name, in the order of a round.
        device: Waited for before and after each call, if it is a CUDA device.
        seconds: Time budget; a round that has begun is finished.
        least_rounds: Rounds to count whatever they take. One before, which pays for allocation, compilation and the
            choice of kernels, is neither counted nor part of the budget.
    """
    times: dict[str, list[float]] = {name: [] for name in parts}
    deadline, rounds = float("inf"), 0
    while rounds <= least_rounds or time.perf_counter() < deadline:
        for name, part in parts.items():
            _synchronize(device)
            started = time.perf_counter()
            part()
            _synchronize(device)
            times[name].append(time.perf_counter() - started)
        if rounds == 0:
            deadline = time.perf_counter() + seconds
        rounds += 1
    return {name: values[1:] for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_latency(
    model: nn.Module, height: int, width: int, batch_size: int = 1, repeats: int = 5
) -> dict[str, float]:
    """Median seconds of `encode` and `decode` for a batch of random images on the device the model is on.

    Returns:
        `encode_s`, `decode_s` (medians over `repeats` after one warm-up), `encode_images_per_second`,
        `decode_images_per_second`, `images_per_second` of both together, and on CUDA `peak_memory_bytes`.
    """
    parameter = next(model.parameters())
    device = parameter.device
    images = torch.rand(batch_size, 3, height, width, device=device, dtype=parameter.dtype) * 2 - 1
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        latent = adapt(model).encode(images)
        parts = {"encode": partial(adapt(model).encode, images), "decode": partial(adapt(model).decode, latent)}
        times = time_in_turns(parts, device, least_rounds=repeats)
    result = {f"{part}_s": statistics.median(values) for part, values in times.items()}
    for part in parts:
        result[f"{part}_images_per_second"] = batch_size / result[f"{part}_s"]
    result["images_per_second"] = batch_size / (result["encode_s"] + result["decode_s"])
    if device.type == "cuda":
        result["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    return result
