"""What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters, activation memory, latency.

The paper (TC-AE, arXiv 2604.07340) compares autoencoders by the MACs of encoder plus decoder at 256x256, products of
attention included: 164 GMAC for TC-AE, 607 GMAC for DC-AE f32. Counting runs on the `meta` device: full-size models
take no memory and no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json
from tcae_diffusers.metrics.activation_memory import peak_inference_bytes, saved_training_bytes
from tcae_diffusers.metrics.mac_counter import count_macs
from tcae_diffusers.models.adapters import check_image_size, decode_latent, encode_to_latent, load_autoencoder
from tcae_diffusers.models.named_models import (
    AUTOENCODER_DC_F32C128,
    OTHER_AUTOENCODERS,
    build_named_autoencoder,
    build_transformer,
)

from ..results.provenance import provenance

__all__ = ["AUTOENCODER_DC_F32C128", "autoencoder_cost", "build_named_autoencoder", "measure_latency"]


@dataclass
class AutoencoderCost:
    """Cost of one image through an autoencoder.

    Args:
        encode_macs, decode_macs (`int`): Multiply-accumulates, products of attention included.
        encode_by_operator, decode_by_operator (`dict[str, int]`): The same, split into matmul, convolution, attention.
        parameters (`int`): Parameters of the whole model. `latent_shape` (`tuple`): `(c, h, w)`.
        height, width (`int`): Image size in pixels that was counted.
        encode_peak_bytes, decode_peak_bytes, saved_training_bytes (`int`): Activations, see [`activation_memory`].
    """

    height: int
    width: int
    encode_macs: int
    decode_macs: int
    encode_by_operator: dict[str, int]
    decode_by_operator: dict[str, int]
    parameters: int
    latent_shape: tuple[int, ...]
    encode_peak_bytes: int
    decode_peak_bytes: int
    saved_training_bytes: int

    @property
    def total_macs(self) -> int:
        return self.encode_macs + self.decode_macs


def on_meta_device(model: nn.Module) -> nn.Module:
    """A weightless twin of a diffusers model on the `meta` device (the model itself if it is there already)."""
    if all(parameter.is_meta for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        return type(model).from_config(model.config).eval()


def autoencoder_cost(model: nn.Module, height: int = 256, width: int = 256) -> AutoencoderCost:
    """Counts one image through `encode` and `decode` of any diffusers autoencoder, without computing anything.

    Args:
        model: The autoencoder, on any device; a twin on `meta` is what runs.
        height, width: Image size, multiples of the compression ratio.

    Raises:
        InputError: If the size does not fit the compression ratio.
    """
    check_image_size(model, height, width)
    twin = on_meta_device(model)
    dtype = next(twin.parameters()).dtype
    images = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    with torch.no_grad():
        latent = encode_to_latent(twin, images)
    encode = count_macs(encode_to_latent, twin, images)
    decode = count_macs(decode_latent, twin, latent)

    def both(pixels):
        return decode_latent(twin, encode_to_latent(twin, pixels))

    return AutoencoderCost(
        height=height,
        width=width,
        encode_macs=encode.total,
        decode_macs=decode.total,
        encode_by_operator=encode.by_operator,
        decode_by_operator=decode.by_operator,
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        latent_shape=tuple(latent.shape[1:]),
        encode_peak_bytes=peak_inference_bytes(twin, lambda x: encode_to_latent(twin, x), images),
        decode_peak_bytes=peak_inference_bytes(twin, lambda z: decode_latent(twin, z), latent),
        saved_training_bytes=saved_training_bytes(twin, both, images),
    )


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

    def timed(name: str, function, *args):
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = function(*args)
        if is_cuda:
            torch.cuda.synchronize()
        times[name].append(time.perf_counter() - start)
        return out

    with torch.inference_mode():
        for _ in range(repeats + 1):
            latent = timed("encode_s", encode_to_latent, model, images)
            timed("decode_s", decode_latent, model, latent)
    result = {name: statistics.median(values[1:]) for name, values in times.items()}
    for part in ("encode", "decode"):
        result[f"{part}_images_per_second"] = batch_size / result[f"{part}_s"]
    result["images_per_second"] = batch_size / (result["encode_s"] + result["decode_s"])
    if is_cuda:
        result["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return result


@dataclass
class TransformerCost:
    """Cost of one step of a diffusion transformer for one image, without guidance (which doubles it).

    Args:
        macs, by_operator, parameters: As in [`AutoencoderCost`]. latent_shape (`tuple`): `(c, h, w)`.
        peak_inference_bytes, saved_training_bytes (`int`): See [`activation_memory`].
    """

    latent_shape: tuple[int, ...]
    macs: int
    by_operator: dict[str, int]
    parameters: int
    peak_inference_bytes: int
    saved_training_bytes: int


def transformer_cost(model: nn.Module, latent_shape: tuple[int, int, int]) -> TransformerCost:
    """Counts one call of a class-conditional transformer with the signature of diffusers' DiT.

    Raises:
        InputError: If the model takes another number of channels or other inputs.
    """
    twin = on_meta_device(model)
    dtype = next(twin.parameters()).dtype
    latent = torch.empty(1, *latent_shape, device="meta", dtype=dtype)
    conditions = {
        "timestep": torch.zeros(1, dtype=torch.long, device="meta"),
        "class_labels": torch.zeros(1, dtype=torch.long, device="meta"),
    }
    channels = twin.config.get("in_channels")
    if channels != latent_shape[0]:
        raise InputError(f"{type(twin).__name__} takes {channels} channels, --latent_shape has {latent_shape[0]}")

    def step(hidden):
        return twin(hidden, **conditions)

    try:
        count = count_macs(step, latent)
    except TypeError as error:
        raise InputError(f"{type(twin).__name__} is not called like a DiT: {error}") from error
    return TransformerCost(
        latent_shape=tuple(latent_shape),
        macs=count.total,
        by_operator=count.by_operator,
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        peak_inference_bytes=peak_inference_bytes(twin, step, latent),
        saved_training_bytes=saved_training_bytes(twin, step, latent),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "autoencoder",
        nargs="*",
        default=["tc-ae-f32c128", *OTHER_AUTOENCODERS],
        help=f"saved folders, TC-AE presets, {', '.join(OTHER_AUTOENCODERS)}, or presets for all TC-AE presets "
        "(default: the paper's TC-AE and the others)",
    )
    parser.add_argument("--height", type=int, default=256, help="image height in pixels (default: 256)")
    parser.add_argument("--width", type=int, default=256, help="image width in pixels (default: 256)")
    parser.add_argument(
        "--transformer",
        action="append",
        default=[],
        help="also a diffusion transformer: saved folder, pipeline folder, TC-DiT preset or dit-xl (repeatable)",
    )
    parser.add_argument(
        "--latent_shape",
        type=int,
        nargs=3,
        default=[128, 8, 8],
        metavar=("C", "H", "W"),
        help="of --transformer (default: 128 8 8)",
    )
    parser.add_argument("--latency", action="store_true", help="also run here (named models with random weights)")
    parser.add_argument("--batch_size", type=int, default=1, help="images at a time of --latency (default: 1)")
    parser.add_argument("--device", default="cpu", help="device of --latency (default: cpu)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")


def _print_autoencoder(name: str, cost: AutoencoderCost) -> None:
    latent = "x".join(map(str, cost.latent_shape))
    peak = max(cost.encode_peak_bytes, cost.decode_peak_bytes) / 2**20
    print(
        f"{name[-28:]:28} {cost.encode_macs / 1e9:8.2f}G {cost.decode_macs / 1e9:8.2f}G {cost.total_macs / 1e9:8.2f}G "
        f"{cost.parameters / 1e6:9.2f}M {peak:9.0f}M {cost.saved_training_bytes / 2**20:9.0f}M  {latent}"
    )


def _print_transformer(name: str, cost: TransformerCost) -> None:
    print(
        f"{name[-28:]:28} {cost.macs / 1e9:8.2f}G per step, {cost.parameters / 1e6:.2f}M parameters, activations "
        f"{cost.peak_inference_bytes / 2**20:.1f}M, kept for training {cost.saved_training_bytes / 2**20:.0f}M"
    )


def run(args: argparse.Namespace) -> int:
    from tcae_diffusers import AUTOENCODER_TC_PRESETS

    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size} must be at least 1")
    names = [part for name in args.autoencoder for part in (AUTOENCODER_TC_PRESETS if name == "presets" else [name])]
    rows: dict[str, Any] = {}
    heads = ("encode", "decode", "total", "parameters", "inference", "training")
    print(f"{'autoencoder':28} " + " ".join(f"{head:>10}" for head in heads), f" latent at {args.height}x{args.width}")
    for name in dict.fromkeys(names):
        is_folder = Path(name).exists()
        model = load_autoencoder(name, args.device) if is_folder else build_named_autoencoder(name)
        cost = autoencoder_cost(model, args.height, args.width)
        rows[name] = {**asdict(cost), "total_macs": cost.total_macs}
        _print_autoencoder(name, cost)
        if args.latency:
            model = model if is_folder else build_named_autoencoder(name, args.device)
            rows[name]["latency"] = measure_latency(model, args.height, args.width, args.batch_size)
            print("   ", "  ".join(f"{key} {value:.4g}" for key, value in rows[name]["latency"].items()))
    transformers = {}
    for name in args.transformer:
        cost = transformer_cost(build_transformer(name, tuple(args.latent_shape)), tuple(args.latent_shape))
        transformers[name] = asdict(cost)
        _print_transformer(name, cost)
    print("MACs (multiply-accumulates) of one image, products of attention included. inference: largest sum of")
    print(
        "intermediate tensors alive at once; training: what autograd keeps. MiB in the weights' precision, one image."
    )
    if args.output:
        result = {"kind": "cost", "height": args.height, "width": args.width, "autoencoders": rows}
        settings = {"batch_size": args.batch_size, "device": args.device}
        write_json(args.output, {**result, "transformers": transformers, **provenance(**settings)})
    return 0
