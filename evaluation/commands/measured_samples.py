"""Draws samples from a pipeline and measures them, for the commands that do so at many points, each only once."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.features import EFFICIENTNET_LITE0, EXTRACTORS

from .subcommands import run_unless_done

DISTANCE_NAMES = ("gFD-", "gFID")


@dataclass
class SamplingPlan:
    """How every point is drawn and measured; the same for all, so that points can be compared.

    Args:
        reference: Real images, as in `generation --reference`.
        num_images, num_inference_steps, guidance_scale, guidance_interval, timestep_shift, seed, labels: As in
            `generate`.
        extractor, extractor_weights, feature_cache: As in `generation`.
    """

    reference: str
    num_images: int = 50_000
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    timestep_shift: float | None = None
    labels: str = "balanced"
    extractor: str = EFFICIENTNET_LITE0
    extractor_weights: str | None = None
    feature_cache: str | None = None
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    _shared: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self):
        self._shared = ["--seed", str(self.seed), "--batch_size", str(self.batch_size)]
        if self.device:
            self._shared += ["--device", self.device]

    def generate_arguments(self, guidance_scale: float, guidance_interval: tuple[float, float] | None) -> list[str]:
        arguments = ["--num_images", self.num_images, "--num_inference_steps", self.num_inference_steps]
        arguments += ["--labels", self.labels, "--guidance_scale", guidance_scale, *self._shared]
        if guidance_interval:
            arguments += ["--guidance_interval", *guidance_interval]
        if self.timestep_shift is not None:
            arguments += ["--timestep_shift", self.timestep_shift]
        return [str(argument) for argument in arguments]

    def generation_arguments(self) -> list[str]:
        arguments = ["--reference", self.reference, "--extractor", self.extractor, *self._shared]
        if self.extractor_weights:
            arguments += ["--extractor_weights", str(self.extractor_weights)]
        if self.feature_cache:
            arguments += ["--feature_cache", str(self.feature_cache)]
        return arguments


def measure_pipeline(
    pipeline: str,
    folder: Path,
    name: str,
    plan: SamplingPlan,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
) -> Path:
    """Samples of `pipeline` in `folder/samples` and their figures in `folder/generation.json`; returns the latter.

    Both are resumable: drawn images stay, and a point whose result stems from the same inputs is not measured again.
    """
    scale = plan.guidance_scale if guidance_scale is None else guidance_scale
    samples, result = folder / "samples", folder / "results" / "generation.json"
    drawing = ["--pipeline", pipeline, *plan.generate_arguments(scale, guidance_interval or plan.guidance_interval)]
    run_unless_done("generate", drawing, samples, samples / "manifest.json", [pipeline])
    measuring = ["--samples", f"{name}={samples}", *plan.generation_arguments()]
    run_unless_done("generation", measuring, result.parent, result, [str(samples), plan.reference])
    return result


def read_first_set(path: Path) -> dict[str, Any]:
    """The first sample set of a `generation.json`, with the file's `reference`.

    Raises:
        InputError: If the file is not one.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != "generation":
        raise InputError(f"{path} is not a generation.json, the result of 'generation'")
    return {**content["sets"][0], "reference": content["reference"]}


def distance_figure(figures: list[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The figure called `name`, by default the Fréchet distance itself (not its extrapolation)."""
    for figure in figures:
        if figure["name"] == name:
            return figure
        if name is None and figure["name"].startswith(DISTANCE_NAMES) and "-inf" not in figure["name"]:
            return figure
    names = ", ".join(figure["name"] for figure in figures)
    raise InputError(f"no figure {name or 'gFD or gFID'!r}; there are {names}")


def add_sampling_arguments(parser: argparse.ArgumentParser, reference_required: bool) -> None:
    """The options of a [`SamplingPlan`]."""
    parser.add_argument("--reference", required=reference_required, help="real images, as in 'generation'")
    parser.add_argument("--num_images", type=int, default=50_000, help="samples per point (default: %(default)s)")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="sampler steps (default: %(default)s)")
    parser.add_argument("--timestep_shift", type=float, help="as in 'generate'")
    parser.add_argument("--labels", default="balanced", metavar="balanced|DATA", help="as in 'generate'")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    parser.add_argument("--extractor", default=EFFICIENTNET_LITE0, choices=list(EXTRACTORS), help="as in 'generation'")
    parser.add_argument("--extractor_weights", help="weights of the feature network")
    parser.add_argument("--feature_cache", help="folder for computed features")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")


def plan_of(args: argparse.Namespace, **overrides: Any) -> SamplingPlan:
    """The plan that [`add_sampling_arguments`] describes."""
    names = ("reference", "num_images", "num_inference_steps", "labels", "seed", "extractor", "extractor_weights")
    names += ("feature_cache", "batch_size", "device", "timestep_shift")
    return SamplingPlan(**{name: getattr(args, name) for name in names}, **overrides)
