"""How well does an autoencoder give back images that it has not seen? PSNR, SSIM, MS-SSIM, LPIPS, Fréchet distance.

Works for any autoencoder of diffusers.

Streaming: one batch is in memory at a time, feature moments are accumulated, so 50,000 images cost what 100 do.
Reconstructions are judged as what a viewer would see: rounded and clamped to uint8 ([`image_sets.to_uint8`]).
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json
from tcae_diffusers.metrics.confidence import JACKKNIFE, MEAN_OF_IMAGES
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.grouped_moments import StreamedFrechet
from tcae_diffusers.metrics.image_similarity import ms_ssim_scales, psnr, structural_similarities
from tcae_diffusers.metrics.names import metric_name
from tcae_diffusers.models.adapters import (
    check_image_size,
    decode_latent,
    encode_to_latent,
    image_size,
    load_autoencoder,
)
from tcae_diffusers.models.fingerprint import model_fingerprint
from tcae_diffusers.objectives.perceptual import LPIPS_BACKBONES, LPIPSLoss

from ..pictures.contact_sheet import contact_sheet, png_bytes
from ..results.provenance import provenance

_BASELINE_IMAGES = 1000


@dataclass
class ReconstructionResult:
    """Figures of one autoencoder on one image set.

    Args:
        figures (`list[dict]`): Each with `name`, `value`, `samples`, `better` (`higher` or `lower`) and, where known,
            `interval` (half width of the 95 % confidence interval of the mean), `baseline`, `extractor`.
        per_image (`dict[str, np.ndarray]`): `psnr`, `ssim`, `ms_ssim` and, where asked for, `lpips`, each `(N,)` in
            the order of the set.
        latent_shape (`tuple[int, ...]`): `(c, h, w)`.
    """

    figures: list[dict[str, Any]]
    per_image: dict[str, np.ndarray]
    latent_shape: tuple[int, ...]

    @property
    def psnr(self) -> np.ndarray:
        return self.per_image["psnr"]


@torch.inference_mode()
def reconstruct(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `(B, 3, H, W)` through the autoencoder: `(uint8 reconstruction, latent)`, on the model's device."""
    parameter = next(model.parameters())
    pixels = to_signed_unit(images.to(parameter.device)).to(parameter.dtype)
    latent = encode_to_latent(model, pixels)
    sample = decode_latent(model, latent)
    if sample.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"{type(model).__name__} returned {sample.shape[-1]}x{sample.shape[-2]} pixels for images of "
            f"{images.shape[-1]}x{images.shape[-2]}; pass --resolution {sample.shape[-1]}"
        )
    return to_uint8(sample), latent


def evaluate_reconstruction(
    model: nn.Module,
    images: ImageSet,
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    progress: bool = True,
    lpips: LPIPSLoss | None = None,
) -> ReconstructionResult:
    """PSNR, SSIM, MS-SSIM and (with their networks) LPIPS and Fréchet distance of originals and reconstructions.

    Under several ranks each takes its own index range; every rank returns the result over all images.

    Args:
        model: Any diffusers autoencoder, in evaluation mode.
        images: Originals, of a size that the compression ratio divides.
        network: Feature network, or `None` for no Fréchet distance.
        batch_size: Images at a time; has no influence on the result beyond float rounding.
        lpips: LPIPS with its backbone, or `None` for no LPIPS.

    Raises:
        InputError: Fewer than two images, or a size that does not fit.
    """
    if len(images) < 2:
        raise InputError(f"{images.name} holds {len(images)} image, too few to evaluate; at least 2 are needed")
    height, width = images[0].shape[:2]
    check_image_size(model, height, width)
    state = PartialState()
    indices = rank_range(len(images), state.process_index, state.num_processes)
    frechet = StreamedFrechet(network.dimensions, len(images)) if network else None
    values: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", "ms_ssim", *(["lpips"] if lpips else []))}
    latent_shape: tuple[int, ...] = ()

    hidden = not (progress and state.is_main_process)
    with tqdm(total=len(indices), desc="reconstruct", unit="image", disable=hidden) as bar:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            (originals,) = uint8_batches(images, batch_size, chosen)
            output, latent = reconstruct(model, originals)
            latent_shape = tuple(latent.shape[1:])
            originals = originals.to(output.device)
            values["psnr"] += psnr(originals, output).tolist()
            single, multiple = structural_similarities(originals, output)
            values["ssim"] += single.tolist()
            values["ms_ssim"] += multiple.tolist()
            if lpips:
                values["lpips"] += lpips_per_image(lpips, originals, output)
            if network:
                frechet.update(*(network(batch)["features"].numpy() for batch in (originals, output)), chosen)
            bar.update(len(originals))

    gathered = gather_in_rank_order((values, latent_shape), state)
    per_image = {name: np.concatenate([part[0][name] for part in gathered]) for name in values}
    if len(per_image["psnr"]) != len(images):
        raise RuntimeError(f"{len(per_image['psnr'])} images were evaluated, expected {len(images)}")
    scales = ms_ssim_scales(height, width)
    figures = [
        _mean_figure("PSNR (dB)", per_image["psnr"], baseline=mean_image_psnr(images)),
        _mean_figure("SSIM", per_image["ssim"]),
        _mean_figure("MS-SSIM" if scales == 5 else f"MS-SSIM ({scales} of 5 scales)", per_image["ms_ssim"]),
    ]
    if lpips:
        figures.append(_mean_figure(lpips.name.upper(), per_image["lpips"], better="lower"))
    if network:
        distance, interval = frechet.result(state)
        figure = {
            "name": metric_name("FID", network.name, len(images), prefix="r"),
            "value": distance,
            "samples": len(images),
            "better": "lower",
            "extractor": network.describe(),
        }
        figures.append(figure if interval is None else {**figure, "interval": interval, "interval_method": JACKKNIFE})
    latent_shape = next(part[1] for part in gathered if part[1])
    return ReconstructionResult(figures, per_image, latent_shape)


