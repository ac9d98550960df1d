"""Transformers that a pipeline draws with although they were not saved with it: other averages, and weaker guides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.fingerprint import TokenizerFingerprint
from tcae_diffusers.models.whole_weights import load_whole_model
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.pipelines.pipeline_tc_dit import scheduler_prediction_type
from tcae_diffusers.trainer.posthoc_ema import reconstruct

from .drawing import class_names_of

# What a transformer must have in common with the one that it guides, by the names of both classes.
_SHARED = ("in_channels", "out_channels", "sample_size", "num_classes", "num_embeds_ada_norm", "null_class_id")


def _settings(model: ModelMixin) -> dict[str, Any]:
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def _load(option: str, path: str | Path, pipeline: DiffusionPipeline) -> ModelMixin:
    """The transformer in `path`, or in the pipeline that is there, where and as the pipeline's own is."""
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        _require_the_same_task(option, folder, pipeline)
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise InputError(f"--{option} {path} is neither a transformer nor a pipeline: no {folder / 'config.json'}")
    try:
        model = load_whole_model(folder, dtype=pipeline.transformer.dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"--{option}: cannot load {folder}: {error}") from error
    return model.to(pipeline.device).eval()


def _require_the_same_task(option: str, folder: Path, pipeline: DiffusionPipeline) -> None:
    """
    Raises:
        InputError: the transformer of the pipeline in `folder` was trained for another prediction, other classes or
            other latents than that of `pipeline`, which the config of a transformer does not say.
    """
    config = DiffusionPipeline.load_config(folder)
    theirs = config.get("prediction_type")
    ours = pipeline.config.get("prediction_type") or scheduler_prediction_type(pipeline.scheduler)
    if theirs not in (None, ours):
        raise InputError(
            f"--{option} {folder} predicts {theirs!r}, and the pipeline's transformer {ours!r}; pass a transformer "
            "that predicts the same"
        )
    names = dict(enumerate(class_names_of(pipeline)))
    for class_id, name in (config.get("id2label") or {}).items():
        if names.get(int(class_id)) not in (str(name), class_id, None):
            raise InputError(
                f"--{option} {folder} calls class {class_id} {name!r}, and the pipeline {names[int(class_id)]!r}; "
                "pass a transformer of the same classes"
            )
    if option == "transformer" and config.get("has_null_class", True) != pipeline.config.get("has_null_class", True):
        raise InputError(
            f"--{option} {folder} and the pipeline differ in whether they were trained without labels too; pass a "
            "transformer of the same training"
        )
    latents = TokenizerFingerprint.of(load_autoencoder(folder, dtype=pipeline.vae.dtype))
    if difference := TokenizerFingerprint.of(pipeline.vae).difference_of_latents(latents):
        raise InputError(
            f"--{option} {folder} was trained on other latents than the pipeline's: its autoencoder has {difference}"
        )


def replace_transformer(pipeline: DiffusionPipeline, path: str | Path) -> None:
    """
    Let `pipeline` draw with the transformer in `path`, the same but for its weights.

    Raises:
        InputError: there is none, or it is another one, or that of a pipeline for something else.
    """
    model, own = _load("transformer", path, pipeline), pipeline.transformer
    if type(model) is not type(own) or _settings(model) != _settings(own):
        raise InputError(
            f"--transformer {path} is another transformer than the one in the pipeline, and not another average of "
            "its weights; pass the pipeline that it belongs to"
        )
    pipeline.register_modules(transformer=model)


def replace_weights(pipeline: DiffusionPipeline, snapshots: str | Path, sigma: float) -> None:
    """
    Let `pipeline` draw with the post-hoc average of length `sigma`, see [`trainer.posthoc_ema.reconstruct`].

    Raises:
        InputError: there are no snapshots, they are those of another transformer, or no average has that length.
    """
    try:
        weights = reconstruct(snapshots, sigma)
    except ValueError as error:
        raise InputError(f"--ema_snapshots {snapshots}, --ema_sigma {sigma:g}: {error}") from error
    own = dict(pipeline.transformer.named_parameters())
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise InputError(f"--ema_snapshots {snapshots} are those of another transformer than the pipeline's")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def add_guidance_transformer(pipeline: DiffusionPipeline, path: str | Path) -> None:
    """
    Let guidance lead away from the transformer in `path` (Karras et al., "Guiding a Diffusion Model with a Bad Version
    of Itself", arXiv 2406.02507).

    Raises:
        InputError: there is none, it is of other latents, classes or predictions, or the pipeline takes no guide.
    """
    if not isinstance(pipeline, TCDiTPipeline):
        raise InputError(f"--guidance_transformer needs a TCDiTPipeline, and this is a {type(pipeline).__name__}")
    model = _load("guidance_transformer", path, pipeline)
    own, weaker = _settings(pipeline.transformer), _settings(model)
    for key in _SHARED:
        if own.get(key) != weaker.get(key):
            raise InputError(
                f"--guidance_transformer {path} has {key} {weaker.get(key)}, and the pipeline's transformer "
                f"{own.get(key)}; guidance needs a transformer of the same latents and classes"
            )
    pipeline.register_modules(guidance_transformer=model)
