import itertools
import logging
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tcae_diffusers.data.images.decoding import BrokenImageError
from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.size_buckets import build_size_buckets
from tcae_diffusers.data.images.training_dataset import (
    TokenizerTrainingDataset,
    TooManyBrokenImagesError,
    collate_training_views,
)
from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler


def _steps(num_samples, batch, world_size=1, accumulation=1, start=0, steps=6, seed=0, bucket_of=None):
    """Per optimizer step, the keys of all ranks and micro-batches."""
    ranks = [
        list(
            StepIndexedBatchSampler(num_samples, batch, rank, world_size, seed, start, steps, accumulation, bucket_of)
        )
        for rank in range(world_size)
    ]
    assert all(len(keys) == batch for rank in ranks for keys in rank)
    return [
        [key for rank in ranks for micro in rank[step * accumulation : (step + 1) * accumulation] for key in micro]
        for step in range(steps)
    ]


@pytest.mark.parametrize("num_samples", [3, 8, 21, 100])
def test_every_way_to_make_a_batch_of_eight_takes_the_same_samples_each_step(num_samples):
    expected = [sorted(step) for step in _steps(num_samples, 8)]
    for batch, world_size, accumulation in ((4, 2, 1), (1, 1, 8), (2, 2, 2), (1, 8, 1), (4, 1, 2)):
        assert [sorted(step) for step in _steps(num_samples, batch, world_size, accumulation)] == expected


def test_each_epoch_uses_every_image_once_without_padding_or_dropping():
    keys = [key for step in _steps(21, 4, 2, steps=21) for key in step]
    assert Counter(keys) == Counter((epoch, index) for epoch in range(8) for index in range(21))
    orders = [[index for epoch, index in keys if epoch == e] for e in range(8)]
    assert len({tuple(order) for order in orders}) == 8 and list(range(21)) not in orders


def test_a_resume_continues_where_the_run_was():
    whole = _steps(21, 4, 2, steps=12)
    for start in (1, 5, 11):
        assert _steps(21, 4, 2, start=start, steps=12 - start) == whole[start:]
    assert _steps(21, 4, 2, steps=12, seed=1) != whole


# Samples of three buckets, in no order: 40, 17 and 3 of them.
BUCKET_OF = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 17, 3]))


def test_one_bucket_has_the_order_of_none():
    for bucket in (0, 5):
        one = np.full(21, bucket, dtype=np.int64)
        assert _steps(21, 4, 2, steps=12, bucket_of=one) == _steps(21, 4, 2, steps=12)


def test_the_samples_of_a_step_are_of_one_bucket_however_it_is_divided():
    expected = [sorted(step) for step in _steps(60, 8, steps=40, bucket_of=BUCKET_OF)]
    buckets = [{int(BUCKET_OF[index]) for _, index in step} for step in expected]
    assert all(len(each) == 1 for each in buckets) and len(set().union(*buckets)) == 3
    # Not one bucket after the other.
    assert sum(first != second for first, second in itertools.pairwise(buckets)) > 10
    for batch, world_size, accumulation in ((4, 2, 1), (1, 1, 8), (2, 2, 2)):
        divided = _steps(60, batch, world_size, accumulation, steps=40, bucket_of=BUCKET_OF)
        assert [sorted(step) for step in divided] == expected


