"""Latents scale and turn as their images do: which steps, by how much, and both alike."""

import pytest
import torch
import torch.nn.functional as F

from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.errors import InputError
from tcae_diffusers.objectives.latent_equivariance import LatentEquivariance, transformed
from tcae_diffusers.objectives.latent_shaping import Shaped, ShapingChain

RATIO = 4


def maps(side, channels=3, batch=5):
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def sides(shaping, side, steps=400):
    return [shaping.scaled_side(side, step) for step in range(steps)]


def step_that_scales(shaping, side):
    return next(step for step, found in enumerate(sides(shaping, side)) if found not in (None, side))


def test_an_encoder_and_decoder_that_are_equivariant_reconstruct_what_is_asked():
    # Each position stands for one pixel value; quarter turns and whole scales commute with that.
    shaping = LatentEquivariance(seed=0, spatial_ratio=RATIO, probability=1.0)
    latent = maps(8)
    images = F.interpolate(latent, scale_factor=RATIO)
    step = next(step for step, side in enumerate(sides(shaping, 8)) if side == 4)
    shaped = shaping(Shaped(latent, images), slot_generators(0, step, 0, 5), step)
    assert shaped.latent.shape[-1] == 4 and shaped.target.shape[-1] == 4 * RATIO
    decoded = F.avg_pool2d(shaped.target, RATIO)
    # The filter blurs over the edges of positions; what is turned otherwise is not even near.
    error, wrong = ((decoded - latent).square().mean() for latent in (shaped.latent, shaped.latent.flip(-1)))
    assert error < wrong / 10


def test_without_a_ratio_latents_and_images_are_treated_to_the_bit_alike():
    shaping = LatentEquivariance(seed=1, spatial_ratio=1, probability=1.0)
    for step in range(6):
        shaped = shaping(Shaped(maps(8), maps(8)), slot_generators(1, step, 0, 5), step)
        assert torch.equal(shaped.latent, shaped.target)


def test_images_are_turned_by_one_to_three_quarters_and_not_all_alike():
    shaping = LatentEquivariance(seed=0, spatial_ratio=RATIO, probability=1.0, min_scale=1.0)
    before, seen = maps(4, batch=32), set()
    after = shaping(Shaped(before, maps(16, batch=32)), slot_generators(0, 0, 0, 32), 0).latent
    for image, turned in zip(before, after, strict=True):
        (turns,) = (count for count in range(4) if torch.equal(turned, torch.rot90(image, count, (1, 2))))
        seen.add(turns)
    assert seen == {1, 2, 3}


def test_steps_and_scales_are_as_likely_as_asked():
    found = sides(LatentEquivariance(seed=0, spatial_ratio=RATIO, probability=0.25, min_scale=0.5), 8, steps=2000)
    drawn = [side for side in found if side is not None]
    assert len(drawn) / 2000 == pytest.approx(0.25, abs=0.03)
    assert {side: drawn.count(side) for side in drawn}.keys() == {4, 5, 6, 7, 8}
    assert max(map(drawn.count, drawn)) / len(drawn) < 0.3


def test_other_steps_are_left_alone_and_the_log_has_the_scale_of_each():
    shaping = LatentEquivariance(seed=0, spatial_ratio=RATIO, probability=0.5)
    untouched = sides(shaping, 8).index(None)
    latent, images = maps(8), maps(32)
    generators = slot_generators(0, untouched, 0, 5)
    shaped = shaping(Shaped(latent, images), generators, untouched)
    assert shaped.latent is latent and shaped.target is images and shaped.logged == {"shaping/scale": 1.0}
    step = step_that_scales(shaping, 8)
    shaped = shaping(Shaped(latent, images), slot_generators(0, step, 0, 5), step)
    assert shaped.logged["shaping/scale"] == shaped.latent.shape[-1] / 8 < 1


def test_a_step_has_one_size_however_it_is_divided_and_an_image_its_own_rotation():
    shaping = LatentEquivariance(seed=3, spatial_ratio=RATIO, probability=1.0)
    step = step_that_scales(shaping, 8)
    latent, images = maps(8, batch=6), maps(32, batch=6)
    whole = shaping(Shaped(latent, images), slot_generators(3, step, 0, 6), step)
    for first in (0, 2, 4):
        part = slice(first, first + 2)
        divided = shaping(Shaped(latent[part], images[part]), slot_generators(3, step, first, 2), step)
        assert torch.equal(divided.latent, whole.latent[part]) and torch.equal(divided.target, whole.target[part])
    other = LatentEquivariance(seed=4, spatial_ratio=RATIO, probability=1.0)
    assert sides(other, 8) != sides(shaping, 8)


def test_gradients_pass_to_the_latent_in_half_precision_too():
    latent = maps(8).bfloat16().requires_grad_()
    transformed(latent, 3, [1, 2, 3, 1, 2]).sum().backward()
    assert (latent.grad != 0).all()


def test_a_single_position_is_not_turned():
    shaping = LatentEquivariance(seed=0, spatial_ratio=RATIO, probability=1.0, min_scale=0.25)
    step = next(step for step, side in enumerate(sides(shaping, 4)) if side == 1)
    shaped = Shaped(maps(4), maps(4 * RATIO))
    found = shaping(shaped, [torch.Generator().manual_seed(seed) for seed in range(5)], step)
    assert torch.equal(found.target, transformed(shaped.target, RATIO, [0] * 5))


def test_the_smallest_side_is_at_least_one_position():
    for side, scale, smallest in ((4, 0.25, 1), (4, 0.3, 2), (2, 0.25, 1), (8, 1.0, 8), (32, 0.25, 8)):
        assert LatentEquivariance(0, RATIO, min_scale=scale).smallest_side(side) == smallest


@pytest.mark.parametrize(
    ("options", "words"),
    [({"probability": 1.1}, "probability is 1.1"), ({"min_scale": 0}, "min_scale is 0"), ({"min_scale": 2}, "is 2")],
)
def test_values_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        LatentEquivariance(0, RATIO, **options)


def test_latents_that_are_not_square_are_named():
    shaping = LatentEquivariance(0, RATIO, probability=1.0)
    with pytest.raises(InputError, match="2x3"):
        shaping(Shaped(torch.zeros(1, 4, 2, 3), torch.zeros(1, 3, 8, 12)), slot_generators(0, 0, 0, 1), 0)


def test_an_empty_chain_changes_nothing_and_says_nothing():
    chain, shaped = ShapingChain(), Shaped(maps(2), maps(8))
    assert chain(shaped, None, 0) is shaped
    assert chain.description == "" and chain.identity == {} and not list(chain.parameters())
