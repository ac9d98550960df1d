"""What a tokenizer trains on, batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.images.multi_crop import MultiCropTransform
from ..data.images.size_buckets import build_size_buckets
from ..data.images.sources import build_image_source
from ..data.images.streamed_images import SCHEME as STREAM_SCHEME
from ..data.images.streamed_images import StreamedImages
from ..data.images.training_dataset import TokenizerTrainingDataset, collate_training_views
from ..data.latents.cache import LatentCache
from ..data.step_indexed_sampler import StepIndexedBatchSampler
from ..errors import InputError
from ..existing_paths import scheme_before
from ..models.adapters import AutoencoderAdapter
from .arguments import RunArguments
from .tokenizer_arguments import AdversarialArguments


def build_training_images(
    arguments: AdversarialArguments, adapter: AutoencoderAdapter, crops: dict[str, Any] | None = None
) -> TokenizerTrainingDataset | StreamedImages:
    """
    What `--train_data` names, with views to reconstruct and those of `crops`, options of [`MultiCropTransform`].

    Raises:
        InputError: several sizes of a stream, or of which one is too small for the losses.
        ValueError, FileNotFoundError, ImportError: it cannot be had or understood.
    """
    transform = MultiCropTransform(arguments.image_size, horizontal_flip=arguments.horizontal_flip, **(crops or {}))
    if scheme_before(arguments.train_data, [STREAM_SCHEME]):
        if arguments.has_several_sizes:
            raise InputError(
                f"--train_data {arguments.train_data} is a stream, whose images are all of one size: the sizes of what"
                " is not read yet are unknown. Use datasets: or webdataset:, or omit --extra_resolutions and"
                " --aspect_ratio_buckets."
            )
        return StreamedImages(arguments.train_data, transform, arguments.seed, arguments.max_broken_images)
    source = build_image_source(arguments.train_data, resolution=arguments.data_resolution)
    buckets = build_size_buckets(source, arguments.resolutions, adapter.spatial_ratio, arguments.aspect_ratio_buckets)
    if arguments.has_several_sizes:
        _check_smallest_size(arguments, min(buckets.sizes, key=min))
    return TokenizerTrainingDataset(source, transform, buckets, arguments.seed, arguments.max_broken_images)


def _check_smallest_size(arguments: AdversarialArguments, size: tuple[int, int]) -> None:
    needed = max(arguments.perceptual_min_resolution, arguments.discriminator_min_resolution)
    if min(size) < needed:
        raise InputError(
            f"some images are trained on at {size[0]}x{size[1]} pixels, but the losses of this run need at least"
            f" {needed} along each side; use larger resolutions, or --perceptual efficientnet-lite0 and fewer"
            " --discriminator_layers."
        )


def image_loader(
    dataset: TokenizerTrainingDataset | StreamedImages,
    arguments: AdversarialArguments,
    accelerator: Accelerator,
    first_step: int,
) -> Iterable[dict[str, torch.Tensor]]:
    """
    This rank's batches from `first_step` on, in the order that an uninterrupted run has. A stream knows from its
    checkpoint where that is.
    """
    if not isinstance(dataset, StreamedImages):
        bucket_of = dataset.buckets.bucket_of
        return step_indexed_loader(dataset, bucket_of, collate_training_views, arguments, accelerator, first_step)
    return dataset.loader(
        accelerator.process_index,
        accelerator.num_processes,
        arguments.train_batch_size,
        **_loader_options(arguments, accelerator),
    )


def step_indexed_loader(
    dataset: TokenizerTrainingDataset | LatentCache,
    bucket_of: np.ndarray,
    collate: Callable[[Any], dict[str, torch.Tensor]],
    arguments: RunArguments,
    accelerator: Accelerator,
    first_step: int,
) -> DataLoader:
    """
    This rank's batches of a data set that is keyed by `(epoch, index)`, from `first_step` to the end of the run, each
    from one bucket of `bucket_of`.
    """
    sampler = StepIndexedBatchSampler(
        num_samples=len(dataset),
        batch_size_per_rank=arguments.train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=arguments.seed,
        start_step=first_step,
        num_steps=arguments.max_train_steps - first_step,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        bucket_of=bucket_of,
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **_loader_options(arguments, accelerator))


def _loader_options(arguments: RunArguments, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "num_workers": arguments.dataloader_num_workers,
        "pin_memory": accelerator.device.type == "cuda",
    }
