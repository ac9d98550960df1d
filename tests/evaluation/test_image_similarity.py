"""PSNR and SSIM against scikit-image; the uint8 rule."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tcae_diffusers.evaluation.errors import EvaluationError
from tcae_diffusers.evaluation.image_sets import to_signed_unit, to_uint8
from tcae_diffusers.evaluation.image_similarity import PSNR_OF_IDENTICAL, psnr, ssim


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (4, 3, 24, 31), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-40, 41, first.shape, generator=generator)
    second = (first.int() + noise * torch.tensor([0, 1, 1, 2]).view(-1, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
    return first, second


def test_psnr_equals_scikit_image(pairs):
    values = psnr(*pairs)
    assert values[0] == PSNR_OF_IDENTICAL
    for index in range(1, 4):
        theirs = peak_signal_noise_ratio(pairs[0][index].numpy(), pairs[1][index].numpy(), data_range=255)
        assert values[index].item() == pytest.approx(theirs, rel=1e-12)


def test_ssim_equals_scikit_image(pairs):
    for index, value in enumerate(ssim(*pairs).tolist()):
        theirs = structural_similarity(
            pairs[0][index].permute(1, 2, 0).numpy(),
            pairs[1][index].permute(1, 2, 0).numpy(),
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value == pytest.approx(theirs, rel=1e-9)


def test_ssim_of_images_smaller_than_its_window_is_refused():
    tiny = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(EvaluationError, match="at least 11 pixels"):
        ssim(tiny, tiny)


def test_every_uint8_value_survives_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_signed_unit(values)), values)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]
