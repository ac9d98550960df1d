"""A whole comparison of several tokenizers from one YAML file; what is done already is not done again."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tcae_diffusers.errors import InputError

from .measured_samples import SamplingPlan, measure_pipeline
from .subcommands import run_unless_done

MEASURES = ("reconstruction", "latents", "probing", "generation")


@dataclass
class TokenizerEntry:
    """One tokenizer of a comparison.

    Args:
        autoencoder: Saved folder or Hub name.
        pipelines: `{DiT steps: pipeline folder}`, trained on its latents; may be empty.
        token_module: As in `probing`, for other models than AutoencoderTC.
    """

    autoencoder: str
    pipelines: dict[int, str] = field(default_factory=dict)
    token_module: str | None = None


@dataclass
class ComparisonPlan:
    """The content of a comparison file.

    Args:
        tokenizers: `{name: TokenizerEntry}`, in the order of the report; the first is the baseline.
        train, test: Data for fitting and judging probes; `test` also for reconstruction and latents.
        reference: Real images for the samples (default: `train`).
        measures: Which of reconstruction, latents, probing, generation.
        resolution, max_images, extractor, extractor_weights, feature_cache, batch_size, device, seed: As in the
            commands.
        epochs: Of the linear probe.
        num_images, num_inference_steps, guidance_scale, guidance_interval, timestep_shift, labels: As in `generate`.
    """

    tokenizers: dict[str, TokenizerEntry]
    train: str = "openmoji:train"
    test: str = "openmoji:heldout"
    reference: str | None = None
    measures: tuple[str, ...] = MEASURES
    resolution: int | None = None
    max_images: int | None = None
    extractor: str = "efficientnet-lite0"
    extractor_weights: str | None = None
    feature_cache: str | None = None
    batch_size: int = 32
    device: str | None = None
    seed: int = 0
    epochs: int = 50
    num_images: int = 50_000
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    timestep_shift: float | None = None
    labels: str = "balanced"

    def sampling(self) -> SamplingPlan:
        names = [entry.name for entry in dataclasses.fields(SamplingPlan) if entry.init]
        plan = {name: getattr(self, name) for name in names}
        return SamplingPlan(**{**plan, "reference": self.reference or self.train})


def _checked(cls, content: Any, where: str):
    if not isinstance(content, dict):
        raise InputError(f"{where} is {content!r}; expected keys and values")
    known = [entry.name for entry in dataclasses.fields(cls)]
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise InputError(f"{where}: unknown key {', '.join(unknown)}; expected of {', '.join(known)}")
    required = [entry.name for entry in dataclasses.fields(cls) if _is_required(entry)]
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} is missing")
    return content


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def read_plan(path: str | Path) -> ComparisonPlan:
    """Reads and checks a comparison file.

    Raises:
        InputError: Not a YAML file, an unknown or missing key, a measure or number of steps that makes no sense.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read comparison {path}: {error}") from error
    content = dict(_checked(ComparisonPlan, content, str(path)))
    entries = content["tokenizers"]
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: tokenizers must be names with an autoencoder each, got {entries!r}")
    tokenizers = {}
    for name, entry in entries.items():
        entry = dict(_checked(TokenizerEntry, entry, f"{path}: tokenizer {name!r}"))
        steps = entry.get("pipelines") or {}
        if not isinstance(steps, dict) or not all(isinstance(key, int) and key > 0 for key in steps):
            raise InputError(f"{path}: pipelines of {name!r} must be 'DiT steps: folder', got {steps!r}")
        tokenizers[str(name)] = TokenizerEntry(**{**entry, "pipelines": dict(sorted(steps.items()))})
    measures = tuple(content.get("measures", MEASURES))
    wrong = [measure for measure in measures if measure not in MEASURES]
    if wrong:
        raise InputError(f"{path}: unknown measure {', '.join(map(str, wrong))}; expected of {', '.join(MEASURES)}")
    return ComparisonPlan(**{**content, "tokenizers": tokenizers, "measures": measures})


def folder_name(name: str) -> str:
    """A tokenizer's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "tokenizer"


def run_plan(plan: ComparisonPlan, output: Path) -> dict[str, dict[str, Any]]:
    """Runs whatever is not done yet.

    Returns:
        Per tokenizer `results`, the result files in order, and `generation`, `{DiT steps: generation.json}`.
    """
    folders = [folder_name(name) for name in plan.tokenizers]
    if len(set(folders)) < len(folders):
        raise InputError(f"two tokenizers would share a folder: {', '.join(folders)}; choose clearer names")
    return {
        name: _run_tokenizer(plan, entry, name, output / folder)
        for (name, entry), folder in zip(plan.tokenizers.items(), folders, strict=True)
    }


def _run_tokenizer(plan: ComparisonPlan, entry: TokenizerEntry, name: str, folder: Path) -> dict[str, Any]:
    common = ["--autoencoder", entry.autoencoder, "--batch_size", str(plan.batch_size)]
    if plan.device:
        common += ["--device", plan.device]
    if plan.resolution:
        common += ["--resolution", str(plan.resolution)]
    on_images = [*common, "--data", plan.test, "--extractor", plan.extractor]
    if plan.extractor_weights:
        on_images += ["--extractor_weights", str(plan.extractor_weights)]
    if plan.max_images:
        on_images += ["--max_images", str(plan.max_images)]
    probing = [*common, "--train", plan.train, "--test", plan.test, "--epochs", str(plan.epochs)]
    probing += ["--seed", str(plan.seed)]
    if entry.token_module:
        probing += ["--token_module", entry.token_module]
    commands = {
        "reconstruction": on_images,
        "latents": [*on_images, "--seed", str(plan.seed)],
        "probing": probing,
    }
    results = []
    for measure, arguments in commands.items():
        if measure in plan.measures:
            result = folder / measure / f"{measure}.json"
            run_unless_done(measure, arguments, folder / measure, result, [entry.autoencoder, plan.train, plan.test])
            results.append(result)
    generation = {}
    if "generation" in plan.measures:
        for steps, pipeline in entry.pipelines.items():
            place = folder / "generation" / str(steps)
            generation[steps] = measure_pipeline(pipeline, place, f"{name} after {steps} steps", plan.sampling())
    return {"results": results, "generation": generation}
