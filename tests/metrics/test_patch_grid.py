"""The patch grid against a computation pair by pair in NumPy, and on images on which a grid is drawn."""

import numpy as np
import pytest
import torch

from tcae_diffusers.metrics.confidence import mean_interval
from tcae_diffusers.metrics.image_measures import ImageMeasureSettings, build_image_measures
from tcae_diffusers.metrics.image_measures.patch_grid import FLAT, PatchGrid

PERIOD = 8


def smooth_images(count=12, height=44, width=32):
    """Waves of many directions and lengths, without any period in common."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = random.uniform(0.05, 0.4, (2, count, 3, 1, 1))
    phases = random.uniform(0, 6, (count, 3, 1, 1))
    contrast = random.uniform(10, 60, (count, 1, 1, 1))
    images = 128 + contrast * np.sin(waves[0] * rows + waves[1] * columns + phases)
    return torch.from_numpy(images.round().astype(np.uint8))


def with_grid(images, strength, shift=0):
    """Every second patch brighter, as the squares of a chessboard; `shift` moves the board."""
    rows, columns = torch.meshgrid(*(torch.arange(side) + shift for side in images.shape[-2:]), indexing="ij")
    board = (rows // PERIOD + columns // PERIOD) % 2 * strength
    return (images.int() + board).clamp(0, 255).to(torch.uint8)


def patch_grid(originals, outputs, period=PERIOD, batch=5):
    """Values of each image, fed in batches."""
    measure = PatchGrid(period)
    found = [measure(one, other) for one, other in zip(originals.split(batch), outputs.split(batch), strict=True)]
    return measure.over_set({name: torch.cat([each[name] for each in found]).numpy() for name in found[0]})[
        "patch_grid"
    ]


def ratio_pair_by_pair(images, period):
    across, within = [], []
    for image in images.numpy().astype(float):
        for levels in (image, image.transpose(0, 2, 1)):
            for line in range(levels.shape[1] - 1):
                where = across if (line + 1) % period == 0 else within
                where.extend(abs(levels[:, line + 1] - levels[:, line]).ravel())
    return (np.mean(across) + FLAT) / (np.mean(within) + FLAT)


@pytest.mark.parametrize("period", [2, 5, 8, 40])
def test_the_mean_is_the_ratio_of_a_computation_pair_by_pair(period):
    originals, outputs = smooth_images(), with_grid(smooth_images(), 9, shift=1)
    expected = ratio_pair_by_pair(outputs, period) / ratio_pair_by_pair(originals, period)
    values = patch_grid(originals, outputs, period)
    assert values.shape == (12,) and values.mean() == pytest.approx(expected, rel=1e-12)
    assert patch_grid(originals, outputs, period, batch=12) == pytest.approx(values, rel=1e-12)


def test_a_grid_shows_the_more_the_stronger_it_is_and_only_where_patches_meet():
    originals = smooth_images()
    values = [patch_grid(originals, with_grid(originals, strength)).mean() for strength in (0, 4, 12, 40)]
    assert values[0] == pytest.approx(1.0, abs=1e-12)
    assert values == sorted(values) and values[2] > 1.2 and values[3] > 3
    # The same chessboard, moved: its borders lie within the patches.
    assert patch_grid(originals, with_grid(originals, 40, shift=3)).mean() < 1
    # A grid that the originals have too is none of the decoder's.
    assert patch_grid(with_grid(originals, 40), with_grid(originals, 40)).mean() == pytest.approx(1.0, abs=1e-12)


def test_a_loss_of_contrast_is_no_grid():
    originals = smooth_images()
    faded = ((originals.float() - 128) * 0.5 + 128).round().to(torch.uint8)
    assert patch_grid(originals, faded).mean() == pytest.approx(1.0, abs=0.02)


def test_flat_images_have_no_grid_and_leave_that_of_others_as_it_is():
    originals, flat = smooth_images(), torch.full((5, 3, 44, 32), 77, dtype=torch.uint8)
    assert patch_grid(flat, flat) == pytest.approx(np.ones(5))
    outputs = with_grid(originals, 12)
    among = patch_grid(torch.cat([originals, flat]), torch.cat([outputs, flat])).mean()
    assert among == pytest.approx(patch_grid(originals, outputs).mean(), rel=1e-2)


def test_the_interval_is_that_of_leaving_out_each_image():
    originals = smooth_images(60)
    outputs = with_grid(originals, torch.randint(0, 30, (60, 1, 1, 1), generator=torch.Generator().manual_seed(0)))
    values = patch_grid(originals, outputs)
    kept = [[other for other in range(60) if other != index] for index in range(60)]
    without = np.array([patch_grid(originals[few], outputs[few], batch=59).mean() for few in kept])
    jackknife = 1.96 * np.sqrt(59 / 60 * np.square(without - without.mean()).sum())
    assert mean_interval(values) == pytest.approx(jackknife, rel=0.1)


def test_it_is_built_where_the_size_of_the_patches_is_known():
    def built(**settings):
        return [type(measure) for measure in build_image_measures(ImageMeasureSettings(**settings))]

    assert PatchGrid in built(patch_size=2) and PatchGrid not in built()
