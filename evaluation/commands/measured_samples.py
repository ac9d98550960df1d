"""Draws samples from a pipeline and measures them, for the commands that do so at many points, each only once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option

from ..results.kinds.generation import GenerationResult
from ..results.kinds.samples import SamplesResult
from ..results.resumption import run_unless_done
from . import generate, generation
from .argument_groups import FeatureCacheArguments, MachineArguments


@dataclass
class PointArguments(Arguments):
    """What all points have in common, so that they can be compared."""

    group: ClassVar[str] = "Samples of every point"

    reference: str | None = option(
        None, "Real images to compare with: a data source, a folder or an ADM .npz.", metavar="SOURCE"
    )
    num_images: int = option(50_000, "Number of images drawn at each point.", metavar="IMAGES")
    num_inference_steps: int = option(50, "Denoising steps of each image.", metavar="STEPS")
    timestep_shift: float | None = option(
        None, "Shift of the noise levels in sampling, for flow matching; the scheduler's own if unset."
    )
    labels: str = option(
        "balanced",
        "Classes of the images: balanced, or a data source such as openmoji:train, whose class proportions are"
        " followed, by name.",
        metavar="balanced|SOURCE",
    )
    seed: int = option(0, "Seed of the samples and of the random draws from the real images.")


@dataclass
class SamplingArguments(PointArguments, FeatureCacheArguments, MachineArguments):
    """How every point is drawn and measured."""


def measure_pipeline(
    pipeline: str,
    folder: Path,
    name: str,
    sampling: SamplingArguments,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> GenerationResult:
    """Samples of `pipeline` in `folder/samples`, and what they score, in `folder/results`.

    Both are resumable: drawn images stay, and samples whose result is there are not measured again.

    Raises:
        InputError: If the pipeline or the reference cannot be used.
    """
    shared = {entry: getattr(sampling, entry) for entry in ("seed", "batch_size", "device")}
    drawing = generate.GenerateArguments(
        pipeline=pipeline,
        num_images=sampling.num_images,
        num_inference_steps=sampling.num_inference_steps,
        timestep_shift=sampling.timestep_shift,
        labels=sampling.labels,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        output=folder / "samples",
        **shared,
    )
    run_unless_done(generate.run, drawing, SamplesResult)
    measuring = generation.GenerationArguments(
        # Pictures are named after the set.
        samples=[f"{name.replace('/', '-')}={drawing.output}"],
        reference=sampling.reference,
        extractor=sampling.extractor,
        extractor_weights=sampling.extractor_weights,
        feature_cache=sampling.feature_cache,
        no_feature_cache=sampling.no_feature_cache,
        output=folder / "results",
        **shared,
    )
    return run_unless_done(generation.run, measuring, GenerationResult)
