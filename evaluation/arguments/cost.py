"""Options of `cost`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.models.named_models import OTHER_AUTOENCODERS


@dataclass
class CountedModelArguments(Arguments):
    """The models to count."""

    group: ClassVar[str] = "Models"

    autoencoder: list[str] = option(
        ["tc-ae-f32c128", *OTHER_AUTOENCODERS],
        f"Saved folders, TC-AE presets, or {', '.join(OTHER_AUTOENCODERS)}; presets stands for all TC-AE presets.",
        positional=True,
    )
    height: int = option(256, "Height of the image in pixels.", metavar="PIXELS", at_least=1)
    width: int = option(256, "Width of the image in pixels.", metavar="PIXELS", at_least=1)
    transformer: list[str] = option(
        [],
        "Diffusion transformer to count too, repeatable: a saved or a pipeline folder, a TC-DiT preset or dit-xl.",
        metavar="MODEL",
        repeat=True,
    )
    latent_shape: tuple[int, int, int] = option(
        (128, 8, 8), "Channels, height and width of the transformers' latent.", metavar=("C", "H", "W"), at_least=1
    )
    output: Path | None = option(
        None, "Folder for cost.json, or a path that ends in .json; nothing is written if unset.", metavar="PATH"
    )


@dataclass
class LatencyArguments(Arguments):
    """Timing of the models."""

    group: ClassVar[str] = "Latency"

    latency: bool = option(
        False, "Time encoding and decoding on this machine; models given by name get random weights."
    )
    batch_size: int = option(1, "Images in each timed forward pass.", at_least=1)
    device: str = option("cpu", "Device on which models are timed.", metavar="DEVICE")


@dataclass
class CostArguments(CountedModelArguments, LatencyArguments):
    """
    What an autoencoder or a diffusion transformer costs: multiply-accumulates, parameters, activation memory, latency.

    The paper (TC-AE, arXiv 2604.07340) compares autoencoders by the MACs of encoder plus decoder at 256x256, including
    attention products: 164 GMAC for TC-AE, 607 GMAC for DC-AE f32. Counting runs on PyTorch's meta device: full-size
    models take no memory and no time.
    """
