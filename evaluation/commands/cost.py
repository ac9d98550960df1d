"""What an autoencoder or a diffusion transformer costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.latency import measure_latency
from tcae_diffusers.metrics.model_cost import autoencoder_cost, transformer_cost
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from tcae_diffusers.models.named_models import OTHER_AUTOENCODERS, build_named_autoencoder, build_transformer

from ..results.kinds.cost import CostResult
from ..results.provenance import provenance


@dataclass
class CountedModelArguments(Arguments):
    """What is counted."""

    group: ClassVar[str] = "Models"

    autoencoder: list[str] = option(
        ["tc-ae-f32c128", *OTHER_AUTOENCODERS],
        f"Saved folders, TC-AE presets, or {', '.join(OTHER_AUTOENCODERS)}; presets stands for all TC-AE presets.",
        positional=True,
    )
    height: int = option(256, "Height of the image in pixels.", metavar="PIXELS")
    width: int = option(256, "Width of the image in pixels.", metavar="PIXELS")
    transformer: list[str] = option(
        [],
        "Diffusion transformer to count too, repeatable: a saved or a pipeline folder, a TC-DiT preset or dit-xl.",
        metavar="MODEL",
        repeat=True,
    )
    latent_shape: tuple[int, int, int] = option(
        (128, 8, 8), "Channels, height and width of the transformers' latent.", metavar=("C", "H", "W")
    )
    output: Path | None = option(
        None, "Folder for cost.json, or a file called .json; nothing is written if unset.", metavar="PATH"
    )


@dataclass
class LatencyArguments(Arguments):
    """Whether models run, and how."""

    group: ClassVar[str] = "Latency"

    latency: bool = option(False, "Time encoding and decoding here; models called by name get random weights.")
    batch_size: int = option(1, "Images in one forward pass that is timed.")
    device: str = option("cpu", "Device on which models are timed.", metavar="DEVICE")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("batch_size", self.batch_size >= 1, "at least 1")


@dataclass
class CostArguments(CountedModelArguments, LatencyArguments):
    """
    What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters, activation memory, latency.

    The paper (TC-AE, arXiv 2604.07340) compares autoencoders by the MACs of encoder plus decoder at 256x256, products
    of attention included: 164 GMAC for TC-AE, 607 GMAC for DC-AE f32. Counting runs on PyTorch's meta device:
    full-size models take no memory and no time.
    """


def run(arguments: CostArguments) -> CostResult:
    """
    Counts models.

    Raises:
        InputError: If a model is unknown or does not take the size.
    """
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
