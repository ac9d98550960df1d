"""
One pass of images through an autoencoder, and how well they come back. Works for any autoencoder of diffusers.

Streaming: one batch is in memory at a time, feature moments are accumulated, so 50,000 images cost what 100 do.
Reconstructions are judged as what a viewer would see: rounded and clamped to uint8 ([`from_signed`]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm

from ..data.distributed import gather_in_rank_order, rank_range
from ..data.images.image_sets import ImageSet, uint8_batches
from ..data.images.pixel_range import from_signed, to_signed
from ..errors import InputError
from ..models.adapters import adapt
from .confidence import MEAN_OF_IMAGES, mean_interval
from .features import FeatureNetwork
from .figure import Figure
from .grouped_moments import StreamedFrechet
from .image_measures import ImageMeasure, build_image_measures
from .names import metric_name


@dataclass
class ReconstructionFigures:
    """How well an autoencoder gives images back.

    Args:
        figures (`list[Figure]`): One for each column of `per_image`, and the Fréchet distance.
        per_image (`dict[str, np.ndarray]`): `psnr`, `ssim`, `ms_ssim` and what other measures there were, each `(N,)`
            in the order of the set.
        latent_shape (`tuple[int, ...]`): `(c, h, w)`.
    """

    figures: list[Figure]
    per_image: dict[str, np.ndarray]
    latent_shape: tuple[int, ...]


@torch.inference_mode()
def reconstruct(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `(B, 3, H, W)` through the autoencoder: `(uint8 reconstruction, latent)`, on the model's device.

    Raises:
        InputError: If the model answers with another size.
    """
    parameter = next(model.parameters())
    pixels = to_signed(images, parameter.device).to(parameter.dtype)
    latent = adapt(model).encode(pixels)
    sample = adapt(model).decode(latent)
    if sample.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"{type(model).__name__} returned {sample.shape[-1]}x{sample.shape[-2]} pixels for images of "
            f"{images.shape[-1]}x{images.shape[-2]}; pass --resolution {sample.shape[-1]}"
        )
    return from_signed(sample), latent


def evaluate_reconstruction(
    model: nn.Module,
    images: ImageSet,
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    progress: bool = True,
    measures: Sequence[ImageMeasure] | None = None,
) -> ReconstructionFigures:
    """Every per-image measure and (with a network) the Fréchet distance of originals and reconstructions.

    Under several ranks each takes its own index range; every rank returns the result over all images.

    Args:
        model: Any diffusers autoencoder, in evaluation mode.
        images: Originals, of a size that the compression ratio divides.
        network: Feature network, or `None` for no Fréchet distance.
        batch_size: Images at a time; has no influence on the result beyond float rounding.
        measures: By default those of [`image_measures`] that need no settings.

    Raises:
        InputError: Fewer than two images, or a size that does not fit.
    """
    if len(images) < 2:
        raise InputError(f"{images.name} holds {len(images)} image, too few to evaluate; at least 2 are needed")
    height, width = images[0].shape[:2]
    adapt(model).check_image_size(height, width)
    measures = build_image_measures() if measures is None else measures
    state = PartialState()
    indices = rank_range(len(images), state.process_index, state.num_processes)
    frechet = StreamedFrechet(network.dimensions, len(images)) if network else None
    values: dict[str, list[float]] = {column: [] for measure in measures for column in measure.better}
    latent_shape: tuple[int, ...] = ()

    hidden = not (progress and state.is_main_process)
    with tqdm(total=len(indices), desc="reconstruct", unit="image", disable=hidden) as bar:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            (originals,) = uint8_batches(images, batch_size, chosen)
            output, latent = reconstruct(model, originals)
            latent_shape = tuple(latent.shape[1:])
            originals = originals.to(output.device)
            for measure in measures:
                for column, of_batch in measure(originals, output).items():
                    values[column] += of_batch.tolist()
            if network and frechet:
                first, second = (network(batch)["features"].numpy() for batch in (originals, output))
                frechet.update(first, second, chosen)
            bar.update(len(originals))

    gathered = gather_in_rank_order((values, latent_shape), state)
    per_image = {column: np.concatenate([part[0][column] for part in gathered]) for column in values}
    for column, of_all in per_image.items():
        if len(of_all) != len(images):
            raise RuntimeError(f"{column} has {len(of_all)} values for {len(images)} images")
    figures = [
        _mean_figure(measure, column, per_image[column], images) for measure in measures for column in measure.better
    ]
    if network and frechet:
        figures.append(
            Figure.of(
                frechet.result(state),
                name=metric_name("FID", network.name, len(images), prefix="r"),
                samples=len(images),
                better="lower",
                extractor=network.describe(),
            )
        )
    return ReconstructionFigures(figures, per_image, next(part[1] for part in gathered if part[1]))


def _mean_figure(measure: ImageMeasure, column: str, values: np.ndarray, images: ImageSet) -> Figure:
    height, width = images[0].shape[:2]
    return Figure(
        name=measure.figure_name(column, height, width),
        value=float(values.mean()),
        interval=mean_interval(values),
        interval_method=MEAN_OF_IMAGES,
        samples=len(values),
        better=measure.better[column],
        baseline=measure.baseline(column, images),
        per_image=column,
    )
