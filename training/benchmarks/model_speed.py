"""Where the time of `tc-ae-f32c128` goes at 256x256: memory layouts, fused projections, kernels, and DC-AE beside it.

docs/model_speed.md says what was found.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.adapters import AutoencoderAdapter, adapt
from tcae_diffusers.models.named_models import AUTOENCODER_DC_F32C128
from tcae_diffusers.models.token_linear import disable_fast_cpu_linear, enable_fast_cpu_linear
from tcae_diffusers.training.bench_arguments import BenchArguments

if TYPE_CHECKING:
    from tcae_diffusers.models.tcae.autoencoder_tc import AutoencoderTC

DESCRIPTION = "encode + decode at 256x256, fp32: effect of layouts, fusing and kernels, compared with DC-AE f32c128"

_RESOLUTION = 256
_LEAST_ROUNDS = 3


@contextmanager
def _fast_cpu_linear(model: torch.nn.Module) -> Iterator[None]:
    enable_fast_cpu_linear(model)
    try:
        yield
    finally:
        disable_fast_cpu_linear(model)


@contextmanager
def _fused(model: AutoencoderTC) -> Iterator[None]:
    model.fuse_qkv_projections()
    try:
        yield
    finally:
        model.unfuse_qkv_projections()


@contextmanager
def _in_format(model: torch.nn.Module, memory_format: torch.memory_format) -> Iterator[None]:
    model.to(memory_format=memory_format)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)


def _reconstruct(adapter: AutoencoderAdapter, pixels: torch.Tensor) -> torch.Tensor:
    return adapter.decode(adapter.encode(pixels))


def _seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds for each thread, of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, (time.process_time() - processor) / torch.get_num_threads()


def run(arguments: BenchArguments, threads: int = 2) -> dict[str, Any]:
    """
    Times every variant once per round, in turns, for at least three rounds; the first is not counted.

    Args:
        arguments: `seconds` is the time budget.
        threads: Threads of PyTorch during the benchmark.

    Returns:
        A flat table. `(s)` is the median wall-clock time of encode plus decode of one image, `best` the shortest one,
        and `processor` the median CPU time per thread, which suffers less from what else runs on the machine. The
        speed-ups are against DC-AE in its faster memory format; the share is of this machine's rate at multiplying
        1024x1024 matrices, measured in the same rounds.
    """
    from diffusers import AutoencoderDC

    from tcae_diffusers.models.tcae.autoencoder_tc import AutoencoderTC

    models = {
        "tc-ae": AutoencoderTC.from_preset("tc-ae-f32c128").eval(),
        "dc-ae": AutoencoderDC(**AUTOENCODER_DC_F32C128).eval(),
    }
    macs = {name: autoencoder_cost(model, _RESOLUTION, _RESOLUTION).total_macs for name, model in models.items()}
    tc_ae, channels_last = models["tc-ae"], torch.channels_last
    variants: dict[str, tuple[str, Callable[[], Any], torch.memory_format]] = {
        "tc-ae": ("tc-ae", nullcontext, torch.contiguous_format),
        "tc-ae, channels_last": ("tc-ae", lambda: _in_format(tc_ae, channels_last), channels_last),
        "tc-ae, fused projections": ("tc-ae", lambda: _fused(tc_ae), torch.contiguous_format),
        "tc-ae, fast CPU linear": ("tc-ae", lambda: _fast_cpu_linear(tc_ae), torch.contiguous_format),
        "dc-ae, contiguous": ("dc-ae", nullcontext, torch.contiguous_format),
        "dc-ae, channels_last": ("dc-ae", lambda: _in_format(models["dc-ae"], channels_last), channels_last),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*variants, "matmul")}
    images = torch.rand(1, 3, _RESOLUTION, _RESOLUTION) * 2 - 1
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    threads_before, deadline, rounds = torch.get_num_threads(), time.perf_counter() + arguments.seconds, 0
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            while rounds <= _LEAST_ROUNDS or time.perf_counter() < deadline:
                times["matmul"].append(_seconds(lambda: [a @ b for _ in range(20)]))
                for name, (model_name, context, memory_format) in variants.items():
                    adapter, pixels = adapt(models[model_name]), images.to(memory_format=memory_format)
                    with context():
                        times[name].append(_seconds(functools.partial(_reconstruct, adapter, pixels)))
                rounds += 1
    finally:
        torch.set_num_threads(threads_before)
    return _table(variants, times, macs, threads)


def _table(
    variants: dict[str, Any], times: dict[str, list[tuple[float, float]]], macs: dict[str, int], threads: int
) -> dict[str, Any]:
    # The first round pays for allocation and the choice of kernels.
    measures = {
        name: {
            "": statistics.median(wall for wall, _ in values[1:]),
            " best": min(wall for wall, _ in values[1:]),
            " processor": statistics.median(processor for _, processor in values[1:]),
        }
        for name, values in times.items()
    }
    table: dict[str, Any] = {"threads": float(threads), "rounds": float(len(times["matmul"]) - 1)}
    for name in variants:
        for measure, value in measures[name].items():
            table[f"{name}{measure} (s)"] = value
    table["ratio of MACs"] = macs["dc-ae"] / macs["tc-ae"]
    for measure in ("", " best", " processor"):
        baseline = min(measures[name][measure] for name in variants if name.startswith("dc-ae"))
        for name in ("tc-ae", "tc-ae, fast CPU linear"):
            table[f"speed-up of {name}{measure}"] = baseline / measures[name][measure]
    for measure in ("", " best", " processor"):
        rate = 20 * 1024**3 / measures["matmul"][measure]
        for name in ("tc-ae", "tc-ae, fast CPU linear", "dc-ae, channels_last"):
            model = name.split(",")[0]
            table[f"{name}, share of the matmul rate{measure}"] = macs[model] / measures[name][measure] / rate
    return table