@torch.inference_mode()
def lpips_per_image(lpips: LPIPSLoss, originals: torch.Tensor, output: torch.Tensor) -> list[float]:
    """LPIPS v0.1 of each pair of uint8 images `(B, 3, H, W)`, at least 32 pixels a side."""
    if min(output.shape[-2:]) < 32:
        raise InputError(f"LPIPS needs images of at least 32 pixels, got {output.shape[-1]}x{output.shape[-2]}")
    return lpips.network(to_signed_unit(output), to_signed_unit(originals)).flatten().tolist()


def _mean_figure(
    name: str, values: np.ndarray, baseline: float | None = None, better: str = "higher"
) -> dict[str, Any]:
    figure = {"name": name, "value": float(values.mean()), "samples": len(values), "better": better}
    figure["interval"] = float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
    figure["interval_method"] = MEAN_OF_IMAGES
    if baseline is not None:
        figure["baseline"] = {"name": "the mean image for every image", "value": baseline}
    return figure


def mean_image_psnr(images: ImageSet) -> float:
    """Mean PSNR in dB of answering every image with the mean image: what a reconstruction has to beat.

    Over at most 1,000 evenly spaced images.
    """
    count = min(len(images), _BASELINE_IMAGES)
    chosen = [index * len(images) // count for index in range(count)]
    total = sum(batch.double().sum(dim=0) for batch in uint8_batches(images, 100, chosen))
    mean = (total / count).round()
    return float(
        np.mean([value for batch in uint8_batches(images, 100, chosen) for value in psnr(batch, mean).tolist()])
    )


def comparison_sheet(model: nn.Module, images: ImageSet, indices: list[int], columns: int = 12) -> bytes:
    """PNG of the chosen images: rows of originals, each over its row of reconstructions."""
    rows = []
    for start in range(0, len(indices), columns):
        (originals,) = uint8_batches(images, columns, indices[start : start + columns])
        for batch in (originals, reconstruct(model, originals)[0]):
            rows.append(list(batch.permute(0, 2, 3, 1).cpu().numpy()))
    return png_bytes(contact_sheet(rows))


def spread_indices(images: ImageSet, count: int) -> list[int]:
    """`count` indices that visit the classes in turn (evenly through the set where there are no labels)."""
    count = min(count, len(images))
    if images.labels is None:
        return [index * len(images) // count for index in range(count)]
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        of_class.setdefault(label, []).append(index)
    turns = -(-count // len(of_class))
    # Evenly spaced within a class: neighbours in a set are often near-duplicates (skin tones, frames of a film).
    columns = []
    for members in of_class.values():
        steps = min(turns, len(members))
        columns.append([members[step * len(members) // steps] for step in range(steps)])
    chosen = [column[turn] for turn in range(turns) for column in columns if turn < len(column)][:count]
    # Small classes leave places, which the others fill.
    left = [index for index in range(len(images)) if index not in set(chosen)]
    missing = count - len(chosen)
    return chosen + [left[place * len(left) // missing] for place in range(missing)]


def per_image_csv(result: ReconstructionResult, images: ImageSet) -> bytes:
    """One line per image: index, label, then every measure per image."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["index", "label", *result.per_image])
    for index, row in enumerate(zip(*result.per_image.values(), strict=True)):
        label = images.classes[images.labels[index]] if images.labels is not None and images.classes else ""
        writer.writerow([index, label, *(f"{value:.6f}" for value in row)])
    return buffer.getvalue().encode()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoencoder", required=True, help="saved folder, pipeline folder or Hub name of any diffusers autoencoder"
    )
    parser.add_argument(
        "--data", required=True, help="openmoji:heldout, datasets:NAME:SPLIT or a folder of root/class/img.png"
    )
    parser.add_argument("--resolution", type=int, help="image side in pixels (default: the model's sample_size)")
    parser.add_argument("--max_images", type=int, help="use only this many images, evenly spaced (default: all)")
    parser.add_argument(
        "--extractor",
        default=EFFICIENTNET_LITE0,
        choices=[*EXTRACTORS, "none"],
        help="feature network of the Fréchet distance; only inception gives an rFID (default: %(default)s)",
    )
    parser.add_argument(
        "--extractor_weights", type=Path, help="weights of the feature network, if not installed or downloaded"
    )
    parser.add_argument(
        "--lpips",
        default="none",
        choices=["none", *LPIPS_BACKBONES],
        help="also LPIPS with this backbone (alex is the usual one for figures); needs its ImageNet weights",
    )
    parser.add_argument("--lpips_weights", help="torchvision's weights file of the LPIPS backbone, if not downloaded")
    parser.add_argument(
        "--tiling", action="store_true", help="encode and decode in tiles (enable_tiling), for large images"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for reconstruction.json, per_image.csv and the grids"
    )


def run(args: argparse.Namespace) -> int:
    state = PartialState(cpu=args.device == "cpu")
    device = args.device or state.device
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size} must be at least 1")
    lpips = None if args.lpips == "none" else LPIPSLoss(args.lpips, args.lpips_weights).to(device)
    model = load_autoencoder(args.autoencoder, device)
    if args.tiling:
        if not hasattr(model, "enable_tiling"):
            raise InputError(f"{type(model).__name__} has no enable_tiling(); leave out --tiling")
        model.enable_tiling()
    resolution = args.resolution or image_size(model)
    images: ImageSet = open_data_source(args.data, resolution)
    if args.max_images and args.max_images < len(images):
        images = EvenlySpacedImages(images, args.max_images)
    network = None if args.extractor == "none" else FeatureNetwork(args.extractor, args.extractor_weights, device)
    result = evaluate_reconstruction(model, images, network, args.batch_size, lpips=lpips)
    if not state.is_main_process:
        return 0

    order = np.argsort(result.psnr)
    extremes = {"worst": order[:12].tolist(), "best": order[::-1][:12].tolist()}
    grid = spread_indices(images, 36)
    write_atomically(args.output / "reconstruction_grid.png", comparison_sheet(model, images, grid))
    for name, indices in extremes.items():
        write_atomically(args.output / f"reconstruction_{name}.png", comparison_sheet(model, images, indices))
    write_atomically(args.output / "per_image.csv", per_image_csv(result, images))
    pixels = 3 * images[0].shape[0] * images[0].shape[1]
    write_json(
        args.output / "reconstruction.json",
        {
            "kind": "reconstruction",
            "figures": result.figures,
            "autoencoder": {
                "path": args.autoencoder,
                "class": type(model).__name__,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "latent_shape": result.latent_shape,
                "values_per_latent_value": pixels / float(np.prod(result.latent_shape)),
                **model_fingerprint(model),
            },
            "data": {
                "spec": args.data,
                "images": len(images),
                "height": images[0].shape[0],
                "width": images[0].shape[1],
                "fingerprint": images.fingerprint,
                "attribution": images.attribution,
            },
            # What a reader may miss, and why it is not there.
            "not_measured": {}
            if lpips
            else {"LPIPS": "not asked for; --lpips alex with its ImageNet weights gives it"},
            "uint8_rule": "round(clamp((x + 1) / 2 * 255, 0, 255))",
            "psnr_percentiles": dict(
                zip(("5", "25", "50", "75", "95"), np.percentile(result.psnr, (5, 25, 50, 75, 95)), strict=True)
            ),
            "grid_indices": grid,
            **{f"{name}_indices": indices for name, indices in extremes.items()},
            **provenance(
                ranks=state.num_processes, batch_size=args.batch_size, resolution=resolution, tiling=args.tiling
            ),
        },
    )
    for figure in result.figures:
        spread = f" ± {figure['interval']:.2g}" if "interval" in figure else ""
        print(f"{figure['name']}: {figure['value']:.4f}{spread} over {figure['samples']} images")
    return 0
