"""PSNR and SSIM against scikit-image; the uint8 rule."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tcae_diffusers.data.images.pixel_range import from_signed, to_signed
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.image_measures.psnr import PSNR_OF_IDENTICAL, psnr
from tcae_diffusers.metrics.image_measures.structural_similarity import ms_ssim_scales, ssim, structural_similarities


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
    with pytest.raises(InputError, match="at least 11 pixels"):
        ssim(tiny, tiny)


def test_every_uint8_value_survives_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_signed(to_signed(values)), values)
    assert from_signed(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]


def reference_ms_ssim(first, second, scales):
    """Another way to the same: scipy's correlation with an outer-product window, NumPy loops over scales."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for x, y in zip(first.astype(float), second.astype(float), strict=True):
        value = 1.0
        for scale in range(scales):
            mean = [correlate2d(part, window, "valid") for part in (x, y, x * x, y * y, x * y)]
            covariance, c1, c2 = mean[4] - mean[0] * mean[1], 6.5025, 58.5225
            cs = (2 * covariance + c2) / (mean[2] - mean[0] ** 2 + mean[3] - mean[1] ** 2 + c2)
            luminance = (2 * mean[0] * mean[1] + c1) / (mean[0] ** 2 + mean[1] ** 2 + c1)
            part = (luminance * cs).mean() if scale == scales - 1 else cs.mean()
            value *= max(part, 0) ** (weights[scale] / weights.sum())
            rows, columns = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
            x, y = (p[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean((1, 3)) for p in (x, y))
        values.append(value)
    return np.mean(values)


@pytest.mark.parametrize(("size", "scales"), [((24, 31), 2), ((180, 177), 5)])
def test_ms_ssim_equals_its_definition(size, scales):
    generator = np.random.default_rng(0)
    first = np.kron(generator.integers(0, 256, (3, 9, 9)), np.ones((1, 20, 20)))[:, : size[0], : size[1]]
    second = (first + generator.normal(0, 25, first.shape)).clip(0, 255).round()
    pair = [torch.from_numpy(part.astype(np.uint8))[None] for part in (first, second)]
    single, multiple = structural_similarities(*pair)
    assert torch.equal(single, ssim(*pair))
    assert ms_ssim_scales(*size) == scales
    assert multiple.item() == pytest.approx(reference_ms_ssim(first, second, scales), rel=1e-9)
    assert structural_similarities(pair[0], pair[0])[1].item() == pytest.approx(1.0)
