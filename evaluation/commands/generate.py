"""Draws a set of labelled samples from a class-conditional pipeline, or a baseline set."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.data.images.image_sets import open_labelled_source
from tcae_diffusers.data.sample_labels import label_sequence
from tcae_diffusers.models.model_fingerprint import model_fingerprint

from ..arguments.generate import GenerateArguments
from ..pictures.drawing import (
    class_counts_by_name,
    class_mean_images,
    class_names_of,
    generate,
    load_pipeline,
    reset_transformer,
)
from ..pictures.guiders import guider_of, recorded_guider, set_guider
from ..pictures.other_transformers import add_guidance_transformer, replace_transformer, replace_weights
from ..pictures.sample_store import SampleStore
from ..results.kinds.samples import SamplesResult
from ..results.provenance import provenance


def run(arguments: GenerateArguments) -> SamplesResult:
    """
    Draws what is missing of a set; saving the result completes it.

    Raises:
        InputError: If the pipeline cannot be used, or the output holds anything but this set.
    """
    state, pipeline, means = arguments.process_state(), None, None
    if arguments.baseline == "class-mean":
        assert arguments.data is not None, "GenerateArguments asks for it"
        images = open_labelled_source(arguments.data, arguments.resolution)
        class_names, means = images.classes, class_mean_images(images)
        settings = {**_shared_settings(arguments), "data": images.fingerprint}
    else:
        assert arguments.pipeline is not None, "GenerateArguments asks for it"
        pipeline = load_pipeline(arguments.pipeline, arguments.chosen_device(), getattr(torch, arguments.dtype))
        if arguments.baseline == "untrained":
            reset_transformer(pipeline, arguments.seed)
        if arguments.transformer is not None:
            replace_transformer(pipeline, arguments.transformer)
        if arguments.ema_snapshots is not None and arguments.ema_sigma is not None:
            replace_weights(pipeline, arguments.ema_snapshots, arguments.ema_sigma)
        if arguments.guidance_transformer is not None:
            add_guidance_transformer(pipeline, arguments.guidance_transformer)
        set_guider(pipeline, arguments)
        class_names = class_names_of(pipeline)
        settings = drawn_settings(arguments, pipeline, pipeline.vae)

    store = begin_store(arguments, class_names, settings)
    is_new = not store.is_complete
    if is_new and pipeline is not None:
        generate(
            pipeline,
            store,
            arguments.seed,
            arguments.batch_size,
            **arguments.sampling(guider_of(pipeline) is not None),
        )
    elif is_new and means is not None:
        for index in store.missing(rank_range(len(store.labels), state.process_index, state.num_processes)):
            store.write(index, means[store.labels[index]])
        state.wait_for_everyone()
    return samples_result(arguments, store, class_names, is_new)


def _shared_settings(arguments: GenerateArguments) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("seed", "labels", "baseline")}


def drawn_settings(arguments: GenerateArguments, pipeline: DiffusionPipeline, vae: ModelMixin) -> dict[str, Any]:
    """What the pixels depend on, where `vae` decodes what `pipeline` draws."""
    guide, guider = getattr(pipeline, "guidance_transformer", None), guider_of(pipeline)
    return {
        **_shared_settings(arguments),
        # Unset options too: a set must not go on where one was set.
        **dict.fromkeys(("guidance_scale", "guidance_interval", "timestep_shift", "height", "width")),
        "guider": None if guider is None else recorded_guider(guider),
        "guidance_transformer": None if guide is None else model_fingerprint(guide),
        **arguments.sampling(guider is not None),
        "dtype": arguments.dtype,
        "prediction_type": pipeline.config.get("prediction_type"),
        "transformer": model_fingerprint(pipeline.transformer),
        "vae": model_fingerprint(vae),
        # Its class too: from_config() of another one keeps all that the config held.
        "scheduler": {
            "class": type(pipeline.scheduler).__name__,
            **{key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")},
        },
    }


def begin_store(arguments: GenerateArguments, class_names: list[str], settings: dict[str, Any]) -> SampleStore:
    """The set in `arguments.output`, with the labels that are asked for. All ranks must call this."""
    counts = [1] * len(class_names)
    if arguments.labels != "balanced":
        counts = class_counts_by_name(open_labelled_source(arguments.labels, arguments.resolution), class_names)
    state, labels = arguments.process_state(), label_sequence(counts, arguments.num_images)
    store = SampleStore(arguments.output, arguments.layout, labels, class_names, settings)
    store.begin(state.is_main_process)
    state.wait_for_everyone()
    return store


def samples_result(
    arguments: GenerateArguments, store: SampleStore, class_names: list[str], is_new: bool
) -> SamplesResult:
    """What was drawn; saving it completes a set that is new."""
    return SamplesResult(
        images=len(store.labels),
        classes=class_names,
        output=arguments.output,
        store=store if is_new else None,
        **provenance(batch_size=arguments.batch_size, ranks=arguments.process_state().num_processes),
    )
