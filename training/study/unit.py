"""One arm with one seed: the real commands, from training the tokenizer to measuring samples, and one small record."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tcae_diffusers.arguments import ArgumentsType, parse_arguments
from tcae_diffusers.data.images.image_sets import is_archive
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.commands.comparison_plan import ComparisonPlan, folder_name, read_plan
from tcae_diffusers.evaluation.report.training_curves import read_scalars
from tcae_diffusers.evaluation.results.kinds.generation import GenerationResult
from tcae_diffusers.evaluation.results.kinds.study_unit import MeasuredPart, StudyUnitResult
from tcae_diffusers.evaluation.results.provenance import provenance, source_commit
from tcae_diffusers.evaluation.results.reading import collect_results, read_result
from tcae_diffusers.evaluation.results.resumption import (
    folder_content,
    networks_content,
    reference_content,
    source_content,
)
from tcae_diffusers.files import write_json, write_text
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.count_steps import tokenizer_step_cost, transformer_step_cost
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.recorded_settings import local_weights, options_set, require_same_settings
from tcae_diffusers.training.stages import Stage, run_stages
from tcae_diffusers.training.study.plan import StudyPlan
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

# What a user can do about a record of other settings.
REMEDY = "delete the record to run it again, or change the plan back"
# Points of a training curve that a record keeps, and the curves.
_POINTS = 16
_CURVES = ("heldout/", "latent/", "ssl/", "train/loss")


@dataclass(frozen=True)
class Unit:
    """
    Args:
        plan ([`StudyPlan`]): The study.
        arm (`str`), seed (`int`): Which of its runs.
        records (`Path`): Folder of records. work (`Path`): Folder of everything else.
    """

    plan: StudyPlan
    arm: str
    seed: int
    records: Path
    work: Path

    @property
    def name(self) -> str:
        return f"{folder_name(self.arm)}-seed{self.seed}"

    @property
    def record(self) -> Path:
        return self.records / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        return self.work / self.name

    @cached_property
    def tokenizer(self) -> TokenizerArguments:
        """Arguments of train_tcae. Exits for what it refuses, as the next two do."""
        arm = self.plan.arm(self.arm)
        options = {**self.plan.tokenizer, **arm.tokenizer, "seed": self.seed}
        options |= {"train_data": self.plan.train, "heldout_data": self.plan.test}
        arguments = self._parse(TokenizerArguments, "tokenizer", options)
        if arm.equal_macs_to is None:
            return arguments
        other = replace(self, arm=arm.equal_macs_to)
        # The same number of steps for all seeds.
        steps = round(arguments.max_train_steps * tokenizer_macs(other.tokenizer) / tokenizer_macs(arguments))
        return self._parse(TokenizerArguments, "tokenizer", {**options, "max_train_steps": max(1, steps)})

    @cached_property
    def latents(self) -> CacheArguments:
        """Arguments of cache_latents."""
        options = {"data": self.plan.train, "write_statistics": True, **self._image_size, **self.plan.latents}
        return self._parse(CacheArguments, "latents", options, "tokenizer")

    @property
    def _image_size(self) -> dict[str, int]:
        """What the tokenizer was trained at, if its options say so: its config may have no size."""
        resolution = self.tokenizer.resolution
        return {} if resolution is None else {"resolution": resolution}

    @cached_property
    def dit(self) -> DiTArguments:
        """Arguments of train_dit, with a pipeline after each step that is measured."""
        points = self.plan.measured_after
        options = {**self.plan.dit, **self.plan.arm(self.arm).dit, "seed": self.seed}
        options |= {"max_train_steps": points[-1], "pipeline_steps": math.gcd(*points)}
        return self._parse(DiTArguments, "dit", options, "tokenizer", "latents")

    def _parse(
        self, arguments_type: type[ArgumentsType], name: str, options: dict[str, Any], *folders: str
    ) -> ArgumentsType:
        path = self._config(name)
        write_text(path, yaml.safe_dump(options, sort_keys=False))
        paths = [word for folder in ("output_dir", *folders) for word in (f"--{folder}", "unset")]
        return parse_arguments(arguments_type, ["--config", str(path), *paths])

    def _config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def options(self) -> dict[str, Any]:
        """
        What it is trained and measured with, except images, as a record holds it.

        Raises:
            InputError: `measures` is no comparison, or a record would have no curves or no cost.
        """
        read_plan(self.write_comparison())
        named = ("output_dir", "train_data", "heldout_data", "data", "tokenizer", "latents", "resume")
        commands = {"tokenizer": self.tokenizer, "latents": self.latents, "dit": self.dit}
        if self.tokenizer.has_several_sizes or self.latents.has_several_sizes:
            raise InputError(
                "tokenizer and latents: a record says what was computed, which is counted for images of one size; "
                "omit extra_resolutions and aspect_ratio_buckets"
            )
        if self.tokenizer.report_to != "tensorboard":
            raise InputError(
                f"tokenizer: report_to {self.tokenizer.report_to!r} must be 'tensorboard', where a record takes its "
                "curves from; omit it"
            )
        settings: dict[str, Any] = {
            command: {name: value for name, value in options_set(arguments).items() if name not in named}
            for command, arguments in commands.items()
        }
        settings |= {"measured_after": self.plan.measured_after, "measures": self.plan.measures}
        return json.loads(json.dumps(settings))

    def settings(self) -> dict[str, Any]:
        """
        What a record must agree with to stand for this unit. Images, and weights that training or measures start
        from, count by their content, not by their names.

        Raises:
            InputError: Images cannot be read, or `measures` is no comparison.
        """
        measures = read_plan(self.write_comparison())
        # What is measured on too: a source that cannot be read shall not wait until everything is trained.
        named = ("train", "test", "reference", "heldout")
        sources = {"train": self.plan.train, "test": self.plan.test}
        sources |= {f"measures.{name}": getattr(measures, name) for name in named if getattr(measures, name)}
        content: dict[str, Any] = {
            name: reference_content(source) if is_archive(source) else source_content(source)
            for name, source in sources.items()
        }
        content |= {name: folder_content(path) for name, path in self._weights(measures).items()}
        if networks := networks_content(measures.fdr_networks):
            content["measures.fdr_networks"] = networks
        return {**self.options(), "content": json.loads(json.dumps(content))}

    def _weights(self, measures: ComparisonPlan) -> dict[str, str]:
        """Files and folders of weights on this machine, by the option that names them."""
        commands: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "latents": self.latents,
            "dit": self.dit,
            "measures": measures,
        }
        return local_weights(commands)

    def write_comparison(self) -> Path:
        """The comparison file of this unit alone, for `evaluation compare`."""
        dit, last = self.folder / "dit", self.plan.measured_after[-1]
        pipelines = {
            steps: str(dit / "pipeline" if steps == last else dit / "pipelines" / f"step-{steps:08d}")
            for steps in self.plan.measured_after
        }
        tokenizer = {"autoencoder": str(self.folder / "tokenizer" / "model"), "pipelines": pipelines}
        plan = {"train": self.plan.train, **self._image_size, **self.plan.measures}
        plan |= {"test": self.plan.test, "seed": self.seed}
        path = self._config("measures")
        write_text(path, yaml.safe_dump({**plan, "tokenizers": {self.arm: tokenizer}}, sort_keys=False))
        return path

    def stages(self) -> list[Stage]:
        """The commands, in order."""
        folder = self.folder
        tokenizer, latents, dit, measured = (folder / name for name in ("tokenizer", "latents", "dit", "measured"))
        model = str(tokenizer / "model")
        return [
            Stage(
                "tokenizer",
                "training.train_tcae",
                ["--config", str(self._config("tokenizer")), "--output_dir", str(tokenizer), "--resume", "latest"],
                tokenizer / "model",
            ),
            Stage(
                "latents",
                "training.cache_latents",
                ["--config", str(self._config("latents")), "--tokenizer", model, "--output_dir", str(latents)],
                latents / "manifest.json",
            ),
            Stage(
                "dit",
                "training.train_dit",
                ["--config", str(self._config("dit")), "--tokenizer", model, "--latents", str(latents)]
                + ["--output_dir", str(dit), "--resume", "latest"],
                dit / "pipeline",
            ),
            Stage(
                "measures",
                "evaluation",
                ["compare", "--config", str(self._config("measures")), "--output", str(measured)],
                measured / "comparison.json",
            ),
        ]

    def run(self) -> None:
        """
        Train and measure what is not done yet, write the record, and remove latents and checkpoints.

        Raises:
            InputError: The folder of this unit holds what was begun with other settings.
            SystemExit: A command failed or was interrupted.
        """
        settings, begun = self.settings(), self.folder / "settings.json"
        remedy = "delete the folder, or choose another --work"
        if begun.exists():
            require_same_settings(self.folder, json.loads(begun.read_text()), settings, remedy)
        write_json(begun, settings)
        seconds = run_stages(self.stages(), self.folder / "stages", "the study")
        self._result(settings, seconds).save(self.record)
        for leftover in ("latents", "tokenizer/checkpoints", "dit/checkpoints"):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)

    def _result(self, settings: dict[str, Any], seconds: dict[str, float]) -> StudyUnitResult:
        cache = LatentCache(self.folder / "latents")
        classes = len(cache.manifest["id2label"])
        per_latent = transformer_step_cost(self.dit, cache.latent_shape, classes, cache.token_shape).total
        dit_batch = self.dit.train_batch_size * self.dit.gradient_accumulation_steps
        steps = self.plan.measured_after[-1]
        cost: dict[str, dict[str, float]] = {stage: {"cpu_s": used} for stage, used in seconds.items()}
        cost["tokenizer"] |= {"steps": self.tokenizer.max_train_steps, "macs": tokenizer_macs(self.tokenizer)}
        cost["dit"] |= {"steps": steps, "macs": per_latent * dit_batch * steps}
        return StudyUnitResult(
            study=self.plan.title,
            arm=self.arm,
            seed=self.seed,
            commit=source_commit(),
            parts=measured_parts(self.folder / "measured" / folder_name(self.arm)),
            cost=cost,
            curves=thinned_curves(self.folder / "tokenizer"),
            # Of this unit alone: records are committed, and a machine's folders have no place in them.
            **{**provenance(**settings), "command": self._command()},
        )

    def _command(self) -> str:
        path, here = self.plan.path.resolve(), Path.cwd()
        plan = path.relative_to(here) if path.is_relative_to(here) else path.name
        arguments = ["--only", self.arm, "--seeds", str(self.seed)]
        return shlex.join(["python", "-m", "tcae_diffusers.training.study", str(plan), *arguments])


def tokenizer_macs(arguments: TokenizerArguments) -> float:
    """Multiply-accumulates of the whole training, the same for every seed."""
    # Counting fills in sizes, and draws the masks of a batch.
    cost = tokenizer_step_cost(replace(arguments, seed=0), of_whole_run=True)
    return cost.total * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.max_train_steps


def measured_parts(folder: Path) -> list[MeasuredPart]:
    """All figures of a tokenizer and of its DiT, from what `evaluation compare` left in its folder."""
    parts = []
    for result in collect_results([folder]):
        steps = None
        if isinstance(result, GenerationResult):
            # generation/<steps>/results/generation.json
            steps = int(result.folder.parent.name)
        for figures in result.compared_figures().values():
            parts.append(
                MeasuredPart(measure=result.kind, figures=figures, data=dict(result.measured_on()), dit_steps=steps)
            )
    return parts


def thinned_curves(run: Path) -> dict[str, list[list[float]]]:
    """`{tag: [steps, values]}` of what a tokenizer logged of its losses, its teacher and on held-out images."""
    curves: dict[str, list[list[float]]] = {}
    for tag, (steps, values) in read_scalars(run).items():
        if tag.startswith(_CURVES):
            chosen = sorted({round(index * (len(steps) - 1) / (_POINTS - 1)) for index in range(_POINTS)})
            rounded = [float(f"{values[index]:.5g}") for index in chosen]
            curves[tag] = [[float(steps[index]) for index in chosen], rounded]
    return curves


def read_unit(path: Path) -> StudyUnitResult:
    """
    Raises:
        InputError: The file is no record of a study.
    """
    return read_result(path, StudyUnitResult)
