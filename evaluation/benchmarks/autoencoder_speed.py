"""Encode and decode at 256x256: TC-AE against DC-AE f32c128 in its faster memory format, in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from ..autoencoder_access import decode_latent, encode_to_latent
from ..cost import AUTOENCODER_DC_F32C128, autoencoder_cost

DESCRIPTION = "encode + decode at 256x256, batch 1: tc-ae-f32c128 against AutoencoderDC f32c128"

_RESOLUTION = 256


def _matmul_rate(size: int = 1024, repeats: int = 20) -> float:
    """Multiply-accumulates per second of a square matrix product, the machine's own yardstick."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return repeats * size**3 / (time.perf_counter() - start)


def run(seconds: float) -> dict[str, Any]:
    """Medians over as many rounds as fit into `seconds`, at least two."""
    from diffusers import AutoencoderDC

    from tcae_diffusers.models.autoencoder_tc import AutoencoderTC

    candidates = {
        "tc-ae-f32c128": AutoencoderTC.from_preset("tc-ae-f32c128").eval(),
        # Convolutions on a CPU are faster in channels_last; the baseline gets its better format.
        "dc-ae-f32c128": AutoencoderDC(**AUTOENCODER_DC_F32C128).eval().to(memory_format=torch.channels_last),
    }
    macs = {name: autoencoder_cost(model, _RESOLUTION, _RESOLUTION).total_macs for name, model in candidates.items()}
    images = torch.rand(1, 3, _RESOLUTION, _RESOLUTION) * 2 - 1
    times: dict[str, list[float]] = {f"{name} {part}": [] for name in candidates for part in ("encode", "decode")}
    deadline, rounds, rates = time.perf_counter() + seconds, 0, []
    with torch.inference_mode():
        while rounds < 3 or time.perf_counter() < deadline:
            rates.append(_matmul_rate())
            for name, model in candidates.items():
                memory_format = torch.channels_last if name.startswith("dc") else torch.contiguous_format
                pixels = images.to(memory_format=memory_format)
                start = time.perf_counter()
                latent = encode_to_latent(model, pixels)
                middle = time.perf_counter()
                decode_latent(model, latent)
                times[f"{name} encode"].append(middle - start)
                times[f"{name} decode"].append(time.perf_counter() - middle)
            rounds += 1
    # The first round pays for allocation and kernel selection.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    totals = {name: medians[f"{name} encode"] + medians[f"{name} decode"] for name in candidates}
    rate = statistics.median(rates)
    table: dict[str, Any] = {"threads": float(torch.get_num_threads()), "rounds": float(rounds - 1)}
    table |= {f"{name} (s)": value for name, value in medians.items()}
    table |= {f"{name} encode + decode (s)": value for name, value in totals.items()}
    table["speed-up of TC-AE"] = totals["dc-ae-f32c128"] / totals["tc-ae-f32c128"]
    table["ratio of MACs"] = macs["dc-ae-f32c128"] / macs["tc-ae-f32c128"]
    table |= {f"{name} share of 1024-matmul rate": macs[name] / totals[name] / rate for name in candidates}
    return table
