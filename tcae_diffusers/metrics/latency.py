"""How long an autoencoder takes on the device that it is on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from ..models.adapters import adapt


def measure_latency(
    model: nn.Module, height: int, width: int, batch_size: int = 1, repeats: int = 5
) -> dict[str, float]:
    """Median seconds of `encode` and `decode` for a batch of random images on the device the model is on.

    Returns:
        `encode_s`, `decode_s` (medians over `repeats` after one warm-up), `encode_images_per_second`,
        `decode_images_per_second`, `images_per_second` of both together, and on CUDA `peak_memory_bytes`.
    """
    parameter = next(model.parameters())
    is_cuda = parameter.device.type == "cuda"
    images = torch.rand(batch_size, 3, height, width, device=parameter.device, dtype=parameter.dtype) * 2 - 1
    times: dict[str, list[float]] = {"encode_s": [], "decode_s": []}
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()

    def timed(name: str, function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = function(batch)
        if is_cuda:
            torch.cuda.synchronize()
        times[name].append(time.perf_counter() - start)
        return out

    with torch.inference_mode():
        for _ in range(repeats + 1):
            latent = timed("encode_s", adapt(model).encode, images)
            timed("decode_s", adapt(model).decode, latent)
    result = {name: statistics.median(values[1:]) for name, values in times.items()}
    for part in ("encode", "decode"):
        result[f"{part}_images_per_second"] = batch_size / result[f"{part}_s"]
    result["images_per_second"] = batch_size / (result["encode_s"] + result["decode_s"])
    if is_cuda:
        result["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return result
