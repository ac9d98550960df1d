"""
Draws images from class-conditional pipelines.

Image `i` depends on (pipeline, seed, i, sampling settings) only: it has its own generator, so batch size, number of
ranks and interruptions change nothing (beyond the float rounding of batched matrix products, which can move a pixel by
one level).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from diffusers import DiffusionPipeline, ModelMixin
from tqdm.auto import tqdm

from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.data.images.image_sets import LabelledImages
from tcae_diffusers.data.sample_labels import image_seed
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.whole_weights import load_whole
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.pipelines.class_names import ClassNames

from .sample_store import SampleStore, withdrawn_if_empty

logger = get_logger(__name__)


def load_pipeline(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """Loads a class-conditional pipeline (TCDiTPipeline or diffusers' DiTPipeline) from a folder or the Hub.

    Raises:
        InputError: If there is no pipeline, or it does not take `class_labels`.
    """
    if (Path(path).exists() or str(path).startswith((".", "/"))) and not (Path(path) / "model_index.json").is_file():
        raise InputError(f"no pipeline at {path}: {Path(path) / 'model_index.json'} does not exist")
    options = {"dtype": dtype} if dtype else {}
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(path), **_whole_models(path, options), **options)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path} needs code of its own, which is not run here; name the pipeline that it was exported from"
            ) from error
        raise InputError(f"cannot load the pipeline {path}: {error}") from error
    if "class_labels" not in inspect.signature(pipeline.__call__).parameters:
        raise InputError(
            f"{type(pipeline).__name__} at {path} takes no class_labels; expected a class-conditional pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _whole_models(path: str | Path, options: dict[str, Any]) -> dict[str, ModelMixin]:
    """The models of a pipeline, by the names of its components; see [`load_whole`]."""
    models = {}
    for name, entry in DiffusionPipeline.load_config(str(path)).items():
        class_name = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
        model_class = getattr(diffusers, class_name, None) if isinstance(class_name, str) else None
        if inspect.isclass(model_class) and issubclass(model_class, ModelMixin):
            models[name] = load_whole(model_class, path, subfolder=name, **options)
    return models


def load_latent_pipeline(path: str | Path, device: str | torch.device, dtype: torch.dtype) -> TCDiTPipeline:
    """As [`load_pipeline`], and able to return latents, which diffusers' DiTPipeline is not."""
    pipeline = load_pipeline(path, device, dtype)
    if isinstance(pipeline, TCDiTPipeline):
        return pipeline
    names = dict(enumerate(class_names_of(pipeline)))
    latent_pipeline = TCDiTPipeline.from_pipe(pipeline, id2label=names, dtype=dtype)
    latent_pipeline.set_progress_bar_config(disable=True)
    return latent_pipeline


def class_names_of(pipeline: DiffusionPipeline) -> list[str]:
    """Class names in the order of their ids, synonyms included; the id itself where a class has no name."""
    id2label = getattr(pipeline, "id2label", None)
    if id2label is None:
        # diffusers' DiTPipeline keeps single synonyms only, and not even those that two classes have.
        id2label = pipeline.load_config(pipeline.name_or_path).get("id2label") or {}
    names = {int(class_id): str(name) for class_id, name in id2label.items()}
    config = pipeline.transformer.config
    # A class table may have rows that no class was trained in: names say more.
    count = getattr(pipeline, "num_classes", None) or max(names, default=-1) + 1
    if not count:
        count = config.get("num_classes") or config.get("num_embeds_ada_norm") or 0
        logger.warning(
            f"the pipeline names no classes, so the {count} of its transformer are drawn, trained or not; id2label in "
            "its model_index.json says which there are"
        )
    return [names.get(index, str(index)) for index in range(count)]


def class_choices(pipeline: DiffusionPipeline) -> list[str]:
    """[`class_names_of`], all different: with its id where several classes have the same name."""
    names = class_names_of(pipeline)
    return [f"{name} (class {index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def class_counts_by_name(data: LabelledImages, class_names: list[str]) -> list[int]:
    """
    How many images of each of `class_names` there are in `data`, by name; 0 for a class that it does not have.

    Raises:
        InputError: If `data` has a class that is none of `class_names`, or may be several of them.
    """
    if data.classes == class_names:
        return data.class_counts
    names = ClassNames(dict(enumerate(class_names)))
    found = [names.ids_of(name) for name in data.classes]
    for name, labels in zip(data.classes, found, strict=True):
        if len(labels) != 1 or found.count(labels) > 1:
            problem = (
                "none of" if not labels else "several of" if len(labels) > 1 else "the class of another name among"
            )
            few = ", ".join([*map(repr, class_names[:5]), *(["..."] if len(class_names) > 5 else [])])
            raise InputError(
                f"--labels {data.name} has the class {name!r}, which matches {problem} the {len(class_names)} "
                f"classes of the pipeline ({few}); classes are matched by name"
            )
    by_label = dict(zip((label for (label,) in found), data.class_counts, strict=True))
    return [by_label.get(label, 0) for label in range(len(class_names))]


def reset_transformer(pipeline: DiffusionPipeline, seed: int) -> None:
    """Replaces the transformer's weights by fresh random ones: the baseline that shows what training gave."""
    parameter = next(pipeline.transformer.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(pipeline.transformer).from_config(pipeline.transformer.config)
    pipeline.transformer.load_state_dict(fresh.to(parameter).state_dict())


def draw(pipeline: DiffusionPipeline, labels: list[int], indices: list[int], seed: int, **sampling: Any) -> np.ndarray:
    """Draws the images of `indices`: uint8 `(len(indices), H, W, 3)`.

    Args:
        pipeline: A class-conditional pipeline.
        labels: Class of every image of the set; image `i` gets `labels[i]` and the generator of `image_seed(seed, i)`.
        sampling: `guidance_scale`, `num_inference_steps`, `guidance_interval`, `timestep_shift`.

    Raises:
        InputError: If the pipeline does not take one of them, or draws NaN or infinity.
    """
    return as_uint8(np.asarray(_call(pipeline, labels, indices, seed, "np", **sampling)))


def draw_latents(
    pipeline: TCDiTPipeline, labels: list[int], indices: list[int], seed: int, **sampling: Any
) -> torch.Tensor:
    """The latents `(len(indices), c, h, w)` that [`draw`] decodes, as the pipeline returns them."""
    return _call(pipeline, labels, indices, seed, "latent", **sampling)


def _generators(indices: list[int], seed: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(image_seed(seed, index)) for index in indices]


def _call(
    pipeline: DiffusionPipeline, labels: list[int], indices: list[int], seed: int, output_type: str, **sampling: Any
) -> Any:
    # CPU generators give the same noise on every device.
    generators = _generators(indices, seed)
    known = inspect.signature(pipeline.__call__).parameters
    unknown = [name for name in sampling if name not in known]
    if unknown:
        raise InputError(f"{type(pipeline).__name__} does not take {', '.join(unknown)}")
    classes = [labels[index] for index in indices]
    return pipeline(class_labels=classes, generator=generators, output_type=output_type, **sampling).images


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as bytes; [`InputError`] for NaN or infinity."""
    if not np.isfinite(images).all():
        raise InputError(
            "the pipeline returned NaN or infinity; train longer, lower the guidance scale or use float32"
        )
    return (images * 255.0).round().clip(0, 255).astype(np.uint8)


def generate(
    pipeline: DiffusionPipeline, store: SampleStore, seed: int, batch_size: int = 32, **sampling: Any
) -> None:
    """Draws every image of `store` that is not there yet; each rank its own range."""

    def draw_batch(batch: list[int]) -> list[np.ndarray]:
        return [draw(pipeline, store.labels, batch, seed, **sampling)]

    _fill([store], draw_batch, batch_size)


def generate_with_decoders(
    pipeline: TCDiTPipeline,
    sets: Sequence[tuple[ModelMixin, SampleStore]],
    seed: int,
    batch_size: int = 32,
    **sampling: Any,
) -> None:
    """
    Draws the latents of a set once and decodes them with several decoders, for what is not there yet; each rank its
    own range.

    Args:
        sets: Autoencoders with one encoder and one set of latent statistics, and where their images go. All stores
            have the same labels.
    """
    labels = sets[0][1].labels

    def draw_batch(batch: list[int]) -> list[np.ndarray]:
        latents = draw_latents(pipeline, labels, batch, seed, **sampling)
        # New ones for each decoder, which so have the same noise, if they draw any.
        return [
            as_uint8(pipeline.decode_latents(latents, "np", autoencoder, _generators(batch, seed)))
            for autoencoder, _ in sets
        ]

    _fill([store for _, store in sets], draw_batch, batch_size)


def _fill(stores: Sequence[SampleStore], draw_batch: Callable[[list[int]], list[np.ndarray]], batch_size: int) -> None:
    """Writes this rank's images that a store lacks; `draw_batch` gives those of some indices for each store."""
    state = PartialState()
    indices = rank_range(len(stores[0].labels), state.process_index, state.num_processes)
    lacking = [set(store.missing(indices)) for store in stores]
    missing = sorted(set().union(*lacking))
    hidden, done = not state.is_main_process, len(indices) - len(missing)
    with (
        withdrawn_if_empty(stores),
        tqdm(total=len(indices), initial=done, desc="generate", unit="image", disable=hidden) as bar,
    ):
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for store, its, images in zip(stores, lacking, draw_batch(batch), strict=True):
                for index, pixels in zip(batch, images, strict=True):
                    if index in its:
                        store.write(index, pixels)
            bar.update(len(batch))
    state.wait_for_everyone()


def class_mean_images(images: LabelledImages) -> np.ndarray:
    """Pixelwise mean of each class: uint8 `(classes, H, W, 3)`. One pass, one image in memory."""
    counts = np.array(images.class_counts)
    if (counts == 0).any():
        raise InputError(f"{images.name}: class {images.classes[int(np.argmin(counts))]!r} has no images")
    total = np.zeros((len(counts), *images[0].shape))
    for index, label in enumerate(images.labels):
        total[label] += images[index]
    return (total / counts[:, None, None, None]).round().astype(np.uint8)
