"""Draws a set of labelled samples from a class-conditional pipeline, or a baseline set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.data.images.image_sets import open_data_source
from tcae_diffusers.data.sample_labels import label_sequence
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.fingerprint import model_fingerprint

from ..pictures.drawing import (
    class_counts_by_name,
    class_mean_images,
    class_names_of,
    generate,
    load_pipeline,
    reset_transformer,
)
from ..pictures.sample_store import SampleStore
from ..results.kinds.samples import SamplesResult
from ..results.provenance import provenance
from ..results.resumption import folder_content, source_content
from .argument_groups import MachineArguments


def labels_content(labels: str) -> str:
    """Of the data whose class proportions are followed, if that is what `--labels` names."""
    return labels if labels == "balanced" else source_content(labels)


@dataclass
class DrawnSetArguments(Arguments):
    """What is drawn, and how."""

    group: ClassVar[str] = "Samples"

    pipeline: str | None = option(
        None, "Pipeline folder or Hub name; not needed for --baseline class-mean.", metavar="PATH"
    )
    num_images: int = option(50_000, "Number of images; FID is defined for 50,000.", metavar="IMAGES")
    seed: int = option(0, "Seed of the samples; image i is a function of the seed and i.")
    labels: str = option(
        "balanced",
        "Classes of the images: balanced, or a data source such as openmoji:train, whose class proportions are"
        " followed, by name.",
        metavar="balanced|SOURCE",
    )
    guidance_scale: float = option(1.0, "Scale of classifier-free guidance; 1 is none.")
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Part of the trajectory that is guided, between 0 and 1 as in TCDiTPipeline; all of it if unset.",
        metavar=("FROM", "TO"),
    )
    num_inference_steps: int = option(50, "Denoising steps of each image.", metavar="STEPS")
    timestep_shift: float | None = option(
        None, "Shift of the noise levels in sampling, for flow matching; the scheduler's own if unset."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Data type of the pipeline.")
    layout: Literal["folder", "flat", "npz"] = option(
        "folder", "What is written: class folders of PNG files, PNG files in one folder, or an ADM-style archive."
    )
    output: Path = option(MISSING, "Folder for the images, or a file called .npz with --layout npz.", metavar="PATH")


@dataclass
class BaselineArguments(Arguments):
    """What stands for a trained model."""

    group: ClassVar[str] = "Baselines"

    baseline: Literal["untrained", "class-mean"] | None = option(
        None,
        "Set to draw instead: untrained is the pipeline with fresh random transformer weights, class-mean the"
        " pixelwise mean of each class of --data.",
    )
    data: str | None = option(None, "Images that --baseline class-mean averages.", metavar="SOURCE")
    resolution: int | None = option(
        None,
        "Side in pixels of the images of --baseline class-mean; that of the first image if unset.",
        metavar="PIXELS",
    )


@dataclass
class GenerateArguments(DrawnSetArguments, BaselineArguments, MachineArguments):
    """
    Draw a set of labelled samples from a class-conditional pipeline, or a baseline set, to compare with real images.

    Image i depends on the pipeline, the seed, i and the sampling settings only: batch size, number of ranks and
    interruptions change nothing. Under accelerate launch each rank draws its own part. Run again after an
    interruption, the command draws what is missing.
    """

    content: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "pipeline": folder_content,
        "labels": labels_content,
        "data": source_content,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_images", "num_inference_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("seed", self.seed >= 0, "at least 0")
        if self.baseline == "class-mean" and not self.data:
            raise InputError("--baseline class-mean needs --data, the images to average")
        if self.baseline != "class-mean" and not self.pipeline:
            raise InputError("--pipeline is missing: the folder of a saved pipeline")

    def sampling(self) -> dict[str, Any]:
        """What the pipeline is called with; options that are unset are left out, for pipelines that know none."""
        optional = {"guidance_interval": self.guidance_interval, "timestep_shift": self.timestep_shift}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"guidance_scale": self.guidance_scale, "num_inference_steps": self.num_inference_steps, **given}


def run(arguments: GenerateArguments) -> SamplesResult:
    """
    Draws what is missing of a set; saving the result completes it.

    Raises:
        InputError: If the pipeline cannot be used, or the output holds anything but this set.
    """
    state, pipeline, means = arguments.process_state(), None, None
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in ("seed", "labels", "baseline")}
    if arguments.baseline == "class-mean":
        images = open_data_source(arguments.data, arguments.resolution, needs_labels=True)
        class_names, means = images.classes, class_mean_images(images)
        settings |= {"data": images.fingerprint}
    else:
        pipeline = load_pipeline(arguments.pipeline, arguments.chosen_device(), getattr(torch, arguments.dtype))
        if arguments.baseline == "untrained":
            reset_transformer(pipeline, arguments.seed)
        class_names = class_names_of(pipeline)
        unset = {"guidance_interval": None, "timestep_shift": None}
        settings |= {**unset, **arguments.sampling(), "dtype": arguments.dtype, **_describe_pipeline(pipeline)}

    counts = [1] * len(class_names)
    if arguments.labels != "balanced":
        counts = class_counts_by_name(
            open_data_source(arguments.labels, arguments.resolution, needs_labels=True), class_names
        )
    labels = label_sequence(counts, arguments.num_images)
    store = SampleStore(arguments.output, arguments.layout, labels, class_names, settings)
    store.begin(state.is_main_process)
    state.wait_for_everyone()
    is_new = not store.is_complete
    if is_new and pipeline is not None:
        generate(pipeline, store, arguments.seed, arguments.batch_size, **arguments.sampling())
    elif is_new:
        for index in store.missing(rank_range(len(labels), state.process_index, state.num_processes)):
            store.write(index, means[labels[index]])
        state.wait_for_everyone()
    return SamplesResult(
        images=len(labels),
        classes=class_names,
        output=arguments.output,
        store=store if is_new else None,
        **provenance(batch_size=arguments.batch_size, ranks=state.num_processes),
    )


def _describe_pipeline(pipeline) -> dict[str, Any]:
    scheduler = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    models = {name: model_fingerprint(getattr(pipeline, name)) for name in ("transformer", "vae")}
    return {**models, "scheduler": scheduler}
