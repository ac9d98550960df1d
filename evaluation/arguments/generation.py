"""Options of `generation`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.settings import SMALLEST_SET

from .groups import Content, FeatureCacheArguments, HeldoutArguments, MachineArguments


@dataclass
class SampleSetArguments(Arguments):
    """The sample sets to compare."""

    group: ClassVar[str] = "Sample sets and real images"

    samples: list[str] = option(
        MISSING,
        "Folders or .npz files of generated images, each optionally with a name; the first is the main one.",
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
        "Number of real images to compare with: equal (as many as there are samples, or all for 50,000 samples or "
        "more), all, or a number.",
        metavar="equal|all|N",
    )
    paired: bool = option(
        False,
        "Report how much the Fréchet distances of the sets differ, with paired intervals; image i of every set must "
        "have been drawn with the same seed and label.",
    )
    seed: int = option(0, "Seed of the random draws from the real images.", at_least=0)
    output: Path = option(MISSING, "Folder for generation.json and a picture of each sample set.", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.reference_count
        if count not in ("equal", "all") and not (count.isdigit() and int(count) >= SMALLEST_SET):
            raise InputError(
                f"--reference_count {count!r} must be equal, all, or a number of at least {SMALLEST_SET}."
            )


@dataclass
class GenerationArguments(SampleSetArguments, HeldoutArguments, FeatureCacheArguments, MachineArguments):
    """
    How close are sets of generated images to real ones? Fréchet distance, KID, MIND, Inception score, precision,
    recall, density and coverage.

    Every figure is reported with its floor: the same measure between two disjoint random parts of the real images, as
    large as the sets compared where there are enough. A perfect generator would score close to the floor, not zero,
    because both sets are finite.

    With fewer than 50,000 samples each set is compared with as many real images as it has samples, drawn at random
    several times: the Fréchet distance is biased upwards for small sets, and figures and floor are comparable
    only for equal numbers. KID is unbiased at any number, and FD-inf (FID-inf) extrapolates to infinitely many images.

    With --heldout, classifiers trained on the samples are tested on real images, beside classifiers trained on as many
    images of --reference, which must have labels. With --fdr_networks too, the distance of the samples to all images
    of --reference is divided by that of as many held-out images, in each of the networks, and the ratios are averaged
    (FDr): 1 is what real images score.
    """

    content: ClassVar[Mapping[str, Content]] = {
        "samples": "sample sets",
        "reference": "reference",
        "heldout": "reference",
        "fdr_networks": "networks",
        "extractor_weights": "folder",
    }
