"""Images to batches of training views, for any number of DataLoader workers."""

from functools import cached_property

import torch
from diffusers.utils import logging
from PIL import Image
from torch.utils.data import Dataset, default_collate

from ...files import sha256_of_json
from ..sample_randomness import sample_generator
from .decoding import BrokenImageError
from .multi_crop import MultiCropTransform
from .size_buckets import SizeBuckets
from .sources import ImageSource

logger = logging.get_logger(__name__)


class TooManyBrokenImagesError(RuntimeError):
    """More images could not be decoded than the caller allows."""

    @classmethod
    def of(cls, count: int, allowed: int, last: object) -> "TooManyBrokenImagesError":
        """Say how many there are, and what is wrong with the last one."""
        return cls(f"{count} broken images, {allowed} allowed (--max_broken_images); the last: {last}")


class TokenizerTrainingDataset(Dataset):
    """Views of the images of a source, keyed by `(epoch, sample)` as [`StepIndexedBatchSampler`] yields them.

    Labels are not asked for: a tokenizer has no use for them.

    An image that cannot be decoded is replaced by the next one of the source (the first after the last), named once
    in the log, and counted. The count of distinct broken images is shared by all DataLoader workers of this process.

    Args:
        source ([`ImageSource`]): The images.
        transform ([`MultiCropTransform`]): The views.
        buckets ([`SizeBuckets`]): The samples: which image each of them is, and at which size it is reconstructed.
        seed (`int`): Of the run. Views are a function of (seed, epoch, sample) alone.
        max_broken_images (`int`, defaults to 0): How many distinct broken images to pass over.

    Raises:
        TooManyBrokenImagesError: From `dataset[key]`, on the first broken image beyond that number.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: MultiCropTransform,
        buckets: SizeBuckets,
        seed: int = 0,
        max_broken_images: int = 0,
    ):
        if max_broken_images < 0:
            raise ValueError(f"max_broken_images {max_broken_images} is negative")
        self.source = source
        self.transform = transform
        self.buckets = buckets
        self.seed = seed
        self.max_broken_images = max_broken_images
        # One flag per image in shared memory: workers are other processes, and the bound holds for all of them.
        self._broken = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.buckets)

    @cached_property
    def fingerprint(self) -> str:
        """That of the source, and of the sizes where there are several."""
        if not self.buckets.description:
            return self.source.fingerprint
        return sha256_of_json([self.source.fingerprint, self.buckets.sizes, self.buckets.counts])

    @property
    def description(self) -> str:
        return ", ".join(filter(None, [f"{len(self.source)} images", self.buckets.description]))

    @property
    def broken_indices(self) -> list[int]:
        """Indices of the images found broken so far, by all workers of this process."""
        return self._broken.nonzero().flatten().tolist()

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | int]:
        epoch, sample = key
        image, used = self._load(int(self.buckets.image_of[sample]))
        # Randomness and size are those of the key, so a replacement does not repeat the views that it has under its
        # own and fits into the batch.
        views = self.transform(image, sample_generator(self.seed, epoch, sample), self.buckets.size(sample))
        return {**views, "indices": used}

    def _load(self, index: int) -> tuple[Image.Image, int]:
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            if self._broken[candidate]:
                continue
            try:
                return self.source.image(candidate), candidate
            except BrokenImageError as error:
                self._count_broken(candidate, error)
        raise TooManyBrokenImagesError(f"none of the {len(self.source)} images can be read")

    def _count_broken(self, index: int, error: BrokenImageError) -> None:
        self._broken[index] = True
        count = int(self._broken.sum())
        if count > self.max_broken_images:
            raise TooManyBrokenImagesError.of(count, self.max_broken_images, error) from error
        logger.warning(f"broken image {count} of {self.max_broken_images} allowed is skipped: {error}")


def collate_training_views(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Stack samples of [`TokenizerTrainingDataset`].

    Returns:
        `dict[str, torch.Tensor]`: uint8 `pixel_values` `(B, 3, H, W)`, `global_crops` `(B, 2, 3, h, w)` and
        `local_crops` `(B, k, 3, h', w')`; bool `masks` `(B, 2, grid height, grid width)`; int64 `indices` `(B,)`. What
        the transform does not draw is absent.
    """
    return default_collate(samples)
