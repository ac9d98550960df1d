"""The shape of a latent space: does it use its channels, how does it move with the image, what does noise in it cost?

Channel statistics come from all positions of all images; equivariance asks whether the latent of a moved image is the
moved latent; the noise curve decodes latents with Gaussian noise of growing size, which is what a diffusion model's
errors will cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm

from tcae_diffusers.data.distributed import gather_in_rank_order, rank_range
from tcae_diffusers.data.images.image_sets import (
    EvenlySpacedImages,
    ImageSet,
    open_data_source,
    to_signed_unit,
    to_uint8,
    uint8_batches,
)
from tcae_diffusers.data.sample_labels import image_seed
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.frechet import FrechetStatistics
from tcae_diffusers.metrics.grouped_moments import StreamedFrechet
from tcae_diffusers.metrics.image_similarity import psnr
from tcae_diffusers.metrics.latent_shape import channel_figures
from tcae_diffusers.metrics.names import metric_name
from tcae_diffusers.models.adapters import (
    check_image_size,
    decode_latent,
    encode_to_latent,
    image_size,
    load_autoencoder,
    spatial_ratio,
)
from tcae_diffusers.models.fingerprint import model_fingerprint

from ..pictures.component_pictures import component_sheet
from ..results.provenance import provenance
from .reconstruction import spread_indices

NOISE_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


def latent_motions(ratio: int) -> dict[str, tuple[Any, Any]]:
    """Motions as `(on images, on latents)`; a shift by one latent position is `ratio` pixels."""
    return {
        "flip": (lambda x: x.flip(-1), lambda z: z.flip(-1)),
        "quarter turn": (lambda x: x.rot90(1, (-2, -1)), lambda z: z.rot90(1, (-2, -1))),
        "shift by one position": (lambda x: x.roll(ratio, -1), lambda z: z.roll(1, -1)),
    }


def _matches(queries: torch.Tensor, keys: torch.Tensor) -> tuple[float, float]:
    """Mean cosine of pairs, and the share of queries whose nearest key is their own pair."""
    queries, keys = (F.normalize(part.flatten(1).float(), dim=1) for part in (queries, keys))
    similarity = queries @ keys.T
    own = torch.arange(len(keys), device=keys.device)
    return similarity.diagonal().mean().item(), (similarity.argmax(dim=1) == own).float().mean().item()


@torch.inference_mode()
def equivariance(model: nn.Module, images: ImageSet, batch_size: int = 32, noise: float = 0.05) -> dict[str, dict]:
    """How the latent moves with the image, for a flip, a turn, a shift and noise on the pixels.

    Args:
        noise: Standard deviation of the noise, in the [-1, 1] range of pixels.

    Returns:
        Per motion `cosine`, between the latent of the moved image and the moved latent, and `nearest`, the share of
        images whose latent finds its own pair among all others.
    """
    parameter = next(model.parameters())
    motions = latent_motions(spatial_ratio(model))
    generator = torch.Generator().manual_seed(0)
    pairs: dict[str, tuple[list, list]] = {name: ([], []) for name in [*motions, f"pixel noise {noise}"]}

    def encode(pixels):
        latent = encode_to_latent(model, pixels.to(parameter.device, parameter.dtype))
        return latent.float().cpu()

    for batch in uint8_batches(images, batch_size):
        pixels = to_signed_unit(batch)
        latent = encode(pixels)
        for name, (on_image, on_latent) in motions.items():
            pairs[name][0].append(encode(on_image(pixels)))
            pairs[name][1].append(on_latent(latent))
        noisy = pixels + noise * torch.randn(pixels.shape, generator=generator)
        pairs[f"pixel noise {noise}"][0].append(encode(noisy))
        pairs[f"pixel noise {noise}"][1].append(latent)
    result = {}
    for name, (moved, expected) in pairs.items():
        moved, expected = torch.cat(moved), torch.cat(expected)
        # A mean that all latents share would flatter every cosine.
        mean = expected.mean(dim=(0, 2, 3), keepdim=True)
        cosine, nearest = _matches(moved - mean, expected - mean)
        result[name] = {"cosine": cosine, "nearest": nearest}
    return result


@torch.inference_mode()
def evaluate_latents(
    model: nn.Module,
    images: ImageSet,
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    noise_levels: tuple[float, ...] = NOISE_LEVELS,
    motion_images: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """All diagnostics of one autoencoder on one image set.

    Args:
        model, images, network: As in [`reconstruction.evaluate_reconstruction`].
        noise_levels: Sizes of the noise in units of each channel's standard deviation.
        motion_images: Images of the equivariance measures, evenly spaced (they keep all latents in memory).
        seed: Of the noise; every image has its own.

    Returns:
        `channels` ([`channel_figures`]), `equivariance` ([`equivariance`]), `noise` (PSNR and Fréchet distance per
        level).
    """
    if len(images) < 2:
        raise InputError(f"{images.name} holds {len(images)} image, too few to evaluate; at least 2 are needed")
    check_image_size(model, *images[0].shape[:2])
    state = PartialState()
    parameter = next(model.parameters())
    indices = rank_range(len(images), state.process_index, state.num_processes)
    hidden = not (progress and state.is_main_process)

    moments: FrechetStatistics | None = None
    with tqdm(total=len(indices), desc="latent statistics", unit="image", disable=hidden) as bar:
        for batch in uint8_batches(images, batch_size, indices):
            latent = encode_to_latent(model, to_signed_unit(batch.to(parameter.device)).to(parameter.dtype))
            moments = moments or FrechetStatistics(latent.shape[1])
            moments.update(latent.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy())
            bar.update(len(batch))
    gathered = [part for part in gather_in_rank_order(moments, state) if part is not None]
    moments = gathered[0]
    for part in gathered[1:]:
        moments.merge(part)
    channels = channel_figures(moments)

    std = torch.tensor(channels["channel_std"]).view(1, -1, 1, 1)
    noise = _noise_curve(model, images, network, batch_size, noise_levels, std, seed, hidden)
    subset = images if len(images) <= motion_images else EvenlySpacedImages(images, motion_images)
    return {"channels": channels, "equivariance": equivariance(model, subset, batch_size), "noise": noise}


def _noise_curve(model, images, network, batch_size, noise_levels, std, seed, hidden) -> list[dict[str, Any]]:
    """Decodes noisy latents: mean PSNR against, and Fréchet distance to, the originals at every level."""
    state, parameter = PartialState(), next(model.parameters())
    indices = rank_range(len(images), state.process_index, state.num_processes)
    totals = np.zeros(len(noise_levels))
    # Moments per group and level would not stay below a few GB: no intervals here.
    streams = [StreamedFrechet(network.dimensions, len(images), False) for _ in noise_levels] if network else []
    with tqdm(total=len(indices) * len(noise_levels), desc="noise in the latent", unit="image", disable=hidden) as bar:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            (originals,) = uint8_batches(images, batch_size, chosen)
            originals = originals.to(parameter.device)
            latent = encode_to_latent(model, to_signed_unit(originals).to(parameter.dtype))
            generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in chosen]
            noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in generators])
            noise = (noise * std).to(latent)
            features = network(originals)["features"].numpy() if network else None
            for level_index, level in enumerate(noise_levels):
                output = to_uint8(decode_latent(model, latent + level * noise))
                totals[level_index] += psnr(originals, output).sum().item()
                if network:
                    streams[level_index].update(features, network(output)["features"].numpy(), chosen)
                bar.update(len(chosen))
    totals = sum(gather_in_rank_order(totals, state))
    curve = []
    for level_index, level in enumerate(noise_levels):
        point = {"level": level, "psnr": float(totals[level_index] / len(images))}
        if network:
            name = metric_name("FID", network.name, len(images), prefix="r")
            point[name], _ = streams[level_index].result(state)
        curve.append(point)
    return curve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--autoencoder", required=True, help="saved folder, pipeline folder or Hub name")
    parser.add_argument("--data", required=True, help="openmoji:heldout, datasets:NAME:SPLIT or a folder of images")
    parser.add_argument("--resolution", type=int, help="image side in pixels (default: the model's sample_size)")
    parser.add_argument("--max_images", type=int, help="use only this many images, evenly spaced (default: all)")
    parser.add_argument(
        "--extractor",
        default=EFFICIENTNET_LITE0,
        choices=[*EXTRACTORS, "none"],
        help="feature network of the noise curve (default: %(default)s)",
    )
    parser.add_argument("--extractor_weights", type=Path, help="weights of the feature network")
    parser.add_argument(
        "--noise_levels", type=float, nargs="+", default=list(NOISE_LEVELS), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument("--output", type=Path, required=True, help="folder for latents.json and a picture")


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size} must be at least 1")
    if min(args.noise_levels) < 0:
        raise InputError(f"--noise_levels {args.noise_levels} must not be negative")
    state = PartialState(cpu=args.device == "cpu")
    device = args.device or state.device
    model = load_autoencoder(args.autoencoder, device)
    resolution = args.resolution or image_size(model)
    images: ImageSet = open_data_source(args.data, resolution)
    if args.max_images and args.max_images < len(images):
        images = EvenlySpacedImages(images, args.max_images)
    network = None if args.extractor == "none" else FeatureNetwork(args.extractor, args.extractor_weights, device)
    result = evaluate_latents(model, images, network, args.batch_size, tuple(args.noise_levels), seed=args.seed)
    if not state.is_main_process:
        return 0
    sheet, rows = component_sheet(model, images, spread_indices(images, 12))
    write_atomically(args.output / "latent_components.png", sheet)
    write_json(
        args.output / "latents.json",
        {
            "kind": "latents",
            **result,
            "picture": "latent_components.png",
            "picture_rows": rows,
            "autoencoder": {"path": args.autoencoder, "class": type(model).__name__, **model_fingerprint(model)},
            "data": {"spec": args.data, "images": len(images), "attribution": images.attribution},
            **provenance(seed=args.seed, resolution=resolution, ranks=state.num_processes),
        },
    )
    channels = result["channels"]
    print(f"effective rank {channels['effective_rank']:.1f} of {channels['channels']} channels, isotropy ", end="")
    print(f"{channels['isotropy']:.3f}, dead channels {len(channels['dead_channels'])}")
    for name, values in result["equivariance"].items():
        print(f"{name}: cosine {values['cosine']:.3f}, finds itself {values['nearest']:.1%}")
    for point in result["noise"]:
        print("  ".join(f"{key} {value:.4g}" for key, value in point.items()))
    return 0
