"""A complete comparison of several tokenizers from one YAML file; existing results are reused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tcae_diffusers.arguments import read_fields, read_yaml
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.settings import EXTRACTOR_NAMES, OBJECT_POINTS
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.fingerprint import TokenizerFingerprint
from tcae_diffusers.models.object_finder import ObjectFinder

from ..arguments.groups import usable_device
from ..arguments.latents import LatentsArguments
from ..arguments.probing import ProbingArguments
from ..arguments.reconstruction import ReconstructionArguments
from ..arguments.sampling import GUIDERS, GuidanceArguments, SamplingArguments
from ..results.kinds.generation import GenerationResult
from ..results.kinds.latents import LatentsResult
from ..results.kinds.probing import ProbingResult
from ..results.kinds.reconstruction import ReconstructionResult
from ..results.result import Result
from ..results.resumption import run_unless_done
from . import latents, probing, reconstruction
from .measured_samples import measure_pipeline

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
        train, test: Data for fitting and judging probes; `test` also for reconstruction and latents, `train` also for
            the linear baseline of reconstructions.
        reference: Real images for the samples (default: `train`).
        heldout: As in `generation`; `test` may serve here too.
        fdr_networks: As in `generation`, where FDr is to be measured; they need `heldout`.
        measures: Which of reconstruction, latents, probing, generation.
        resolution, max_images, extractor, extractor_weights, feature_cache, batch_size, device, seed: As in the
            commands.
        epochs: Of the linear probe.
        object_finder, object_points: As in `probing`, where SRSS is to be measured.
        num_images, num_inference_steps, guidance_scale, guidance_interval, guider, guider_options, timestep_shift,
            labels: As in `generate`.
    """

    tokenizers: dict[str, TokenizerEntry]
    train: str = "openmoji:train"
    test: str = "openmoji:heldout"
    reference: str | None = None
    heldout: str | None = None
    fdr_networks: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=lambda: list(MEASURES))
    resolution: int | None = None
    max_images: int | None = None
    extractor: str = "efficientnet-lite0"
    extractor_weights: str | None = None
    feature_cache: str | None = None
    batch_size: int = 32
    device: str | None = None
    seed: int = 0
    epochs: int = 50
    object_finder: str | None = None
    object_points: int = OBJECT_POINTS
    num_images: int = 50_000
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guider: str | None = None
    guider_options: dict[str, Any] = field(default_factory=dict)
    timestep_shift: float | None = None
    labels: str = "balanced"

    def shared(self) -> dict[str, Any]:
        """Arguments that all commands have."""
        return {"batch_size": self.batch_size, "device": self.device}

    def features(self) -> dict[str, Any]:
        """Arguments of commands that measure distances."""
        weights = None if self.extractor_weights is None else Path(self.extractor_weights)
        return {"extractor": self.extractor, "extractor_weights": weights}

    def guidance(self) -> GuidanceArguments:
        """How samples are guided.

        Raises:
            InputError: If that makes no sense.
        """
        if self.guider not in (None, *GUIDERS):
            raise InputError(f"guider {self.guider!r} is unknown; expected one of {', '.join(GUIDERS)}")
        names = ("guidance_scale", "guidance_interval", "guider", "guider_options")
        return GuidanceArguments(**{name: getattr(self, name) for name in names})

    def on_autoencoder(
        self, entry: TokenizerEntry, folder: Path
    ) -> tuple[ReconstructionArguments, LatentsArguments, ProbingArguments]:
        """What is asked of the commands that measure an autoencoder.

        Raises:
            InputError: If one of them refuses it.
        """
        common = {"autoencoder": entry.autoencoder, "resolution": self.resolution, **self.shared()}
        on_images = {**common, "data": self.test, "max_images": self.max_images, **self.features()}
        probed = ProbingArguments(
            **common,
            train=self.train,
            test=self.test,
            token_module=entry.token_module,
            object_finder=self.object_finder,
            object_points=self.object_points,
            epochs=self.epochs,
            seed=self.seed,
            output=folder / "probing",
        )
        return (
            ReconstructionArguments(**on_images, baseline_data=self.train, output=folder / "reconstruction"),
            LatentsArguments(**on_images, seed=self.seed, output=folder / "latents"),
            probed,
        )

    def check_machine(self) -> None:
        """
        Raises:
            InputError: If there is no such device, feature network or segmentation model.
        """
        if self.device is not None:
            usable_device(self.device)
        if self.object_finder is not None:
            ObjectFinder(self.object_finder, "cpu", self.object_points)
        # Samples are not measured without one.
        networks = EXTRACTOR_NAMES if "generation" in self.measures else (*EXTRACTOR_NAMES, "none")
        if self.extractor not in networks:
            raise InputError(f"extractor {self.extractor!r} is unknown; expected one of {', '.join(networks)}")
        if self.extractor_weights is not None and not Path(self.extractor_weights).exists():
            raise InputError(f"extractor_weights {self.extractor_weights} does not exist")

    def sampling(self) -> SamplingArguments:
        names = ("num_images", "num_inference_steps", "timestep_shift", "labels", "heldout", "fdr_networks", "seed")
        return SamplingArguments(
            reference=self.reference or self.train,
            feature_cache=None if self.feature_cache is None else Path(self.feature_cache),
            **{name: getattr(self, name) for name in names},
            **self.features(),
            **self.shared(),
        )


