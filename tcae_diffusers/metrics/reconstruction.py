"""
One pass of images through an autoencoder, and how well they come back. Works for any autoencoder of diffusers.

Streaming: one batch is in memory at a time, feature moments are accumulated, so 50,000 images cost what 100 do.
Reconstructions are judged as what a viewer would see: rounded and clamped to uint8 ([`from_signed`]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from diffusers import ModelMixin
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import ImageSet
from ..data.images.pixel_range import from_signed, to_signed
from ..errors import InputError
from ..models.adapters import adapt
from .confidence import mean_interval
from .features import FeatureNetwork
from .figure import Estimate, Figure, LinearBaseline
from .grouped_moments import StreamedFrechet
from .image_measures import ImageMeasure, build_image_measures
from .linear_autoencoder import LinearAutoencoder
from .model_cost import on_meta_device
from .names import metric_name
from .rank_batches import rank_batches


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
    _require_one_size(model, sample, images)
    return from_signed(sample), latent


def _require_one_size(model: nn.Module, sample: torch.Tensor, images: torch.Tensor) -> None:
    if sample.shape[-2:] == images.shape[-2:]:
        return
    remedy = f"pass --resolution {sample.shape[-1]}"
    if adapt(model).decodes_any_size:
        remedy = "use a decoder that enlarges as much as the encoder reduces"
    raise InputError(
        f"{adapt(model).class_name} returned {sample.shape[-1]}x{sample.shape[-2]} pixels for images of "
        f"{images.shape[-1]}x{images.shape[-2]}; {remedy}"
    )


@torch.no_grad()
def check_reconstruction_size(model: ModelMixin, height: int, width: int) -> None:
    """
    Whether an autoencoder answers images with images of their size, without computing anything.

    Raises:
        InputError: The compression ratio does not divide the size, or reconstructions have another.
    """
    adapt(model).check_image_size(height, width)
    twin = on_meta_device(model)
    images = torch.empty(1, 3, height, width, device="meta", dtype=next(twin.parameters()).dtype)
    _require_one_size(model, adapt(twin).decode(adapt(twin).encode(images)), images)


def latent_shape(model: nn.Module, images: ImageSet) -> tuple[int, ...]:
    """`(c, h, w)` of the latent of one of the images.

    Raises:
        InputError: The compression ratio does not divide the size of the images, or the model answers with another.
    """
    first = images[0]
    adapt(model).check_image_size(*first.shape[:2])
    _, latent = reconstruct(model, torch.from_numpy(first.copy()).permute(2, 0, 1).unsqueeze(0))
    return tuple(latent.shape[1:])


class _Outputs:
    """What is measured of the outputs of one autoencoder, batch by batch."""

    def __init__(self, measures: Sequence[ImageMeasure], network: FeatureNetwork | None, count: int):
        self._measures, self._network, self._count = measures, network, count
        self._values: list[dict[str, list[float]]] = [{} for _ in measures]
        self._frechet = StreamedFrechet(network.dimensions, count) if network else None

    def update(
        self, originals: torch.Tensor, features: np.ndarray | None, outputs: torch.Tensor, indices: Sequence[int]
    ) -> None:
        """Takes in uint8 `(B, 3, H, W)` of the images `indices`, and the features of the originals."""
        for measure, values in zip(self._measures, self._values, strict=True):
            for name, of_batch in measure(originals, outputs).items():
                values.setdefault(name, []).extend(of_batch.tolist())
        if self._network is not None and self._frechet is not None and features is not None:
            self._frechet.update(features, self._network(outputs)["features"].numpy(), indices)

    def gather(self, state: PartialState) -> tuple[dict[str, np.ndarray], Estimate | None]:
        """Over all ranks, on every rank: values `(N,)` by column, and the Fréchet distance, `None` without network."""
        parts = gather_in_rank_order(self._values, state)
        columns: dict[str, np.ndarray] = {}
        for measure, of_ranks in zip(self._measures, zip(*parts, strict=True), strict=True):
            # A rank without images has no names.
            names = dict.fromkeys(name for of_rank in of_ranks for name in of_rank)
            values = {name: np.concatenate([of_rank.get(name, []) for of_rank in of_ranks]) for name in names}
            columns |= measure.over_set(values)
        for column, of_images in columns.items():
            if len(of_images) != self._count:
                raise RuntimeError(f"{column} has {len(of_images)} values for {self._count} images")
        return columns, None if self._frechet is None else self._frechet.result(state)


def evaluate_reconstruction(
    model: nn.Module,
    images: ImageSet,
    network: FeatureNetwork | None = None,
    batch_size: int = 32,
    measures: Sequence[ImageMeasure] | None = None,
    linear: LinearAutoencoder | None = None,
) -> ReconstructionFigures:
    """Every per-image measure and (with a network) the Fréchet distance of originals and reconstructions.

    Under several ranks each takes its own index range; every rank returns the result over all images.

    Args:
        model: Any diffusers autoencoder, in evaluation mode.
        images: Originals, of a size that the compression ratio divides.
        network: Feature network, or `None` for no Fréchet distance.
        batch_size: Images at a time; has no influence on the result beyond float rounding.
        measures: By default those of [`image_measures`] that need no settings.
        linear: On the device of the model; measured in the same way, beside every figure.

    Raises:
        InputError: Fewer than two images, or a size that does not fit.
    """
    if len(images) < 2:
        raise InputError(f"{images.name} holds {len(images)} image, too few to evaluate; at least 2 are needed")
    shape = latent_shape(model, images)
    measures = build_image_measures() if measures is None else measures
    state = PartialState()
    models = [model] if linear is None else [model, linear]
    outputs = [_Outputs(measures, network, len(images)) for _ in models]
    for chosen, originals in rank_batches(images, batch_size, "reconstruct"):
        originals = originals.to(next(model.parameters()).device)
        features = network(originals)["features"].numpy() if network else None
        for each, measured in zip(models, outputs, strict=True):
            measured.update(originals, features, reconstruct(each, originals)[0], chosen)

    per_image, distance = outputs[0].gather(state)
    figures = [
        _mean_figure(measure, column, per_image[column], images) for measure in measures for column in measure.better
    ]
    if network and distance:
        figures.append(_distance_figure(distance, network, images))
    if linear is not None:
        _set_beside(figures, linear.name, per_image, *outputs[1].gather(state))
    return ReconstructionFigures(figures, per_image, shape)


def _mean(values: np.ndarray, interval_method: str | None) -> Estimate:
    return Estimate(value=float(values.mean()), interval=mean_interval(values), interval_method=interval_method)


def _mean_figure(measure: ImageMeasure, column: str, values: np.ndarray, images: ImageSet) -> Figure:
    height, width = images[0].shape[:2]
    return Figure.of(
        _mean(values, measure.interval_method),
        name=measure.figure_name(column, height, width),
        samples=len(values),
        better=measure.better[column],
        baseline=measure.baseline(column, images),
        extractor=measure.describe_network(),
        per_image=column,
    )


def _distance_figure(distance: Estimate, network: FeatureNetwork, images: ImageSet) -> Figure:
    return Figure.of(
        distance,
        name=metric_name("FID", network.name, len(images), prefix="r"),
        samples=len(images),
        better="lower",
        extractor=network.describe(),
    )


def _set_beside(
    figures: Sequence[Figure],
    name: str,
    of_model: Mapping[str, np.ndarray],
    of_linear: Mapping[str, np.ndarray],
    distance: Estimate | None,
) -> None:
    """Gives each figure what the linear autoencoder scores."""
    for figure in figures:
        if figure.per_image is not None:
            values = of_linear[figure.per_image]
            interval = mean_interval(of_model[figure.per_image] - values)
            estimate = _mean(values, figure.interval_method)
            figure.linear = LinearBaseline.of(estimate, name=name, difference_interval=interval)
        elif distance is not None:
            figure.linear = LinearBaseline.of(distance, name=name)
