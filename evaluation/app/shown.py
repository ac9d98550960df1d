"""What the page shows: autoencoders, pipelines, a folder of results, and images to pick from."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.utils import logging
from PIL import Image

from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.pipelines import TCDiTPipeline

from ..arguments.app import AppArguments
from ..arguments.named_paths import parse_named_paths
from ..pictures.chosen_images import spread_indices
from ..pictures.drawing import load_latent_pipeline
from .reconstruction import ShownAutoencoder

logger = logging.get_logger(__name__)

_EXAMPLES = 12
# Side in pixels where neither the autoencoder nor the visitor says one.
DEFAULT_SIDE = 256


@dataclass(frozen=True)
class Examples:
    """
    Images that visitors can pick.

    Args:
        images (`list[Image.Image]`): RGB, all of one size.
        note (`str`): Credit that their licence asks for, or why there are none.
    """

    images: list[Image.Image]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """
    Everything that the page shows; the same for all visitors, and never changed by them.

    Args:
        autoencoders (`dict[str, ShownAutoencoder]`): By name.
        pipelines (`dict[str, TCDiTPipeline]`): By name.
        results (`Path`, *optional*): Folder of reports and results.
        examples (`Examples`): Images to pick from.
        device_lock (`threading.Lock`): Held by the request that computes.
    """

    autoencoders: dict[str, ShownAutoencoder]
    pipelines: dict[str, TCDiTPipeline]
    results: Path | None
    examples: Examples
    device_lock: threading.Lock = field(default_factory=threading.Lock)


def open_shown(arguments: AppArguments) -> Shown:
    """
    Loads what the options name.

    Raises:
        InputError: If something cannot be loaded, or there is no demo where the demo is to be shown.
    """
    autoencoders: dict[str, str] = {}
    if arguments.shows_demo:
        pipelines = {run.name: str(run / "dit" / "pipeline") for run in demo_runs(arguments.demo_output)}
        results: Path | None = arguments.demo_output
    else:
        autoencoders, pipelines = parse_named_paths(arguments.autoencoder), parse_named_paths(arguments.pipeline)
        results = arguments.results
    if results is not None and not results.is_dir():
        raise InputError(f"--results {results} is not a folder")

    device, dtype = arguments.chosen_device(), getattr(torch, arguments.dtype)
    drawing = {name: load_latent_pipeline(path, device, dtype) for name, path in pipelines.items()}
    models = {name: load_autoencoder(path, device, dtype) for name, path in autoencoders.items()}
    models = models or {name: pipeline.vae for name, pipeline in drawing.items()}
    sides = [adapt(model).image_size for model in models.values()]
    examples = _open_examples(arguments, next(filter(None, sides), DEFAULT_SIDE)) if models else Examples([])
    shown = {name: ShownAutoencoder(model, examples.images) for name, model in models.items()}
    return Shown(shown, drawing, results, examples)


def demo_runs(folder: Path) -> list[Path]:
    """
    The finished demos in the folder that `make demo` writes, one for each scale and seed.

    Raises:
        InputError: If there is none.
    """
    runs = [run for run in sorted(folder.glob("minutes-*-seed-*")) if (run / "report.html").is_file()]
    if not runs:
        raise InputError(
            f"{folder} holds no finished demo; run `make demo`, or give --autoencoder, --pipeline or --results"
        )
    return runs


def _open_examples(arguments: AppArguments, side: int) -> Examples:
    if arguments.images is not None:
        return read_examples(arguments.images, side)
    if not arguments.shows_demo:
        return Examples([])
    try:
        return read_examples("openmoji:heldout", side)
    except InputError as error:
        # Nobody asked for them: the page does without.
        logger.warning(f"there are no images to pick from: {error}")
        return Examples([], f"There are no images to pick from: {error}.")


def read_examples(source: str, side: int) -> Examples:
    """
    Some images of a data source, of all its classes, cropped and resized to squares of `side` pixels.

    Raises:
        InputError: The source cannot be read.
    """
    images = open_data_source(source, side)
    chosen = spread_indices(images, _EXAMPLES)
    return Examples([Image.fromarray(images[index]) for index in chosen], images.attribution or "")