@dataclass
class MeasuredTokenizer:
    """
    What a plan knows of a tokenizer.

    Args:
        results (`list[Result]`): Of the autoencoder.
        generation (`dict[int, GenerationResult]`): Of its pipelines, by DiT steps.
    """

    results: list[Result] = field(default_factory=list)
    generation: dict[int, GenerationResult] = field(default_factory=dict)


def read_plan(path: str | Path) -> ComparisonPlan:
    """Reads and checks a comparison file.

    Raises:
        InputError: Not a YAML file, an unknown or missing key, a value of another type, a measure or number of steps
            that makes no sense.
    """
    try:
        content = read_yaml(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read comparison {path}: {' '.join(str(error).split())}") from error
    plan = read_fields(ComparisonPlan, content, str(path))
    if not plan.tokenizers:
        raise InputError(f"{path}: tokenizers must map names to entries with an autoencoder, got none")
    plan.tokenizers = {
        str(name): _read_tokenizer(entry, f"{path}: tokenizer {name!r}") for name, entry in plan.tokenizers.items()
    }
    wrong = [measure for measure in plan.measures if measure not in MEASURES]
    if wrong or not plan.measures:
        problem = f"unknown measure {', '.join(wrong)}" if wrong else "measures is empty"
        raise InputError(f"{path}: {problem}; expected one of {', '.join(MEASURES)}")
    if plan.fdr_networks and plan.heldout is None:
        raise InputError(f"{path}: fdr_networks {plan.fdr_networks} have no effect without heldout; name both")
    if plan.object_finder is None and plan.object_points != OBJECT_POINTS:
        raise InputError(f"{path}: object_points {plan.object_points} have no effect without object_finder; name both")
    if plan.object_finder is not None and "probing" not in plan.measures:
        raise InputError(f"{path}: object_finder {plan.object_finder} has no effect without the measure probing")
    # What cannot be measured should not be found out after everything else was measured.
    try:
        plan.guidance()
        plan.sampling()
        for entry in plan.tokenizers.values():
            plan.on_autoencoder(entry, Path())
        plan.check_machine()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return plan


def _read_tokenizer(content: Any, where: str) -> TokenizerEntry:
    entry = read_fields(TokenizerEntry, content, where)
    if not all(type(key) is int and key > 0 and isinstance(entry.pipelines[key], str) for key in entry.pipelines):
        raise InputError(f"{where}: pipelines must be 'DiT steps: folder', got {entry.pipelines!r}")
    entry.pipelines = dict(sorted(entry.pipelines.items()))
    return entry


def folder_name(name: str) -> str:
    """A tokenizer's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "tokenizer"


def run_plan(plan: ComparisonPlan, output: Path) -> dict[str, MeasuredTokenizer]:
    """Measures whatever is not done yet; returns everything by the tokenizers' names.

    Raises:
        InputError: If two tokenizers would share a folder, or something cannot be measured.
    """
    folders = [folder_name(name) for name in plan.tokenizers]
    if len(set(folders)) < len(folders):
        raise InputError(f"two tokenizers would share a folder: {', '.join(folders)}; choose clearer names")
    if "generation" in plan.measures:
        for name, entry in plan.tokenizers.items():
            _require_its_pipelines(name, entry)
    return {
        name: _measure_tokenizer(plan, entry, name, output / folder)
        for (name, entry), folder in zip(plan.tokenizers.items(), folders, strict=True)
    }


def _require_its_pipelines(name: str, entry: TokenizerEntry) -> None:
    """
    Raises:
        InputError: If a pipeline draws latents of another encoder, whose figures would stand under this name.
    """
    # A name on the Hub is left to the command that draws.
    folders = [folder for folder in entry.pipelines.values() if (Path(folder) / "model_index.json").is_file()]
    if not folders:
        return
    own = TokenizerFingerprint.of(load_autoencoder(entry.autoencoder))
    for folder in folders:
        if difference := own.difference(TokenizerFingerprint.of(load_autoencoder(folder))):
            raise InputError(
                f"tokenizer {name!r}: the pipeline {folder} was not trained on latents of {entry.autoencoder}: its own"
                f" autoencoder has another encoder, {difference}"
            )


def _measure_tokenizer(plan: ComparisonPlan, entry: TokenizerEntry, name: str, folder: Path) -> MeasuredTokenizer:
    reconstructing, diagnosing, probed = plan.on_autoencoder(entry, folder)
    measured = MeasuredTokenizer()
    if "reconstruction" in plan.measures:
        measured.results.append(run_unless_done(reconstruction.run, reconstructing, ReconstructionResult))
    if "latents" in plan.measures:
        measured.results.append(run_unless_done(latents.run, diagnosing, LatentsResult))
    if "probing" in plan.measures:
        measured.results.append(run_unless_done(probing.run, probed, ProbingResult))
    if "generation" in plan.measures:
        for steps, pipeline in entry.pipelines.items():
            measured.generation[steps] = measure_pipeline(
                pipeline,
                folder / "generation" / str(steps),
                f"{name} after {steps} steps",
                plan.sampling(),
                plan.guidance(),
            )
    return measured
