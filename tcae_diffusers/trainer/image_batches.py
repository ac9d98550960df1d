"""What a tokenizer trains on, batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.images.multi_crop import MultiCropTransform
from ..data.images.sources import build_image_source
from ..data.images.streamed_images import SCHEME as STREAM_SCHEME
from ..data.images.streamed_images import StreamedImages
from ..data.images.training_dataset import TokenizerTrainingDataset, collate_training_views
from ..data.latents.cache import LatentCache
from ..data.step_indexed_sampler import StepIndexedBatchSampler
from ..existing_paths import scheme_before
from .arguments import RunArguments
from .tokenizer_arguments import ReconstructionArguments


def build_training_images(
    arguments: ReconstructionArguments, crops: dict[str, Any] | None = None
) -> TokenizerTrainingDataset | StreamedImages:
    """
    What `--train_data` names, with views to reconstruct and those of `crops`, options of [`MultiCropTransform`].

    Raises:
        ValueError, FileNotFoundError, ImportError: it cannot be had or understood.
    """
    transform = MultiCropTransform(arguments.image_size, horizontal_flip=arguments.horizontal_flip, **(crops or {}))
    if scheme_before(arguments.train_data, [STREAM_SCHEME]):
        return StreamedImages(arguments.train_data, transform, arguments.seed, arguments.max_broken_images)
    source = build_image_source(arguments.train_data, resolution=arguments.data_resolution)
    return TokenizerTrainingDataset(
        source, transform, seed=arguments.seed, max_broken_images=arguments.max_broken_images
    )


def image_loader(
    dataset: TokenizerTrainingDataset | StreamedImages,
    arguments: ReconstructionArguments,
    accelerator: Accelerator,
    first_step: int,
) -> Iterable[dict[str, torch.Tensor]]:
    """
    This rank's batches from `first_step` on, in the order that an uninterrupted run has. A stream knows from its
    checkpoint where that is.
    """
    if not isinstance(dataset, StreamedImages):
        return step_indexed_loader(dataset, collate_training_views, arguments, accelerator, first_step)
    return dataset.loader(
        accelerator.process_index,
        accelerator.num_processes,
        arguments.train_batch_size,
        **_loader_options(arguments, accelerator),
    )


def step_indexed_loader(
    dataset: TokenizerTrainingDataset | LatentCache,
    collate: Callable[[Any], dict[str, torch.Tensor]],
    arguments: RunArguments,
    accelerator: Accelerator,
    first_step: int,
) -> DataLoader:
    """This rank's batches of a data set that is keyed by `(epoch, index)`, from `first_step` to the end of the run."""
    sampler = StepIndexedBatchSampler(
        num_samples=len(dataset),
        batch_size_per_rank=arguments.train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=arguments.seed,
        start_step=first_step,
        num_steps=arguments.max_train_steps - first_step,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **_loader_options(arguments, accelerator))


def _loader_options(arguments: RunArguments, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "num_workers": arguments.dataloader_num_workers,
        "pin_memory": accelerator.device.type == "cuda",
    }
