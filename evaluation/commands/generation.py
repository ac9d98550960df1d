"""How close are sets of generated images to real ones?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.data.images.image_sets import ImageSet, open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.generation import evaluate_generation
from tcae_diffusers.metrics.reference import SMALLEST_SET, open_reference

from ..pictures.sample_sheet import sample_sheet
from ..results.kinds.generation import GenerationResult, SampleSet
from ..results.provenance import provenance
from ..results.resumption import folder_content, reference_content
from .argument_groups import FeatureCacheArguments, MachineArguments
from .named_paths import parse_named_paths


def sample_sets_content(samples: list[str]) -> str:
    """Of sets of generated images, which may be named."""
    return " ".join(open_image_set(path).fingerprint for path in parse_named_paths(samples).values())


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

    content: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "samples": sample_sets_content,
        "reference": reference_content,
        "extractor_weights": folder_content,
    }


def run(arguments: GenerationArguments) -> GenerationResult:
    """
    Measures sample sets against one reference.

    Raises:
        InputError: If images cannot be used or compared; the message says why.
    """
    state = arguments.process_state()
    opened = {name: open_image_set(path) for name, path in parse_named_paths(arguments.samples).items()}
    sizes = {name: images[0].shape[:2] for name, images in opened.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InputError(f"sample sets differ in size: {listed}; compare sets of one size")
    network, cache = arguments.feature_network(arguments.chosen_device()), arguments.cache_folder()
    size = next(iter(sizes.values()))
    reference, description = open_reference(
        arguments.reference, size, network, arguments.batch_size, cache, arguments.seed
    )
    sets, files = [], {}
    for name, images in opened.items():
        figures = evaluate_generation(
            images, reference, network, arguments.reference_count, arguments.batch_size, cache
        )
        sets.append(_describe(name, images, figures))
        if state.is_main_process:
            files[sets[-1].grid], sets[-1].grid_rows = sample_sheet(images)
    return GenerationResult(
        sets=sets,
        reference=description,
        files=files,
        **provenance(reference_count=arguments.reference_count, seed=arguments.seed, ranks=state.num_processes),
    )


def _describe(name: str, images: ImageSet, figures: list) -> SampleSet:
    return SampleSet(
        name=name,
        figures=figures,
        path=images.name,
        images=len(images),
        classes=images.classes,
        fingerprint=images.fingerprint,
        grid=f"samples_{name}.png",
    )
