"""
Encode a dataset once: latents, latents of the mirrored images and labels, in sharded safetensors with a manifest.

    accelerate launch training/cache_latents.py --tokenizer runs/tokenizer/model --data openmoji:train \
        --output_dir runs/latents

Works with any diffusers autoencoder and any number of ranks; the files are the same for every number. After an
interruption, including `kill -9`, the same command writes the missing shards.
"""

from tcae_diffusers.training.commands import cache_latents as main

if __name__ == "__main__":
    # Before the imports that take seconds. The work is done by this module under its own name.
    main()
    raise SystemExit

import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import ImageOps
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.multi_crop import random_resized_crop, to_uint8
from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.images.size_buckets import SizeBuckets, build_size_buckets
from tcae_diffusers.data.images.sources import BrokenImageError, ImageSource, build_image_source
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.latents.calibration import write_statistics
from tcae_diffusers.data.latents.format import ShapeBucket, token_view
from tcae_diffusers.data.latents.writer import LatentShard, LatentShardWriter
from tcae_diffusers.data.sample_randomness import sample_generator
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.adapters import AutoencoderAdapter, adapt, load_autoencoder
from tcae_diffusers.models.fingerprint import TokenizerFingerprint, is_calibrated
from tcae_diffusers.models.target_tokens import build_target_tokens, resize_token_map
from tcae_diffusers.models.tcae.autoencoder_tc import AutoencoderTC
from tcae_diffusers.trainer.build_autoencoder import resolve_sizes
from tcae_diffusers.trainer.run import configure_logging
from tcae_diffusers.trainer.sharding import refuse_deepspeed
from tcae_diffusers.trainer.signals import StopSignal
from tcae_diffusers.trainer.user_errors import exit_on_user_error
from tcae_diffusers.training.cache_arguments import CacheArguments

logger = get_logger(__name__)


class ViewsOfImages(Dataset):
    """
    What is encoded of each sample: uint8 `(1 + augmented passes, 3, H, W)`, first the centre crop.

    A random crop is a function of (seed, pass, sample), so ranks, workers and restarts draw the same.
    """

    def __init__(self, source: ImageSource, buckets: SizeBuckets, arguments: CacheArguments):
        self.source, self.buckets, self.arguments = source, buckets, arguments

    def __getitem__(self, sample: int) -> tuple[torch.Tensor, int, int]:
        try:
            image, label = self.source[int(self.buckets.image_of[sample])]
        except BrokenImageError as error:
            # A worker's exception is rebuilt from its message alone, which that of a broken image does not allow.
            raise OSError(str(error)) from error
        size = self.buckets.size(sample)
        views = [to_uint8(center_crop(image, size))]
        for number in range(self.arguments.augmented_passes):
            generator = sample_generator(self.arguments.seed, number, sample)
            crop = random_resized_crop(image, generator, size, (self.arguments.augmented_min_scale, 1.0))
            views.append(to_uint8(ImageOps.mirror(crop) if generator.random() < 0.5 else crop))
        return torch.stack(views), label, sample


