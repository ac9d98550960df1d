"""What the tokens know about the class, and how much of it survives in the latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.metrics.probing import evaluate_probing
from tcae_diffusers.models.adapters import adapt, load_autoencoder

from ..results.kinds.autoencoder import describe_autoencoder, describe_images
from ..results.kinds.probing import ProbingResult
from ..results.provenance import provenance
from ..results.resumption import folder_content, source_content
from .argument_groups import AutoencoderArguments, MachineArguments


@dataclass
class ProbeArguments(Arguments):
    """What is probed, and how."""

    group: ClassVar[str] = "Probing"

    train: str = option("openmoji:train", "Labelled images that the probes are fitted to.", metavar="SOURCE")
    test: str = option("openmoji:heldout", "Labelled images that the probes are judged on.", metavar="SOURCE")
    resolution: int | None = option(
        None, "Side of the images in pixels; the autoencoder's sample_size if unset.", metavar="PIXELS"
    )
    token_module: str | None = option(
        None,
        "Submodule of the encoder whose output is the tokens, for other models than AutoencoderTC.",
        metavar="NAME",
    )
    tsne: bool = option(False, "Draw a t-SNE picture of each depth too, which needs scikit-learn.")
    epochs: int = option(50, "Passes of the linear probe over the training images.")
    seed: int = option(0, "Seed of the linear probe and of t-SNE.")
    output: Path = option(MISSING, "Folder for probing.json.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("epochs", self.epochs >= 1, "at least 1")


@dataclass
class ProbingArguments(AutoencoderArguments, ProbeArguments, MachineArguments):
    """
    What the tokens know about the class, and how much of it survives in the latent (A1, A2 and the structure loss).

    A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; 1 - A2 / A1 is
    what the paper calls structure loss. Any diffusers autoencoder has a latent; tokens are known for AutoencoderTC,
    and for others by --token_module.
    """

    content: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "autoencoder": folder_content,
        "train": source_content,
        "test": source_content,
    }


def run(arguments: ProbingArguments) -> ProbingResult:
    """
    Probes an autoencoder.

    Raises:
        InputError: If the model or the images cannot be used; the message says why.
    """
    state = arguments.process_state()
    model = load_autoencoder(arguments.autoencoder, arguments.chosen_device())
    resolution = arguments.resolution or adapt(model).image_size
    train, test = (open_data_source(spec, resolution, needs_labels=True) for spec in (arguments.train, arguments.test))
    found = evaluate_probing(
        model,
        train,
        test,
        arguments.batch_size,
        arguments.token_module,
        arguments.epochs,
        arguments.seed,
        tsne=arguments.tsne,
    )
    return ProbingResult(
        figures=found.figures,
        autoencoder=describe_autoencoder(arguments.autoencoder, model),
        data=describe_images(arguments.test, test),
        pictures=found.pictures,
        labels=found.labels,
        classes=found.classes,
        **provenance(
            train=arguments.train,
            test=arguments.test,
            epochs=arguments.epochs,
            seed=arguments.seed,
            token_module=arguments.token_module,
            resolution=resolution,
            ranks=state.num_processes,
        ),
    )
