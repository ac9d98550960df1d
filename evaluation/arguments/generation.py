"""Options of `generation`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.settings import SMALLEST_SET

from .groups import Content, FeatureCacheArguments, MachineArguments


@dataclass
class SampleSetArguments(Arguments):
    """What is compared."""

    group: ClassVar[str] = "Sample sets and real images"

    samples: list[str] = option(
        MISSING,
        "Folders or .npz files of generated images, which may be named; the first is the headline.",
        metavar="[NAME=]PATH",
    )
    reference: str = option(
        MISSING,
        "Real images: a data source such as openmoji:train, a folder, or an ADM .npz with images, or mu and sigma."
        " Images of another size than the samples' are cropped and resized to it.",
        metavar="SOURCE",
    )
    reference_count: str = option(
        "equal",
        "Real images in a comparison: equal is as many as there are samples (all from 50,000 on), all, or a number.",
        metavar="equal|all|N",
    )
    seed: int = option(0, "Seed of the random draws from the real images.")
    output: Path = option(MISSING, "Folder for generation.json and a picture of each sample set.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.reference_count
        if count not in ("equal", "all") and not (count.isdigit() and int(count) >= SMALLEST_SET):
            raise InputError(f"--reference_count {count!r} must be equal, all, or a number from {SMALLEST_SET} on.")


@dataclass
class GenerationArguments(SampleSetArguments, FeatureCacheArguments, MachineArguments):
    """
    How close are sets of generated images to real ones? Fréchet distance, KID, Inception score, precision, recall,
    density and coverage.

    Beside every figure stands its floor: the same measure between two disjoint random halves of the real images. A
    perfect generator would score about the floor, not zero, because both sides are finite samples.

    With fewer than 50,000 real images each sample set is compared with as many of them as it has samples, drawn at
    random several times: the Fréchet distance is biased upwards by small numbers, and only equal numbers make figures
    and floor comparable. KID is unbiased at any number, and FD-inf (FID-inf) extrapolates to infinitely many images.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "samples": "sample sets",
        "reference": "reference",
        "extractor_weights": "folder",
    }
