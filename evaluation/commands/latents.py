"""The shape of a latent space: does it use its channels, how does it move with the image, what does noise in it cost?

Channel statistics come from all positions of all images; equivariance asks whether the latent of a moved image is the
moved latent; the noise curve decodes latents with Gaussian noise of growing size, which is what a diffusion model's
errors will cost.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState

from tcae_diffusers.data.images.image_sets import EvenlySpacedImages, ImageSet, open_data_source
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.latent_diagnostics import NOISE_LEVELS, evaluate_latents
from tcae_diffusers.models.adapters import image_size, load_autoencoder
from tcae_diffusers.models.fingerprint import model_fingerprint

from ..pictures.component_pictures import component_sheet
from ..results.provenance import provenance
from .reconstruction import spread_indices


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
            **asdict(result),
            "figures": [figure.to_json() for figure in result.figures],
            "picture": "latent_components.png",
            "picture_rows": rows,
            "autoencoder": {"path": args.autoencoder, "class": type(model).__name__, **model_fingerprint(model)},
            "data": {
                "spec": args.data,
                "images": len(images),
                "fingerprint": images.fingerprint,
                "attribution": images.attribution,
            },
            **provenance(seed=args.seed, resolution=resolution, ranks=state.num_processes),
        },
    )
    channels = result.channels
    print(f"effective rank {channels['effective_rank']:.1f} of {channels['channels']} channels, isotropy ", end="")
    print(f"{channels['isotropy']:.3f}, dead channels {len(channels['dead_channels'])}")
    for name, values in result.equivariance.items():
        print(f"{name}: cosine {values['cosine']:.3f}, finds itself {values['nearest']:.1%}")
    for point in result.noise:
        print("  ".join(f"{key} {value:.4g}" for key, value in point.items()))
    return 0
