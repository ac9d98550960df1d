"""What an autoencoder or a diffusion transformer costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tcae_diffusers.metrics.latency import measure_latency
from tcae_diffusers.metrics.model_cost import autoencoder_cost, transformer_cost
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from tcae_diffusers.models.named_models import build_named_autoencoder, build_transformer

from ..arguments.cost import CostArguments
from ..arguments.groups import usable_device
from ..results.kinds.cost import CostResult
from ..results.provenance import provenance


def run(arguments: CostArguments) -> CostResult:
    """
    Counts models.

    Raises:
        InputError: If a model is unknown or does not take the size.
    """
    usable_device(arguments.device)
    named = arguments.autoencoder
    names = [part for name in named for part in (AUTOENCODER_TC_PRESETS if name == "presets" else [name])]
    shape = arguments.latent_shape
    return CostResult(
        height=arguments.height,
        width=arguments.width,
        autoencoders={name: _autoencoder_row(name, arguments) for name in dict.fromkeys(names)},
        transformers={
            name: asdict(transformer_cost(build_transformer(name, shape), shape)) for name in arguments.transformer
        },
        **provenance(batch_size=arguments.batch_size, device=arguments.device),
    )


def _autoencoder_row(name: str, arguments: CostArguments) -> dict[str, Any]:
    height, width, is_folder = arguments.height, arguments.width, Path(name).exists()
    model = load_autoencoder(name, arguments.device) if is_folder else build_named_autoencoder(name)
    cost = autoencoder_cost(model, height, width)
    row = {**asdict(cost), "total_macs": cost.total_macs}
    if arguments.latency:
        model = model if is_folder else build_named_autoencoder(name, arguments.device)
        row["latency"] = measure_latency(model, height, width, arguments.batch_size)
    return row