def test_every_bucket_goes_through_its_samples_at_the_same_pace():
    steps = _steps(60, 8, steps=300, bucket_of=BUCKET_OF)
    keys = [key for step in steps for key in step]
    assert len(set(keys)) == len(keys) == 2400
    for bucket, count in enumerate([40, 17, 3]):
        taken = [key for key in keys if BUCKET_OF[key[1]] == bucket]
        # Whole epochs one after the other, and those of all buckets end together up to a step of each.
        for epoch in range(len(taken) // count):
            assert len(set(taken[epoch * count : (epoch + 1) * count])) == count
            assert {key[0] for key in taken[epoch * count : (epoch + 1) * count]} == {epoch}
        assert abs(len(taken) - 40 * count) <= 2 * 8


def test_a_resume_among_buckets_continues_where_the_run_was():
    whole = _steps(60, 4, 2, steps=40, bucket_of=BUCKET_OF)
    for start in (1, 7, 8, 23, 39):
        assert _steps(60, 4, 2, start=start, steps=40 - start, bucket_of=BUCKET_OF) == whole[start:]
    other = _steps(60, 4, 2, steps=40, seed=1, bucket_of=BUCKET_OF)
    buckets, others = ([int(BUCKET_OF[step[0][1]]) for step in steps] for steps in (whole, other))
    assert buckets != others


def test_a_bucket_for_each_sample_is_asked_for():
    with pytest.raises(ValueError, match=re.escape("bucket_of has shape (3,), expected (9,)")):
        StepIndexedBatchSampler(9, 2, 0, 1, 0, 0, 1, bucket_of=np.zeros(3, dtype=np.int64))


def test_length_counts_forward_passes():
    sampler = StepIndexedBatchSampler(10, 2, 0, 1, 0, 3, 4, 5)
    assert len(sampler) == len(list(sampler)) == 20
    assert sampler.global_batch_size == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples 0 is below 1"),
        ({"batch_size_per_rank": 0}, "batch_size_per_rank 0"),
        ({"rank": 2}, "rank 2 is not within [0, world_size=2)"),
        ({"seed": -1}, "seed -1"),
        ({"start_step": -1}, "start_step -1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps 0"),
    ],
)
def test_impossible_numbers_are_named(change, message):
    good = {"num_samples": 9, "batch_size_per_rank": 2, "rank": 0, "world_size": 2, "seed": 0, "start_step": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        StepIndexedBatchSampler(**{**good, "num_steps": 1, **change})


class ColourSource:
    """Image `i` is a plain colour that tells `i`; those in `broken` cannot be read."""

    attribution = None
    fingerprint = "colours"

    def __init__(self, size=11, broken=()):
        self.size, self.broken = size, broken

    def __len__(self):
        return self.size

    def image(self, index):
        if index in self.broken:
            raise BrokenImageError(f"image-{index}.png", "made so")
        return Image.new("RGB", (20, 20), (index * 20, 10, 200))


TRANSFORM = MultiCropTransform(8, 8, 4, 2, (2, 2), horizontal_flip=False)


def _batches(source, workers, max_broken=0, start=0, steps=5):
    buckets = build_size_buckets(source, [8], 1, aspect_ratios=False)
    dataset = TokenizerTrainingDataset(source, TRANSFORM, buckets, seed=4, max_broken_images=max_broken)
    sampler = StepIndexedBatchSampler(len(source), 3, 0, 1, 4, start, steps)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate_training_views)
    return dataset, list(loader)


def _equal(first, second):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, second, strict=True)
    )


def test_workers_and_resumes_give_identical_tensors():
    _, whole = _batches(ColourSource(), 0)
    assert {name: (tuple(value.shape), value.dtype) for name, value in whole[0].items()} == {
        "pixel_values": ((3, 3, 8, 8), torch.uint8),
        "global_crops": ((3, 2, 3, 8, 8), torch.uint8),
        "local_crops": ((3, 2, 3, 4, 4), torch.uint8),
        "masks": ((3, 2, 2, 2), torch.bool),
        "indices": ((3,), torch.int64),
    }
    for batch in whole:
        assert torch.equal(batch["pixel_values"][:, 0, 0, 0].long(), batch["indices"] * 20)
    assert _equal(_batches(ColourSource(), 2)[1], whole)
    assert _equal(_batches(ColourSource(), 1, start=3, steps=2)[1], whole[3:])


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_by_the_next_counted_once_and_named(workers, caplog):
    source = ColourSource(broken=(4, 5, 10))
    with caplog.at_level(logging.WARNING):
        dataset, batches = _batches(source, workers, max_broken=3, steps=9)
    used = Counter(torch.cat([batch["indices"] for batch in batches]).tolist())
    assert not used.keys() & {4, 5, 10} and used[6] > used[7] and used[0] > used[1]
    assert dataset.broken_indices == [4, 5, 10]
    _, clean = _batches(ColourSource(), 0, steps=9)
    for batch, clean_batch in zip(batches, clean, strict=True):
        same = batch["indices"] == clean_batch["indices"]
        assert torch.equal(batch["global_crops"][same], clean_batch["global_crops"][same])
        assert torch.equal(batch["masks"], clean_batch["masks"])


@pytest.mark.parametrize("workers", [0, 2])
def test_one_broken_image_too_many_stops_with_its_name(workers):
    with pytest.raises(
        TooManyBrokenImagesError, match=r"2 broken images, 1 allowed \(--max_broken_images\).*image-\d+.png"
    ):
        _batches(ColourSource(broken=(4, 5)), workers, max_broken=1, steps=9)


def test_a_source_with_nothing_readable_says_so():
    with pytest.raises(TooManyBrokenImagesError, match="none of the 2 images can be read"):
        _batches(ColourSource(2, broken=(0, 1)), 0, max_broken=2)
