"""What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters, latency.

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

from .autoencoder_access import check_image_size, decode_latent, encode_to_latent, load_autoencoder
from .errors import EvaluationError
from .mac_counter import count_macs

# diffusers' AutoencoderDC as DC-AE publishes it for ImageNet (the layout of dc-ae-f32c32-in-1.0: 323 M parameters),
# with 128 latent channels, which is what TC-AE's 607 GMAC baseline is.
AUTOENCODER_DC_F32C128: dict[str, Any] = {
    "latent_channels": 128,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [0, 4, 8, 2, 2, 2],
    "decoder_layers_per_block": [0, 5, 10, 2, 2, 2],
    "encoder_qkv_multiscales": [[]] * 6,
    "decoder_qkv_multiscales": [[]] * 6,
    "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3,
    "decoder_act_fns": ["relu"] * 3 + ["silu"] * 3,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
}

# Stable Diffusion's AutoencoderKL f8, the autoencoder that most people know.
AUTOENCODER_KL_F8: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@dataclass
class AutoencoderCost:
    """Cost of one image through an autoencoder.

    Args:
        encode_macs, decode_macs (`int`): Multiply-accumulates, products of attention included.
        encode_by_operator, decode_by_operator (`dict[str, int]`): The same, split into matmul, convolution, attention.
        parameters (`int`): Parameters of the whole model. `latent_shape` (`tuple`): `(c, h, w)`.
        height, width (`int`): Image size in pixels that was counted.
    """

    height: int
    width: int
    encode_macs: int
    decode_macs: int
    encode_by_operator: dict[str, int]
    decode_by_operator: dict[str, int]
    parameters: int
    latent_shape: tuple[int, ...]

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
        EvaluationError: If the size does not fit the compression ratio.
    """
    check_image_size(model, height, width)
    twin = on_meta_device(model)
    dtype = next(twin.parameters()).dtype
    images = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    with torch.no_grad():
        latent = encode_to_latent(twin, images)
    encode = count_macs(encode_to_latent, twin, images)
    decode = count_macs(decode_latent, twin, latent)
    return AutoencoderCost(
        height=height,
        width=width,
        encode_macs=encode.total,
        decode_macs=decode.total,
        encode_by_operator=encode.by_operator,
        decode_by_operator=decode.by_operator,
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        latent_shape=tuple(latent.shape[1:]),
    )


def measure_latency(
    model: nn.Module, height: int, width: int, batch_size: int = 1, repeats: int = 5
) -> dict[str, float]:
    """Median seconds of `encode` and `decode` for a batch of random images on the device the model is on.

    Returns:
        `encode_s`, `decode_s` (medians over `repeats` after one warm-up), `images_per_second` of both together, and on
        CUDA `peak_memory_bytes`.
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
    result["images_per_second"] = batch_size / (result["encode_s"] + result["decode_s"])
    if is_cuda:
        result["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return result


def build_named_autoencoder(name: str) -> nn.Module:
    """An autoencoder without weights on the `meta` device: a TC-AE preset, `dc-ae-f32c128` or `kl-f8`."""
    import diffusers

    import tcae_diffusers
    from tcae_diffusers.models.autoencoder_tc import AutoencoderTC

    others = {
        "dc-ae-f32c128": (diffusers.AutoencoderDC, AUTOENCODER_DC_F32C128),
        "kl-f8": (diffusers.AutoencoderKL, AUTOENCODER_KL_F8),
    }
    with torch.device("meta"):
        if name in others:
            model_class, config = others[name]
            return model_class(**config).eval()
        if name in tcae_diffusers.AUTOENCODER_TC_PRESETS:
            return AutoencoderTC.from_preset(name).eval()
    known = ", ".join([*tcae_diffusers.AUTOENCODER_TC_PRESETS, *others])
    raise EvaluationError(f"unknown autoencoder {name!r}; expected a saved folder or one of: {known}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "autoencoder",
        nargs="*",
        default=["tc-ae-f32c128", "dc-ae-f32c128", "kl-f8"],
        help="saved folders, TC-AE presets, dc-ae-f32c128 or kl-f8 (default: one of each)",
    )
    parser.add_argument("--height", type=int, default=256, help="image height in pixels (default: 256)")
    parser.add_argument("--width", type=int, default=256, help="image width in pixels (default: 256)")
    parser.add_argument("--latency", action="store_true", help="also time saved folders on this machine, batch 1")
    parser.add_argument("--device", default="cpu", help="device of --latency (default: cpu)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")


def run(args: argparse.Namespace) -> int:
    from .provenance import describe_machine, library_versions, write_json

    rows = {}
    print(
        f"{'autoencoder':28} {'encode':>9} {'decode':>9} {'total':>9}  {'parameters':>11}  latent at "
        f"{args.height}x{args.width}"
    )
    for name in args.autoencoder:
        is_folder = Path(name).exists()
        model = load_autoencoder(name, args.device) if is_folder else build_named_autoencoder(name)
        cost = autoencoder_cost(model, args.height, args.width)
        rows[name] = {**asdict(cost), "total_macs": cost.total_macs}
        latent = "x".join(map(str, cost.latent_shape))
        print(
            f"{name[-28:]:28} {cost.encode_macs / 1e9:8.2f}G {cost.decode_macs / 1e9:8.2f}G "
            f"{cost.total_macs / 1e9:8.2f}G  {cost.parameters / 1e6:10.2f}M  {latent}"
        )
        if args.latency and is_folder:
            rows[name]["latency"] = measure_latency(model, args.height, args.width)
            print("   ", "  ".join(f"{key} {value:.4g}" for key, value in rows[name]["latency"].items()))
    print("MACs (multiply-accumulates) of one image, products of attention included.")
    if args.output:
        result = {"kind": "cost", "height": args.height, "width": args.width, "autoencoders": rows}
        write_json(args.output, result | {"versions": library_versions(), "machine": describe_machine()})
    return 0
