"""Leading channels of latents stay, and the others become zero."""

import pytest
import torch

from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.errors import InputError
from tcae_diffusers.objectives.latent_channel_mask import LatentChannelMask
from tcae_diffusers.objectives.latent_shaping import Shaped

LATENT, IMAGES = torch.rand(256, 8, 2, 2) + 1, torch.zeros(256, 3, 4, 4)


def masked(mask, latent=LATENT, first_slot=0, step=0):
    before = Shaped(latent, IMAGES[: len(latent)])
    return mask(before, slot_generators(0, step, first_slot, len(latent)), step)


def test_leading_channels_are_left_as_they_are_and_their_number_is_uniform():
    result = masked(LatentChannelMask(3, 8))
    left = (result.latent != 0).all(dim=(2, 3))
    assert torch.equal(left, left.cummin(dim=1).values) and torch.equal(left, (result.latent != 0).any(dim=(2, 3)))
    assert torch.equal(result.latent[result.latent != 0], LATENT[result.latent != 0])
    counts = left.sum(1).bincount(minlength=9)
    assert counts[:3].sum() == 0 and (counts[3:] > 256 / 6 / 2).all()
    torch.testing.assert_close(result.logged["shaping/channels"], left.float().mean())
    assert result.target.data_ptr() == IMAGES.data_ptr()


def test_masked_channels_get_no_gradient():
    latent = LATENT.clone().requires_grad_()
    result = masked(LatentChannelMask(1, 8), latent)
    result.latent.sum().backward()
    assert torch.equal(latent.grad, (result.latent != 0).float())


def test_channels_of_an_image_are_those_of_its_slot_and_step():
    mask = LatentChannelMask(1, 8)
    whole = masked(mask).latent
    assert torch.equal(masked(mask, LATENT[8:16], first_slot=8).latent, whole[8:16])
    assert not torch.equal(masked(mask, step=1).latent, whole)


def test_all_channels_and_no_generators_leave_a_latent_alone():
    assert torch.equal(masked(LatentChannelMask(8, 8)).latent, LATENT)
    before = Shaped(LATENT, IMAGES)
    assert LatentChannelMask(1, 8)(before, None, 0) is before


@pytest.mark.parametrize("channels", [0, 9])
def test_numbers_of_channels_that_there_are_not_are_named(channels):
    with pytest.raises(InputError, match=f"min_channels is {channels}, but the latent has 8"):
        LatentChannelMask(channels, 8)
