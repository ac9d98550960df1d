"""How close is a set of generated images to real ones? Fréchet distance, KID, Inception score, precision, recall,
density and coverage.

torch-fidelity is the engine: its extractor interface and its KID, IS and precision/recall; the Fréchet distance is our
own float64 computation of the same quantity ([`frechet`]), tested against torch-fidelity's; density and coverage are
ours. Beside every figure stands
its **floor**: the same measure between two disjoint random halves of the reference. A generator that were perfect
would score about the floor, not zero, because both sides are finite samples.

Numbers of images. With a reference of fewer than 50,000 images each sample set is compared with as many reference
images as it has samples, drawn at random several times: the Fréchet distance is biased upwards by small numbers, and
only equal numbers make figures and floor comparable. `--reference_count all` uses the whole reference. KID is unbiased
at any number, and FD-inf (FID-inf) extrapolates the Fréchet distance to infinitely many images. Each figure carries a
95 % interval and says how it was made ([`confidence`]).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from tcae_diffusers.data.images.image_sets import ImageSet, open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json
from tcae_diffusers.metrics.feature_cache import default_cache_folder
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.generation import evaluate_generation
from tcae_diffusers.metrics.reference import open_reference

from ..pictures.contact_sheet import contact_sheet, png_bytes
from ..results.provenance import provenance
from .named_paths import parse_named_paths


def sample_sheet(images: ImageSet, per_class: int = 10, classes: int = 16) -> tuple[bytes, list[str]]:
    """PNG with one row of samples per class, and the class name of each row (none where there are no labels)."""
    if images.labels is None:
        count = min(per_class * 6, len(images))
        chosen = [index * len(images) // count for index in range(count)]
        rows, names = [chosen[start : start + per_class] for start in range(0, count, per_class)], []
    else:
        members: dict[int, list[int]] = {}
        for index, label in enumerate(images.labels):
            if len(members.setdefault(label, [])) < per_class:
                members[label].append(index)
        wanted = sorted(members)[:classes]
        rows, names = [members[label] for label in wanted], [images.classes[label] for label in wanted]
    return png_bytes(contact_sheet([[images[index] for index in row] for row in rows])), names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        nargs="+",
        required=True,
        metavar="[NAME=]PATH",
        help="folders or .npz files of generated images; several are compared with the same reference, the first is "
        "the headline",
    )
    parser.add_argument(
        "--reference",
        required=True,
        help="data source (openmoji:train), folder, or ADM .npz with images and/or mu and sigma; images of another "
        "size than the samples' are cropped and resized to it",
    )
    parser.add_argument(
        "--extractor",
        default=EFFICIENTNET_LITE0,
        choices=list(EXTRACTORS),
        help="feature network; only inception gives an FID (default: %(default)s)",
    )
    parser.add_argument(
        "--extractor_weights", type=Path, help="weights of the feature network, if not installed or downloaded"
    )
    parser.add_argument(
        "--reference_count",
        default="equal",
        metavar="equal|all|N",
        help="reference images per comparison: as many as samples (default; all from 50,000 on), all, or a number",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random draws from the reference (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument(
        "--feature_cache", type=Path, help="folder for computed features (default: the package's cache folder)"
    )
    parser.add_argument("--no_feature_cache", action="store_true", help="compute features anew and keep none")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for generation.json and one grid per sample set"
    )


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size} must be at least 1")
    if args.reference_count not in ("equal", "all") and not (
        args.reference_count.isdigit() and int(args.reference_count) >= 8
    ):
        raise InputError(f"--reference_count {args.reference_count!r} must be equal, all, or a number from 8 on")
    state = PartialState(cpu=args.device == "cpu")
    opened = {name: open_image_set(path) for name, path in parse_named_paths(args.samples).items()}
    sizes = {name: images[0].shape[:2] for name, images in opened.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"sample sets differ in size: {', '.join(f'{n} {w}x{h}' for n, (h, w) in sizes.items())}")
    network = FeatureNetwork(args.extractor, args.extractor_weights, args.device or state.device)
    cache_folder = None if args.no_feature_cache else args.feature_cache or default_cache_folder()
    size = next(iter(sizes.values()))
    reference, description = open_reference(args.reference, size, network, args.batch_size, cache_folder, args.seed)

    sets = []
    for name, images in opened.items():
        figures = evaluate_generation(images, reference, network, args.reference_count, args.batch_size, cache_folder)
        sets.append(
            {
                "name": name,
                "path": images.name,
                "images": len(images),
                "classes": images.classes,
                "fingerprint": images.fingerprint,
                "grid": f"samples_{name}.png",
                "grid_rows": [],
                "figures": [figure.to_json() for figure in figures],
            }
        )
    if not state.is_main_process:
        return 0
    for entry, images in zip(sets, opened.values(), strict=True):
        sheet, entry["grid_rows"] = sample_sheet(images)
        write_atomically(args.output / entry["grid"], sheet)
    settings = {"reference_count": args.reference_count, "seed": args.seed, "ranks": state.num_processes}
    write_json(
        args.output / "generation.json",
        {"kind": "generation", "sets": sets, "reference": description, **provenance(**settings)},
    )
    for entry in sets:
        for figure in entry["figures"]:
            floor = f"  (real against real: {figure['floor']['value']:.4f})" if "floor" in figure else ""
            spread = f" ± {figure['interval']:.2g}" if "interval" in figure else ""
            value = f"{figure['value']:.4f}{spread} over {figure['samples']} samples"
            print(f"{entry['name']}: {figure['name']} {value}{floor}")
    return 0
