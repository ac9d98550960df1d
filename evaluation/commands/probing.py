"""What the tokens know about the class, and how much of it survives in the latent (A1, A2 and the structure loss).

A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; `1 - A2 / A1` is what
the paper calls structure loss. Features are averaged over positions (global average pooling), standardised, and probed
with a learning-rate sweep; k-NN stands beside it because it trains nothing. Any diffusers autoencoder has a latent;
tokens are known for AutoencoderTC, and for others by `--token_module`, the name of a submodule of the encoder.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState

from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_json
from tcae_diffusers.metrics.probing import evaluate_probing
from tcae_diffusers.models.adapters import image_size, load_autoencoder
from tcae_diffusers.models.fingerprint import model_fingerprint

from ..results.provenance import provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--autoencoder", required=True, help="saved folder, pipeline folder or Hub name")
    parser.add_argument("--train", default="openmoji:train", help="labelled images to fit (default: %(default)s)")
    parser.add_argument("--test", default="openmoji:heldout", help="labelled images to judge (default: %(default)s)")
    parser.add_argument("--resolution", type=int, help="image side in pixels (default: the model's sample_size)")
    parser.add_argument(
        "--token_module", help="submodule whose output is the tokens, for other models than AutoencoderTC"
    )
    parser.add_argument("--tsne", action="store_true", help="also a t-SNE picture of each depth (needs scikit-learn)")
    parser.add_argument("--epochs", type=int, default=50, help="passes of the linear probe (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument("--output", type=Path, required=True, help="folder for probing.json")


def run(args: argparse.Namespace) -> int:
    if args.epochs < 1 or args.batch_size < 1:
        raise InputError(f"--epochs {args.epochs} and --batch_size {args.batch_size} must be at least 1")
    state = PartialState(cpu=args.device == "cpu")
    model = load_autoencoder(args.autoencoder, args.device or state.device)
    resolution = args.resolution or image_size(model)
    train, test = open_data_source(args.train, resolution), open_data_source(args.test, resolution)
    result = evaluate_probing(
        model, train, test, args.batch_size, args.token_module, args.epochs, args.seed, tsne=args.tsne
    )
    if not state.is_main_process:
        return 0
    settings = {"train": args.train, "test": args.test, "epochs": args.epochs, "seed": args.seed}
    write_json(
        args.output / "probing.json",
        {
            "kind": "probing",
            **asdict(result),
            "figures": [figure.to_json() for figure in result.figures],
            "autoencoder": {"path": args.autoencoder, "class": type(model).__name__, **model_fingerprint(model)},
            "data": {
                "spec": args.test,
                "images": len(test),
                "fingerprint": test.fingerprint,
                "train_fingerprint": train.fingerprint,
                "attribution": test.attribution,
            },
            **provenance(**settings, token_module=args.token_module, resolution=resolution, ranks=state.num_processes),
        },
    )
    for figure in result.figures:
        line = f"{figure.name}: {figure.value:.4f} ± {figure.interval:.4f} over {figure.samples} images"
        if rate := figure.details.get("learning_rate"):
            line += f", learning rate {rate:g}"
        print(f"{line}  ({figure.baseline.name}: {figure.baseline.value:.4f})" if figure.baseline else line)
    return 0
