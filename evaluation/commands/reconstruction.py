"""How well does an autoencoder give back images that it has not seen?"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from torch import nn

from tcae_diffusers.data.images.image_sets import EvenlySpacedImages, ImageSet, open_data_source
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.image_measures import IMAGE_MEASURES, ImageMeasureSettings, build_image_measures
from tcae_diffusers.metrics.linear_autoencoder import (
    LinearAutoencoder,
    NoLinearAutoencoder,
    fit_linear_autoencoder,
)
from tcae_diffusers.metrics.reconstruction import ReconstructionFigures, evaluate_reconstruction, latent_shape
from tcae_diffusers.models.adapters import adapt, load_autoencoder

from ..arguments.reconstruction import ReconstructionArguments
from ..pictures.chosen_images import spread_indices
from ..pictures.reconstruction_sheet import reconstruction_sheet
from ..results.figure_differences import PER_IMAGE_FILE
from ..results.kinds.autoencoder import describe_autoencoder, describe_images
from ..results.kinds.reconstruction import LINEAR_BASELINE, ReconstructionResult
from ..results.provenance import provenance

_EXTREMES = 12
_GRID = 36


def run(arguments: ReconstructionArguments) -> ReconstructionResult:
    """
    Measures an autoencoder.

    Raises:
        InputError: If a model, its images or its weights cannot be used; the message says why.
    """
    state, device = arguments.process_state(), arguments.chosen_device()
    model = load_autoencoder(arguments.autoencoder, device)
    if arguments.tiling:
        if not hasattr(model, "enable_tiling"):
            raise InputError(f"{type(model).__name__} has no enable_tiling(); omit --tiling")
        model.enable_tiling()
    images = arguments.open_images(model)
    lpips = None if arguments.lpips == "none" else arguments.lpips
    settings = ImageMeasureSettings(device, lpips, arguments.lpips_weights, _patch_size_to_see(model, images))
    measures = build_image_measures(settings)
    network = arguments.network_if_any(device)
    linear, described, left_out = _linear_baseline(arguments, model, images)
    found = evaluate_reconstruction(model, images, network, arguments.batch_size, measures=measures, linear=linear)

    psnr, built = found.per_image["psnr"], {type(measure) for measure in measures}
    order, (height, width) = np.argsort(psnr), images[0].shape[:2]
    percentiles = (5, 25, 50, 75, 95)
    result = ReconstructionResult(
        figures=found.figures,
        autoencoder={
            **describe_autoencoder(arguments.autoencoder, model),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "latent_shape": found.latent_shape,
            "patch_size": adapt(model).patch_size,
            "values_per_latent_value": 3 * height * width / float(np.prod(found.latent_shape)),
        },
        data={**describe_images(arguments.data, images), "height": height, "width": width},
        linear_baseline=described,
        not_measured={
            name: why for each in IMAGE_MEASURES if each not in built for name, why in each.if_left_out.items()
        }
        | left_out,
        uint8_rule="round(clamp((x + 1) / 2 * 255, 0, 255))",
        psnr_percentiles=dict(zip(map(str, percentiles), np.percentile(psnr, percentiles).tolist(), strict=True)),
        grid_indices=spread_indices(images, _GRID),
        worst_indices=order[:_EXTREMES].tolist(),
        best_indices=order[::-1][:_EXTREMES].tolist(),
        **provenance(
            ranks=state.num_processes, batch_size=arguments.batch_size, resolution=height, tiling=arguments.tiling
        ),
    )
    if state.is_main_process:
        result.files = {**_pictures(model, linear, images, result), PER_IMAGE_FILE: per_image_csv(found, images)}
    return result


def _patch_size_to_see(model: nn.Module, images: ImageSet) -> int | None:
    """Pixels from one border of the model's patches to the next, where the images show both borders and insides."""
    size = adapt(model).patch_size
    return size if 1 < size < max(images[0].shape[:2]) else None


def _linear_baseline(
    arguments: ReconstructionArguments, model: nn.Module, images: ImageSet
) -> tuple[LinearAutoencoder | None, dict[str, Any], dict[str, str]]:
    """The linear autoencoder of equal latent size, what results say of it, and why there is none if there is none."""
    source = arguments.baseline_source
    if source is None:
        return None, {}, {LINEAR_BASELINE: "left out by --baseline_data none"}
    shape, (height, width) = latent_shape(model, images), images[0].shape[:2]
    fitted: ImageSet = open_data_source(source, (height, width))
    measured = fitted if source == arguments.data else open_data_source(arguments.data, (height, width))
    same_source = fitted.fingerprint == measured.fingerprint
    if arguments.baseline_images < len(fitted):
        fitted = EvenlySpacedImages(fitted, arguments.baseline_images)
    per_position = arguments.baseline_basis == "per_position"
    try:
        linear = fit_linear_autoencoder(fitted, shape, per_position, arguments.batch_size)
    except NoLinearAutoencoder as reason:
        return None, {}, {LINEAR_BASELINE: str(reason)}
    described = {
        "name": linear.name,
        "block": linear.spatial_compression_ratio,
        "components": linear.components.shape[1],
        "basis": arguments.baseline_basis,
        "data": describe_images(source, fitted),
        "same_source": same_source,
    }
    return linear.to(next(model.parameters()).device), described, {}


def _pictures(
    model: nn.Module, linear: LinearAutoencoder | None, images: ImageSet, result: ReconstructionResult
) -> dict[str, bytes]:
    pictured = {"grid": result.grid_indices, "worst": result.worst_indices, "best": result.best_indices}
    sheets = {name: reconstruction_sheet(model, images, indices) for name, indices in pictured.items()}
    if linear is not None:
        sheets["linear"] = reconstruction_sheet(linear, images, result.grid_indices)
    return {f"reconstruction_{name}.png": sheet for name, sheet in sheets.items()}


def per_image_csv(found: ReconstructionFigures, images: ImageSet) -> str:
    """One line per image: index, label, then every measure per image."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["index", "label", *found.per_image])
    for index, row in enumerate(zip(*found.per_image.values(), strict=True)):
        label = images.classes[images.labels[index]] if images.labels is not None and images.classes else ""
        writer.writerow([index, label, *(f"{value:.6f}" for value in row)])
    return buffer.getvalue()
