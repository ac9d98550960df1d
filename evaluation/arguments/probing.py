"""Options of `probing`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.metrics.settings import OBJECT_POINTS

from .groups import Content, MachineArguments, MeasuredSizeArguments


@dataclass
class ProbeArguments(Arguments):
    """What is probed, and how."""

    group: ClassVar[str] = "Probing"

    train: str = option("openmoji:train", "Labelled images that the probes are fitted to.", metavar="SOURCE")
    test: str = option("openmoji:heldout", "Labelled images that the probes are evaluated on.", metavar="SOURCE")
    token_module: str | None = option(
        None,
        "Submodule of the encoder whose output is the tokens, for models other than AutoencoderTC.",
        metavar="NAME",
    )
    object_finder: str | None = option(
        None,
        "SAM or SAM 2 of transformers, as a folder or a Hub name such as facebook/sam2.1-hiera-tiny, that finds the "
        "objects in the test images for semantic-region self-similarity (SRSS). SRSS is omitted if unset.",
        metavar="PATH",
    )
    object_points: int = option(
        OBJECT_POINTS,
        "Points along each side of an image at which --object_finder looks for an object.",
        needs="object_finder",
        at_least=1,
    )
    tsne: bool = option(False, "Also draw a t-SNE picture of each depth; needs scikit-learn.")
    epochs: int = option(50, "Passes of the linear probe over the training images.", at_least=1)
    seed: int = option(0, "Seed of the linear probe and of t-SNE.", at_least=0)
    output: Path = option(MISSING, "Folder for probing.json.", metavar="FOLDER")


@dataclass
class ProbingArguments(MeasuredSizeArguments, ProbeArguments, MachineArguments):
    """
    What the tokens know about the class, and how much of it survives in the latent (A1, A2 and the structure loss).

    A1 is the accuracy of a linear probe on the tokens before the final bottleneck, A2 on the latent; 1 - A2 / A1 is
    what the paper calls structure loss. Any diffusers autoencoder has a latent; tokens are known for AutoencoderTC,
    and for others if --token_module gives their module.

    The spatial structure of tokens and latent, which a probe of their average cannot see, is measured too: how similar
    near and distant positions are (LDS), how fast similarity falls with distance (CDS), how far tokens differ (RMSC),
    and with --object_finder how much more similar positions of an object are to near ones of it than to distant ones
    outside (SRSS).
    """

    content: ClassVar[Mapping[str, Content]] = {
        "autoencoder": "folder",
        "train": "source",
        "test": "source",
        "object_finder": "folder",
    }
