import random

import numpy as np
import pytest
import torch
from PIL import Image

from tcae_diffusers.data.images.multi_crop import MultiCropTransform, random_resized_crop
from tcae_diffusers.data.images.token_masks import draw_mask, expand_mask
from tcae_diffusers.data.sample_randomness import epoch_permutation, sample_generator


def _image(width=40, height=36, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


FULL = {"resolution": 32, "global_crop_size": 24, "local_crop_size": 12, "num_local_crops": 3, "mask_grid": (4, 6)}


def test_views_have_the_promised_shapes_and_types():
    views = MultiCropTransform(**FULL)(_image(), sample_generator(0, 0, 0))
    assert {name: (tuple(view.shape), view.dtype) for name, view in views.items()} == {
        "pixel_values": ((3, 32, 32), torch.uint8),
        "global_crops": ((2, 3, 24, 24), torch.uint8),
        "local_crops": ((3, 3, 12, 12), torch.uint8),
        "masks": ((2, 4, 6), torch.bool),
    }
    assert set(MultiCropTransform(32)(_image(), sample_generator(0, 0, 0))) == {"pixel_values"}
    assert "local_crops" not in MultiCropTransform(32, 24)(_image(), sample_generator(0, 0, 0))


def test_views_depend_on_seed_epoch_and_index_only():
    transform = MultiCropTransform(**FULL)
    first = transform(_image(), sample_generator(3, 1, 7))
    for library in (random, np.random, torch):
        (library.manual_seed if library is torch else library.seed)(99)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    again = transform(_image(), sample_generator(3, 1, 7))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert not torch.equal(first["global_crops"], transform(_image(), sample_generator(*other))["global_crops"])


def test_the_number_of_local_crops_changes_nothing_else():
    few, many = (
        MultiCropTransform(**{**FULL, "num_local_crops": k})(_image(), sample_generator(0, 0, 5)) for k in (1, 4)
    )
    assert all(torch.equal(few[name], many[name]) for name in ("pixel_values", "global_crops", "masks"))
    assert torch.equal(few["local_crops"], many["local_crops"][:1])


def test_order_and_sample_streams_do_not_coincide():
    # numpy pads entropy with zeros, so a stream for (seed, epoch) could repeat in that of (seed, epoch, 0).
    assert (sample_generator(5, 6, 0).permutation(50) != epoch_permutation(5, 6, 50)).any()
    assert sorted(epoch_permutation(5, 6, 50)) == list(range(50))


def test_reconstruction_view_is_the_plain_or_the_mirrored_image():
    image = _image(32, 32)
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    transform = MultiCropTransform(32)
    flips = []
    for index in range(200):
        view = transform(image, sample_generator(0, 0, index))["pixel_values"]
        assert torch.equal(view, plain) or torch.equal(view, plain.flip(-1))
        flips.append(not torch.equal(view, plain))
    assert 70 < sum(flips) < 130
    never = MultiCropTransform(32, horizontal_flip=False)
    assert all(torch.equal(never(image, sample_generator(0, 0, i))["pixel_values"], plain) for i in range(8))


def test_crops_cover_the_promised_share_of_the_image():
    # Each pixel holds its own place, so a crop's extent can be read from its corners.
    height, width = 200, 100
    grid = np.stack([*np.mgrid[0:height, 0:width], np.zeros((height, width))], -1).astype(np.uint8)
    shares, aspects = [], []
    for index in range(300):
        crop = np.asarray(random_resized_crop(Image.fromarray(grid), sample_generator(0, 0, index), 64, (0.05, 0.25)))
        extent = crop.max((0, 1)).astype(float) - crop.min((0, 1)) + 1
        shares.append(extent[0] * extent[1] / (height * width))
        aspects.append(extent[1] / extent[0])
    assert 0.04 < min(shares) < 0.07 and 0.22 < max(shares) < 0.27
    assert 0.70 < min(aspects) < 0.80 and 1.25 < max(aspects) < 1.42


def test_second_global_crop_is_solarised_and_first_is_blurred():
    # White stays white under every other step; solarisation inverts bright pixels.
    white = Image.new("RGB", (32, 32), "white")
    transform = MultiCropTransform(32, 32)
    dark = torch.zeros(2)
    for index in range(300):
        crops = transform(white, sample_generator(1, 0, index))["global_crops"]
        dark += (crops.float().mean((1, 2, 3)) < 100).float()
    assert dark[0] == 0 and 30 < dark[1] < 90
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))
    sharp = torch.zeros(2)
    for index in range(20):
        crops = MultiCropTransform(32, 224)(noise, sample_generator(1, 0, index))["global_crops"].float()
        sharp += crops.diff(dim=-1).abs().mean((1, 2, 3))
    assert sharp[0] < 0.6 * sharp[1]


@pytest.mark.parametrize("shape", ["random", "block"])
def test_half_of_the_masks_are_empty_and_the_rest_hide_a_tenth_to_a_half(shape):
    masks = [draw_mask((8, 8), sample_generator(0, 0, index), shape=shape) for index in range(400)]
    shares = np.array([mask.mean() for mask in masks])
    used = shares[shares > 0]
    assert 160 < len(used) < 240
    assert used.max() <= 0.5 and (used.min() >= 0.09 or shape == "block")
    assert 0.22 < used.mean() < 0.38
    assert all(draw_mask((1, 2), sample_generator(0, 0, index), 1.0, shape=shape).sum() == 1 for index in range(20))


def test_block_masks_are_more_connected_than_random_ones():
    def edges(shape):
        masks = [draw_mask((12, 12), sample_generator(0, 0, i), 1.0, (0.3, 0.3), shape) for i in range(40)]
        return sum(np.abs(np.diff(mask.astype(int), axis=axis)).sum() for mask in masks for axis in (0, 1))

    assert edges("block") < 0.6 * edges("random")


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_masking_a_group_hides_all_its_patches(group_size):
    groups = torch.from_numpy(draw_mask((4, 6), sample_generator(0, 0, 1), 1.0))
    patches = expand_mask(torch.stack([groups, ~groups]), group_size)
    assert patches.shape == (2, 4 * group_size, 6 * group_size)
    cells = patches[0].unfold(0, group_size, group_size).unfold(1, group_size, group_size).flatten(2)
    assert torch.equal(cells.all(-1), groups) and torch.equal(cells.any(-1), groups)
    assert torch.equal(patches[1], ~patches[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 0}, "resolution 0"),
        ({"num_local_crops": -1}, "num_local_crops -1"),
        ({"local_crop_size": None}, "needs global_crop_size and local_crop_size"),
        ({"global_crop_size": None, "num_local_crops": 0}, "masks belong to global crops"),
        ({"mask_grid": (0, 4)}, "mask_grid"),
        ({"global_crop_scale": (0.5, 0.2)}, "global_crop_scale"),
        ({"local_crop_scale": (0.0, 0.2)}, "local_crop_scale"),
        ({"mask_ratio": (0.1, 1.5)}, "mask_ratio"),
        ({"mask_probability": 1.1}, "mask_probability 1.1"),
        ({"mask_shape": "stripes"}, "mask_shape 'stripes' is unknown; expected one of random, block"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MultiCropTransform(**{**FULL, **change})
