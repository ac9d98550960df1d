"""Noise on latents: how much, of which size, whose, and what the encoder can do against it."""

import pytest
import torch

from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.errors import InputError
from tcae_diffusers.objectives.latent_noise import LatentDenoising, draw_noise
from tcae_diffusers.objectives.latent_shaping import Shaped

IMAGES = torch.zeros(64, 3, 8, 8)


def shaped(latent, strength=3.0, step=0, first_slot=0):
    generators = slot_generators(0, step, first_slot, len(latent))
    return LatentDenoising(strength)(Shaped(latent, IMAGES[: len(latent)]), generators, step)


def latents(deviation=1.0, batch=64):
    return deviation * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_latent_is_mixed_with_noise_in_a_proportion_of_its_own():
    latent = latents()
    levels = torch.stack([torch.rand((), generator=generator) for generator in slot_generators(0, 0, 0, 64)])
    noisy = shaped(latent, strength=2.0).latent
    noise = (noisy - (1 - levels.view(-1, 1, 1, 1)) * latent) / levels.view(-1, 1, 1, 1) / 2.0
    assert 0.1 < levels.mean() < 0.9 and levels.min() < 0.1 and levels.max() > 0.9
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(64), rtol=0.25, atol=0)
    correlation = (noise * latent).mean() / (noise.std() * latent.std())
    assert correlation.abs() < 0.05


def test_the_log_has_the_mean_proportion_and_the_target_stays():
    levels = torch.stack([torch.rand((), generator=generator) for generator in slot_generators(0, 5, 0, 64)])
    result = shaped(latents(), step=5)
    torch.testing.assert_close(result.logged["shaping/noise"], levels.mean())
    assert result.target.data_ptr() == IMAGES.data_ptr()


def test_larger_latents_get_larger_noise_so_that_growing_is_no_way_out():
    small = shaped(latents(0.01)).latent
    torch.testing.assert_close(shaped(latents(100.0)).latent, 1e4 * small, rtol=1e-4, atol=1e-2)
    # Nor does the gradient ask for it: what does not change with the size has no gradient along the size.
    latent = latents().requires_grad_()
    noisy = shaped(latent).latent.flatten(1)
    torch.nn.functional.normalize(noisy).square().mul(torch.arange(256)).sum().backward()
    along = (latent.grad * latent).flatten(1).sum(1)
    across = latent.grad.flatten(1).norm(dim=1) * latent.flatten(1).norm(dim=1)
    assert (along.abs() < 1e-3 * across).all() and (across > 0).all()


def test_a_latent_of_zeros_has_a_finite_gradient():
    latent = torch.zeros(2, 4, 2, 2, requires_grad=True)
    shaped(latent).latent.sum().backward()
    assert latent.grad.isfinite().all()


def test_noise_of_an_image_is_that_of_its_slot_and_step():
    latent = latents(batch=4)
    whole = shaped(latent).latent
    assert torch.equal(shaped(latent[2:], first_slot=2).latent, whole[2:])
    assert not torch.equal(shaped(latent, step=1).latent, whole)


def test_levels_and_noise_come_from_the_generators_alone_and_in_the_shape_of_the_latent():
    latent = torch.zeros(3, 2, 4, 5)
    level, noise = draw_noise(latent, slot_generators(0, 0, 0, 3), lambda g: torch.randn((), generator=g).abs())
    again, same = draw_noise(latent, slot_generators(0, 0, 0, 3), lambda g: torch.randn((), generator=g).abs())
    assert level.shape == (3, 1, 1, 1) and noise.shape == latent.shape
    assert torch.equal(level, again) and torch.equal(noise, same) and len(set(level.flatten().tolist())) == 3


def test_without_generators_a_latent_is_left_alone_and_negative_strength_is_named():
    before = Shaped(latents(), IMAGES)
    assert LatentDenoising()(before, None, 0) is before
    with pytest.raises(InputError, match="strength is -1"):
        LatentDenoising(-1)
