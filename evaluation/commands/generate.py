"""Draws a set of labelled samples from a class-conditional pipeline, or a baseline set, to compare with real images.

Image `i` depends on (pipeline, seed, i, sampling settings) only: it has its own generator, so batch size, number of
ranks and interruptions change nothing (beyond the float rounding of batched matrix products, which can move a pixel by
one level). Under `accelerate launch` each rank draws its own index range.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.data.images.image_sets import SourceImages, open_data_source
from tcae_diffusers.data.sample_labels import image_seed, label_sequence
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.fingerprint import model_fingerprint
from tcae_diffusers.pipelines.class_names import ClassNames

from ..pictures.sample_store import LAYOUTS, SampleStore
from ..results.provenance import provenance

BASELINES = ("untrained", "class-mean")


def load_pipeline(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None):
    """Loads a class-conditional pipeline (TCDiTPipeline or diffusers' DiTPipeline) from a folder or the Hub.

    Raises:
        InputError: If there is no pipeline, or it does not take `class_labels`.
    """
    from diffusers import DiffusionPipeline

    import tcae_diffusers  # noqa: F401  registers the classes of this package

    if (Path(path).exists() or str(path).startswith((".", "/"))) and not (Path(path) / "model_index.json").is_file():
        raise InputError(f"no pipeline at {path}: {Path(path) / 'model_index.json'} does not exist")
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(path), **({"dtype": dtype} if dtype else {}))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the pipeline {path}: {error}") from error
    if "class_labels" not in inspect.signature(pipeline.__call__).parameters:
        raise InputError(
            f"{type(pipeline).__name__} at {path} takes no class_labels; expected a class-conditional pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def class_names_of(pipeline) -> list[str]:
    """Class names in the order of their ids, synonyms included; the id itself where a class has no name."""
    id2label = getattr(pipeline, "id2label", None)
    if id2label is None:
        # diffusers' DiTPipeline keeps single synonyms only, and not even those that two classes have.
        id2label = pipeline.load_config(pipeline.name_or_path).get("id2label") or {}
    names = {int(class_id): str(name) for class_id, name in id2label.items()}
    count = (
        getattr(pipeline, "num_classes", None) or pipeline.transformer.config.get("num_embeds_ada_norm") or len(names)
    )
    return [names.get(index, str(index)) for index in range(count)]


def class_counts_by_name(data: SourceImages, class_names: list[str]) -> list[int]:
    """
    How many images of each of `class_names` there are in `data`, by name; 0 for a class that it does not have.

    Raises:
        InputError: If `data` has a class that is none of `class_names`, or may be several of them.
    """
    counts = data.class_counts()
    if data.classes == class_names:
        return counts
    names = ClassNames(dict(enumerate(class_names)))
    found = [names.ids_of(name) for name in data.classes]
    for name, labels in zip(data.classes, found, strict=True):
        if len(labels) != 1 or found.count(labels) > 1:
            problem = "none of" if not labels else "several of" if len(labels) > 1 else "no class of its own among"
            few = ", ".join([*map(repr, class_names[:5]), *(["..."] if len(class_names) > 5 else [])])
            raise InputError(
                f"--labels {data.name} has the class {name!r}, which stands for {problem} the {len(class_names)} "
                f"classes that are drawn ({few}); classes are matched by name"
            )
    by_label = dict(zip((label for (label,) in found), counts, strict=True))
    return [by_label.get(label, 0) for label in range(len(class_names))]


def reset_transformer(pipeline, seed: int) -> None:
    """Replaces the transformer's weights by fresh random ones: the baseline that shows what training gave."""
    parameter = next(pipeline.transformer.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(pipeline.transformer).from_config(pipeline.transformer.config)
    pipeline.transformer.load_state_dict(fresh.to(parameter).state_dict())


def draw(pipeline, labels: list[int], indices: list[int], seed: int, **sampling: Any) -> np.ndarray:
    """Draws the images of `indices`: uint8 `(len(indices), H, W, 3)`.

    Args:
        pipeline: A class-conditional pipeline.
        labels: Class of every image of the set; image `i` gets `labels[i]` and the generator of `image_seed(seed, i)`.
        sampling: `guidance_scale`, `num_inference_steps`, `guidance_interval`, `timestep_shift`.

    Raises:
        InputError: If the pipeline does not take one of them, or draws NaN or infinity.
    """
    # CPU generators give the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(image_seed(seed, index)) for index in indices]
    known = inspect.signature(pipeline.__call__).parameters
    unknown = [name for name in sampling if name not in known]
    if unknown:
        raise InputError(f"{type(pipeline).__name__} does not take {', '.join(unknown)}")
    output = pipeline(
        class_labels=[labels[index] for index in indices], generator=generators, output_type="np", **sampling
    )
    images = np.asarray(output.images)
    if not np.isfinite(images).all():
        raise InputError("the pipeline drew NaN or infinity; train longer, lower the guidance scale or use float32")
    return (images * 255.0).round().clip(0, 255).astype(np.uint8)


def generate(
    pipeline, store: SampleStore, seed: int, batch_size: int = 32, progress: bool = True, **sampling: Any
) -> None:
    """Draws every image of `store` that is not there yet; each rank its own range."""
    state = PartialState()
    indices = rank_range(len(store.labels), state.process_index, state.num_processes)
    missing = store.missing(indices)
    hidden, done = not (progress and state.is_main_process), len(indices) - len(missing)
    with tqdm(total=len(indices), initial=done, desc="generate", unit="image", disable=hidden) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for index, pixels in zip(batch, draw(pipeline, store.labels, batch, seed, **sampling), strict=True):
                store.write(index, pixels)
            bar.update(len(batch))
    state.wait_for_everyone()


def class_mean_images(images: SourceImages) -> np.ndarray:
    """Pixelwise mean of each class: uint8 `(classes, H, W, 3)`. One pass, one image in memory."""
    height, width = images[0].shape[:2]
    total = np.zeros((len(images.classes), height, width, 3))
    counts = np.zeros(len(images.classes), dtype=np.int64)
    for index in range(len(images)):
        pixels, label = images.labelled(index)
        total[label] += pixels
        counts[label] += 1
    if (counts == 0).any():
        raise InputError(f"{images.name}: class {images.classes[int(np.argmin(counts))]!r} has no images")
    return (total / counts[:, None, None, None]).round().astype(np.uint8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", help="pipeline folder or Hub name (not needed for --baseline class-mean)")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the images, or a file .npz with --layout npz"
    )
    parser.add_argument(
        "--num_images", type=int, default=50_000, help="default: %(default)s, the number that FID is defined for"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image i is a function of this seed and i (default: %(default)s)"
    )
    parser.add_argument(
        "--labels",
        default="balanced",
        metavar="balanced|DATA",
        help="'balanced', or a data source such as openmoji:train, whose class proportions are followed, by name",
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1 means none (default)"
    )
    parser.add_argument(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="part of the trajectory that is guided, as in TCDiTPipeline (default: all)",
    )
    parser.add_argument("--num_inference_steps", type=int, default=50, help="sampler steps (default: %(default)s)")
    parser.add_argument(
        "--timestep_shift",
        type=float,
        help="shift of the noise levels in sampling, for flow matching (default: the scheduler's own)",
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--layout", choices=LAYOUTS, default="folder", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ... (default: what accelerate finds)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--baseline",
        choices=BASELINES,
        help="untrained: the same pipeline with fresh random transformer weights; class-mean: the pixelwise mean of "
        "each class of --data",
    )
    parser.add_argument("--data", help="data source of --baseline class-mean")
    parser.add_argument("--resolution", type=int, help="image side of --baseline class-mean")


def run(args: argparse.Namespace) -> int:
    for name in ("num_images", "batch_size", "num_inference_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)} must be at least 1")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} must not be negative")
    state = PartialState(cpu=args.device == "cpu")
    sampling: dict[str, Any] = {}
    pipeline = means = None
    settings: dict[str, Any] = {"seed": args.seed, "labels": args.labels, "baseline": args.baseline}
    if args.baseline == "class-mean":
        if not args.data:
            raise InputError("--baseline class-mean needs --data, the images to average")
        images = open_data_source(args.data, args.resolution)
        class_names, means = images.classes, class_mean_images(images)
        settings |= {"data": images.fingerprint}
    else:
        if not args.pipeline:
            raise InputError("--pipeline is missing: the folder of a saved pipeline")
        pipeline = load_pipeline(args.pipeline, args.device or state.device, getattr(torch, args.dtype))
        if args.baseline == "untrained":
            reset_transformer(pipeline, args.seed)
        class_names = class_names_of(pipeline)
        sampling = {"guidance_scale": args.guidance_scale, "num_inference_steps": args.num_inference_steps}
        if args.guidance_interval:
            sampling["guidance_interval"] = tuple(args.guidance_interval)
        if args.timestep_shift is not None:
            sampling["timestep_shift"] = args.timestep_shift
        settings |= {
            "guidance_interval": None,
            "timestep_shift": None,
            **sampling,
            "dtype": args.dtype,
            "transformer": model_fingerprint(pipeline.transformer),
            "vae": model_fingerprint(pipeline.vae),
            "scheduler": {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")},
        }

    counts = [1] * len(class_names)
    if args.labels != "balanced":
        counts = class_counts_by_name(open_data_source(args.labels, args.resolution), class_names)
    labels = label_sequence(counts, args.num_images)
    store = SampleStore(args.output, args.layout, labels, class_names, settings)
    store.begin(state.is_main_process)
    state.wait_for_everyone()
    if store.is_complete:
        if state.is_main_process:
            print(f"{args.output} is complete already")
        return 0
    if means is not None:
        for index in store.missing(rank_range(len(labels), state.process_index, state.num_processes)):
            store.write(index, means[labels[index]])
        state.wait_for_everyone()
    else:
        generate(pipeline, store, args.seed, args.batch_size, **sampling)
    if state.is_main_process:
        store.finish(provenance(batch_size=args.batch_size, ranks=state.num_processes))
        print(f"{len(labels)} images in {args.output}")
    return 0
