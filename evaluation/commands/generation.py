"""How close are sets of generated images to real ones?"""

from __future__ import annotations

from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.generation import evaluate_generation
from tcae_diffusers.metrics.reference import open_reference

from ..arguments.generation import GenerationArguments
from ..arguments.named_paths import parse_named_paths
from ..pictures.sample_sheet import sample_sheet
from ..results.kinds.generation import GenerationResult, SampleSet
from ..results.provenance import provenance


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
        raise InputError(f"sample sets differ in size: {listed}; compare sets of the same size")
    network, cache = arguments.feature_network(arguments.chosen_device()), arguments.cache_folder()
    size = next(iter(sizes.values()))
    reference, description = open_reference(
        arguments.reference, size, network, arguments.batch_size, cache, arguments.seed
    )
    sets: list[SampleSet] = []
    files: dict[str, bytes | str] = {}
    for name, images in opened.items():
        figures = evaluate_generation(
            images, reference, network, arguments.reference_count, arguments.batch_size, cache
        )
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
        files=files,
        **provenance(reference_count=arguments.reference_count, seed=arguments.seed, ranks=state.num_processes),
    )
