"""How well does an autoencoder give back images that it has not seen? PSNR, SSIM, MS-SSIM, LPIPS, Fréchet distance.

Works for any autoencoder of diffusers.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from accelerate import PartialState
from torch import nn

from tcae_diffusers.data.images.image_sets import EvenlySpacedImages, ImageSet, open_data_source, uint8_batches
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json, write_text
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.image_measures import IMAGE_MEASURES, ImageMeasureSettings, build_image_measures
from tcae_diffusers.metrics.reconstruction import ReconstructionFigures, evaluate_reconstruction, reconstruct
from tcae_diffusers.models.adapters import image_size, load_autoencoder
from tcae_diffusers.models.fingerprint import model_fingerprint
from tcae_diffusers.objectives.perceptual import LPIPS_BACKBONES

from ..pictures.contact_sheet import contact_sheet, png_bytes
from ..results.provenance import provenance


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


def per_image_csv(result: ReconstructionFigures, images: ImageSet) -> str:
    """One line per image: index, label, then every measure per image."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["index", "label", *result.per_image])
    for index, row in enumerate(zip(*result.per_image.values(), strict=True)):
        label = images.classes[images.labels[index]] if images.labels is not None and images.classes else ""
        writer.writerow([index, label, *(f"{value:.6f}" for value in row)])
    return buffer.getvalue()


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
    lpips = None if args.lpips == "none" else args.lpips
    measures = build_image_measures(ImageMeasureSettings(device, lpips, args.lpips_weights))
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
    result = evaluate_reconstruction(model, images, network, args.batch_size, measures=measures)
    if not state.is_main_process:
        return 0

    psnr = result.per_image["psnr"]
    order = np.argsort(psnr)
    extremes = {"worst": order[:12].tolist(), "best": order[::-1][:12].tolist()}
    grid = spread_indices(images, 36)
    write_atomically(args.output / "reconstruction_grid.png", comparison_sheet(model, images, grid))
    for name, indices in extremes.items():
        write_atomically(args.output / f"reconstruction_{name}.png", comparison_sheet(model, images, indices))
    write_text(args.output / "per_image.csv", per_image_csv(result, images))
    built = {type(measure) for measure in measures}
    not_measured = {
        name: why for each in IMAGE_MEASURES if each not in built for name, why in each.if_left_out.items()
    }
    pixels = 3 * images[0].shape[0] * images[0].shape[1]
    write_json(
        args.output / "reconstruction.json",
        {
            "kind": "reconstruction",
            "figures": [figure.to_json() for figure in result.figures],
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
            "not_measured": not_measured,
            "uint8_rule": "round(clamp((x + 1) / 2 * 255, 0, 255))",
            "psnr_percentiles": dict(
                zip(("5", "25", "50", "75", "95"), np.percentile(psnr, (5, 25, 50, 75, 95)), strict=True)
            ),
            "grid_indices": grid,
            **{f"{name}_indices": indices for name, indices in extremes.items()},
            **provenance(
                ranks=state.num_processes, batch_size=args.batch_size, resolution=resolution, tiling=args.tiling
            ),
        },
    )
    for figure in result.figures:
        spread = "" if figure.interval is None else f" ± {figure.interval:.2g}"
        print(f"{figure.name}: {figure.value:.4f}{spread} over {figure.samples} images")
    return 0
