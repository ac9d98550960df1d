"""Draws samples from a pipeline and measures them, for the commands that do so at many points, each only once."""

from __future__ import annotations

from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.reference import open_reference_content

from ..arguments.generate import GenerateArguments
from ..arguments.generation import GenerationArguments
from ..arguments.groups import FeatureCacheArguments, HeldoutArguments, MachineArguments
from ..arguments.sampling import DrawingArguments, GuidanceArguments, SamplingArguments
from ..results.kinds.generation import GenerationResult
from ..results.kinds.samples import SamplesResult
from ..results.resumption import run_unless_done
from . import generate, generation
from .heldout_measures import heldout_measures


def measure_pipeline(
    pipeline: str,
    folder: Path,
    name: str,
    sampling: SamplingArguments,
    guidance: GuidanceArguments,
    guidance_transformer: str | None = None,
) -> GenerationResult:
    """Samples of `pipeline` in `folder/samples`, and what they score, in `folder/results`.

    Both are resumable: drawn images stay, and samples whose result is there are not measured again.

    Raises:
        InputError: If the pipeline or the reference cannot be used, or there is no reference.
    """
    if not sampling.reference:
        raise InputError(f"{pipeline} is a pipeline: pass --reference, the real images to compare its samples with")
    # What cannot be measured should not be found out after hours of drawing.
    open_reference_content(sampling.reference, network=sampling.feature_network("cpu"))
    heldout_measures(sampling, sampling.reference)
    drawing = GenerateArguments(
        pipeline=pipeline,
        guidance_transformer=guidance_transformer,
        output=folder / "samples",
        **guidance.values_of(GuidanceArguments),
        **sampling.values_of(DrawingArguments, MachineArguments),
    )
    run_unless_done(generate.run, drawing, SamplesResult)
    measuring = GenerationArguments(
        # Pictures are named after the set.
        samples=[f"{name.replace('/', '-')}={drawing.output}"],
        reference=sampling.reference,
        seed=sampling.seed,
        output=folder / "results",
        **sampling.values_of(HeldoutArguments, FeatureCacheArguments, MachineArguments),
    )
    return run_unless_done(generation.run, measuring, GenerationResult)
