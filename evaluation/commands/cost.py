"""What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters, activation memory, latency.

The paper (TC-AE, arXiv 2604.07340) compares autoencoders by the MACs of encoder plus decoder at 256x256, products of
attention included: 164 GMAC for TC-AE, 607 GMAC for DC-AE f32. Counting runs on the `meta` device: full-size models
take no memory and no time.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json
from tcae_diffusers.metrics.latency import measure_latency
from tcae_diffusers.metrics.model_cost import AutoencoderCost, TransformerCost, autoencoder_cost, transformer_cost
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.named_models import OTHER_AUTOENCODERS, build_named_autoencoder, build_transformer

from ..results.provenance import provenance


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
