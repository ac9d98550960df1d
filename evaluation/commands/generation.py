"""How close are sets of generated images to real ones?"""

from __future__ import annotations

import itertools
from typing import Any

from tcae_diffusers.data.images.image_sets import ImageSet, open_image_set
from tcae_diffusers.data.images.sample_manifest import recorded_seed
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.confidence import JACKKNIFE
from tcae_diffusers.metrics.figure import Figure
from tcae_diffusers.metrics.frechet_interval import paired_frechet_interval
from tcae_diffusers.metrics.generation import compared_count, generation_figures, sample_features
from tcae_diffusers.metrics.reference import open_reference

from ..arguments.generation import GenerationArguments
from ..arguments.named_paths import parse_named_paths
from ..pictures.sample_sheet import sample_sheet
from ..results.figure_differences import described_pair
from ..results.kinds.generation import GenerationResult, SampleSet, distance_figure
from ..results.provenance import provenance
from .heldout_measures import heldout_measures


def run(arguments: GenerationArguments) -> GenerationResult:
    """
    Measures sample sets against one reference.

    Raises:
        InputError: If images cannot be used or compared; the message says why.
    """
    state = arguments.process_state()
    opened = {name: open_image_set(path) for name, path in parse_named_paths(arguments.samples).items()}
    if arguments.paired:
        require_pairs(opened)
    sizes = {name: images[0].shape[:2] for name, images in opened.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InputError(f"sample sets differ in size: {listed}; compare sets of the same size")
    network, cache = arguments.feature_network(arguments.chosen_device()), arguments.cache_folder()
    size = next(iter(sizes.values()))
    on_heldout = heldout_measures(
        arguments,
        arguments.reference,
        size,
        list(opened.values()),
        network.device,
        arguments.batch_size,
        cache,
        arguments.seed,
    )
    reference, description = open_reference(
        arguments.reference, size, network, arguments.batch_size, cache, arguments.seed
    )
    sets: list[SampleSet] = []
    files: dict[str, bytes | str] = {}
    paired: dict[str, tuple[Figure, list[float] | None]] = {}
    for name, images in opened.items():
        features = sample_features(images, network, arguments.batch_size, cache)
        figures = generation_figures(features, reference, network, arguments.reference_count)
        if arguments.paired:
            count = compared_count(len(features), reference, arguments.reference_count)
            paired[name] = distance_figure(figures), reference.leave_out_distances(features.features, count)
        figures += [measure.figure(images) for measure in on_heldout]
        sets.append(
            SampleSet(
                name=name,
                figures=figures,
                path=images.name,
                images=len(images),
                classes=images.classes,
                fingerprint=images.fingerprint,
                grid=f"samples_{name}.png",
            )
        )
        if state.is_main_process:
            files[sets[-1].grid], sets[-1].grid_rows = sample_sheet(images)
    return GenerationResult(
        sets=sets,
        reference=description,
        differences=paired_differences(paired),
        files=files,
        **provenance(
            reference_count=arguments.reference_count,
            heldout=arguments.heldout,
            fdr_networks=arguments.fdr_networks,
            seed=arguments.seed,
            ranks=state.num_processes,
        ),
    )


def require_pairs(sets: dict[str, ImageSet]) -> None:
    """
    Raises:
        InputError: If image `i` of every set was not drawn with one seed and one label, or nobody knows.
    """
    (first, images), *others = sets.items()
    if not others:
        raise InputError(f"--paired compares sets, and {first} is alone; name two or more --samples")
    seeds = {name: recorded_seed(each.name) for name, each in sets.items()}
    for name, seed in seeds.items():
        if seed is None:
            raise InputError(f"--paired: {name} does not say which seed it was drawn with; draw it with generate")
    for name, other in others:
        if (seeds[name], classes_of(other)) != (seeds[first], classes_of(images)):
            described = [f"{each} ({len(sets[each])} images, seed {seeds[each]})" for each in (first, name)]
            raise InputError(
                f"--paired: {' and '.join(described)} differ in seed, labels or layout; draw both with the same"
            )


def classes_of(images: ImageSet) -> list[str] | None:
    """The class of each image by its name: two pipelines may number classes differently, or have others."""
    if images.labels is None or images.classes is None:
        return None
    return [images.classes[label] for label in images.labels]


def paired_differences(sets: dict[str, tuple[Figure, list[float] | None]]) -> list[dict[str, Any]]:
    """Between the distances of every two sets, each given with its [`Reference.leave_out_distances`]."""
    pairs = []
    for (first, (one, ours)), (second, (other, theirs)) in itertools.combinations(sets.items(), 2):
        interval = paired_frechet_interval(ours, theirs)
        pair = described_pair(first, second, one.value - other.value, interval, f"paired, {JACKKNIFE}", one.better)
        pairs.append({"name": one.name, **pair})
    return pairs