class BatchesOfShards:
    """
    Index batches of some shards, one after the other; none crosses the end of a shard. So the forward passes, and with
    them the last bits of the latents, are the same whichever rank encodes a shard, and when.
    """

    def __init__(self, shards: list[LatentShard], batch_size: int):
        self.shards, self.batch_size = shards, batch_size

    def __len__(self) -> int:
        return sum(self.count(shard) for shard in self.shards)

    def count(self, shard: LatentShard) -> int:
        return -(-(shard.stop - shard.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for shard in self.shards:
            for start in range(shard.start, shard.stop, self.batch_size):
                yield list(range(start, min(start + self.batch_size, shard.stop)))


class CachingStopped(Exception):
    """A signal came; the shard that was being filled is given up."""


# Images `(B, 3, H, W)` in [-1, 1] to their raw latents, and to tokens if those are stored too.
Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def build_encode(
    model: torch.nn.Module, arguments: CacheArguments, device: torch.device
) -> tuple[Encode, dict[str, Any] | None]:
    """
    What encodes a view, and what it says of its tokens: `None`, or where they come from, their dtype, and their shape
    for a square image. Tokens on a finer grid than the latent's, which no transformer has, are averaged.
    """
    if arguments.tokens is None:
        return lambda images: (adapt(model).encode(images), None), None
    encode_with_tokens = build_target_tokens(
        arguments.tokens,
        model,
        device,
        arguments.token_place,
        arguments.token_weights,
        arguments.token_resolution,
    )

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents, tokens = encode_with_tokens(images)
        grid = (min(tokens.shape[-2], latents.shape[-2]), min(tokens.shape[-1], latents.shape[-1]))
        return latents, resize_token_map(tokens, grid)

    square = (arguments.image_size, arguments.image_size)
    _, network_shape = encoded_shapes(encode_with_tokens, square, device)
    _, shape = encoded_shapes(encode, square, device)
    assert network_shape is not None, "both return tokens"
    stored = {"shape": shape, "dtype": arguments.token_dtype}
    return encode, {**encode_with_tokens.description, "network_grid": network_shape[1:], **stored}


@torch.no_grad()
def encoded_shapes(
    encode: Encode, size: tuple[int, int], device: torch.device
) -> tuple[tuple[int, int, int], tuple[int, int, int] | None]:
    """Shapes of the latent and of the tokens, if any, of an image of a height and width."""
    latents, tokens = encode(torch.zeros(1, 3, *size, device=device))
    shapes = [None if each is None else (each.shape[1], each.shape[2], each.shape[3]) for each in (latents, tokens)]
    assert shapes[0] is not None, "there is a latent"
    return shapes[0], shapes[1]


def encode_views(encode: Encode, images: torch.Tensor, arguments: CacheArguments) -> dict[str, torch.Tensor]:
    """
    Raw latents `(B, C, h, w)` by name of view, and tokens by theirs, of uint8 images `(B, 1 + passes, 3, H, W)` on the
    model's device.
    """
    plain, *augmented = (to_signed(view) for view in images.unbind(1))
    views = [plain, *([plain.flip(-1)] if arguments.flip else ()), *augmented]
    encoded = {}
    for name, view in zip(arguments.views, views, strict=True):
        encoded[name], tokens = encode(view)
        if tokens is not None:
            encoded[token_view(name)] = tokens
    return encoded


@torch.no_grad()
def encode_shards(
    encode: Encode,
    views: ViewsOfImages,
    writer: LatentShardWriter,
    shards: list[LatentShard],
    arguments: CacheArguments,
    accelerator: Accelerator,
    stop: StopSignal,
    bar: tqdm,
) -> None:
    """
    Encode and write `shards`.

    Raises:
        CachingStopped: if a signal came first; then nothing of the shard at hand is kept.
    """
    batches = BatchesOfShards(shards, arguments.batch_size)
    loader = iter(
        DataLoader(
            views,
            batch_sampler=batches,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    for shard in shards:
        with writer.open_shard(shard) as out:
            waiting: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor] | None = None
            for images, labels, indices in itertools.islice(loader, batches.count(shard)):
                if stop.received:
                    raise CachingStopped
                with accelerator.autocast():
                    latents = encode_views(encode, images.to(accelerator.device, non_blocking=True), arguments)
                # `add` copies to the host and so waits for the device, which by then has its next batch.
                if waiting is not None:
                    out.add(*waiting)
                waiting = (indices, latents, labels)
                bar.update(len(indices))
            # No shard is empty.
            assert waiting is not None
            out.add(*waiting)


def statistics_folder(arguments: CacheArguments, model: torch.nn.Module) -> Path | None:
    """
    Where the statistics of the cache are to be written, or `None`. Unless `--write_statistics` asks for them they go
    into an AutoencoderTC that has none; where it cannot take them, the log says so. That of a pipeline cannot: its
    transformer was trained on latents as they are.

    Raises:
        InputError: `--write_statistics` for a tokenizer that cannot take them.
    """
    if arguments.write_statistics is False:
        return None
    folder = Path(arguments.tokenizer)
    folder = folder / "vae" if (folder / "model_index.json").is_file() else folder
    pipeline, problem = folder.absolute().parent, None
    adapter = adapt(model)
    if not (adapter.keeps_statistics or adapter.scaling_entries):
        problem = f"{adapter.class_name} in {folder} has no per-channel statistics and no scaling_factor"
    elif not folder.is_dir():
        problem = f"{folder} is not a local folder; download the tokenizer and pass its folder"
    elif folder.name == "vae" and (pipeline / "model_index.json").is_file():
        problem = f"the transformer of the pipeline {pipeline} was trained on other latents; pass a copy of its vae"
    elif not os.access(folder, os.W_OK):
        problem = f"the tokenizer's folder {folder} cannot be written; copy the tokenizer to a writable folder"
    if arguments.write_statistics and problem:
        raise InputError(f"--write_statistics: {problem}.")
    if isinstance(model, AutoencoderTC) and not is_calibrated(model):
        if problem is None:
            return folder
        logger.warning(
            f"no per-channel statistics will be written: {problem}. Without them its latents are not normalised."
        )
    return folder if arguments.write_statistics else None


def export_dataset(cache: LatentCache, folder: Path) -> None:
    """Write the cache as a `datasets` dataset, replaced atomically."""
    from tcae_diffusers.data.latents.dataset_export import latent_cache_to_dataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        latent_cache_to_dataset(cache, cache_dir=Path(temporary) / "arrow").save_to_disk(Path(temporary) / "dataset")
        os.rename(Path(temporary) / "dataset", folder)


def build_samples(arguments: CacheArguments, adapter: AutoencoderAdapter, source: ImageSource) -> SizeBuckets:
    """
    The samples to encode, those of one size after those of another.

    Raises:
        InputError: an `--aspect_ratio_divisor` that does not fit the model or a resolution.
    """
    divisor = arguments.aspect_ratio_divisor or adapter.spatial_ratio
    if arguments.aspect_ratio_buckets:
        adapter.check_side("--aspect_ratio_divisor", divisor)
    for resolution in arguments.resolutions:
        if arguments.aspect_ratio_buckets and resolution % divisor:
            raise InputError(
                f"resolution {resolution} is not a multiple of --aspect_ratio_divisor {divisor}; use"
                f" {max(divisor, resolution // divisor * divisor)}, or another divisor."
            )
    return build_size_buckets(source, arguments.resolutions, divisor, arguments.aspect_ratio_buckets).in_order()


def shape_buckets(encode: Encode, samples: SizeBuckets, device: torch.device) -> list[ShapeBucket]:
    """Sizes of images with the shapes that they are encoded to."""
    return [
        ShapeBucket(count, size, *encoded_shapes(encode, size, device))
        for count, size in zip(samples.counts, samples.sizes, strict=True)
    ]


def open_writer(
    arguments: CacheArguments,
    model: torch.nn.Module,
    encode: Encode,
    views: ViewsOfImages,
    device: torch.device,
    tokens: dict[str, Any] | None,
) -> LatentShardWriter:
    """The writer of this job. Everything that changes a latent or a token is part of its description."""
    source, samples = views.source, views.buckets
    latent_shape, _ = encoded_shapes(encode, (arguments.image_size, arguments.image_size), device)
    transform: dict[str, Any] = {"resolution": arguments.resolution, "crop": "center, as ADM's"}
    several: dict[str, Any] = {}
    if arguments.has_several_sizes:
        transform["resolution"] = arguments.resolutions
        several = {"buckets": shape_buckets(encode, samples, device), "image_of": samples.image_of}
    if arguments.augmented_passes:
        transform |= {"augmented_min_scale": arguments.augmented_min_scale, "seed": arguments.seed}
    if arguments.mixed_precision != "no":
        transform |= {"mixed_precision": arguments.mixed_precision}
    if source.classes == ["image"]:
        logger.info(f"no classes found in {arguments.data}: its images all count as one, called image")
    return LatentShardWriter(
        arguments.output_dir,
        num_samples=len(samples),
        latent_shape=latent_shape,
        # Raw latents are the same, whatever pipelines scale them by.
        tokenizer=replace(TokenizerFingerprint.of(model), scaling=None),
        id2label=dict(enumerate(source.classes)),
        data_fingerprint=source.fingerprint,
        transform=transform,
        dtype=arguments.dtype,
        views=arguments.views,
        shard_size=arguments.shard_size,
        tokens=tokens,
        **several,
    )


def finish(
    arguments: CacheArguments,
    writer: LatentShardWriter,
    tokenizer: TokenizerFingerprint,
    calibrated_folder: Path | None,
) -> None:
    """The manifest, and what was asked for beyond it. Called by one rank."""
    writer.finalize()
    cache = LatentCache(arguments.output_dir, verify="sha256" if arguments.verify else "size")
    rounding = cache.manifest["rounding_error"]
    logger.info(
        f"{len(cache)} samples, {len(cache.views)} views, {arguments.dtype} latents {cache.shapes_in_words} in"
        f" {arguments.output_dir}; rounding error {rounding['rms']:.3g} rms, {rounding['max_abs']:.3g} at most"
        + ("; every sha256 verified" if arguments.verify else "")
    )
    if cache.token_shape is not None:
        tokens = cache.manifest["tokens"]
        logger.info(
            f"{tokens['dtype']} tokens of {tokens['network']} beside them, {cache.token_shape} for a square image;"
            f" {cache.bytes_per_sample / 1024:.1f} KiB for each sample with all its views"
        )
    if calibrated_folder is not None:
        write_statistics(cache, calibrated_folder)
    elif difference := cache.difference_of_statistics(tokenizer):
        logger.warning(difference)
    if arguments.dataset_dir:
        export_dataset(cache, Path(arguments.dataset_dir))
        logger.info(f"dataset written to {arguments.dataset_dir}")


@exit_on_user_error()
def run(arguments: CacheArguments) -> None:
    """The command, once its options have been read."""
    refuse_deepspeed()
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    configure_logging(accelerator)
    if arguments.dataset_dir and Path(arguments.dataset_dir).exists():
        raise FileExistsError(f"--dataset_dir {arguments.dataset_dir} already exists; delete it or choose another.")
    model = load_autoencoder(arguments.tokenizer, accelerator.device)
    if arguments.dataset_dir and arguments.has_several_sizes:
        raise InputError(
            "--dataset_dir makes a dataset of latents of one shape; omit --extra_resolutions and"
            " --aspect_ratio_buckets."
        )
    resolve_sizes(arguments, model)
    calibrated_folder = statistics_folder(arguments, model)
    tokenizer = TokenizerFingerprint.of(model)
    # What is stored must not depend on an earlier calibration.
    adapt(model).reset_statistics()
    encode, tokens = build_encode(model, arguments, accelerator.device)
    source = build_image_source(arguments.data, resolution=arguments.data_resolution)

    samples = build_samples(arguments, adapt(model), source)
    views = ViewsOfImages(source, samples, arguments)
    writer = open_writer(arguments, model, encode, views, accelerator.device, tokens)
    pending = writer.pending_shards(accelerator.process_index, accelerator.num_processes)
    total = sum(shard.stop - shard.start for shard in pending)
    started = time.perf_counter()
    bar = tqdm(
        total=total,
        desc="latents",
        unit="image",
        disable=not accelerator.is_local_main_process,
        mininterval=0.1 if sys.stderr.isatty() else 20,
    )
    with StopSignal() as stop, bar:
        with contextlib.suppress(CachingStopped):
            encode_shards(encode, views, writer, pending, arguments, accelerator, stop, bar)
        writer.flush()
        stopped = stop.agreed()
    if stopped:
        logger.warning("stopped; run the same command again to complete the cache")
        accelerator.end_training()
        return
    logger.info(f"{total / max(time.perf_counter() - started, 1e-9):.0f} images/s in this process")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(arguments, writer, tokenizer, calibrated_folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
