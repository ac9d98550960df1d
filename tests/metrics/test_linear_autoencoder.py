"""Principal components of blocks, against numpy's SVD and scikit-learn, and what has no linear autoencoder."""

import itertools

import numpy as np
import pytest
import torch

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics import linear_autoencoder
from tcae_diffusers.metrics.linear_autoencoder import NoLinearAutoencoder, fit_linear_autoencoder
from tcae_diffusers.metrics.reconstruction import evaluate_reconstruction, latent_shape


class Pictures:
    """Smooth pictures with a gradient of their own each, uint8 `(count, height, width, 3)`."""

    name, labels, classes, attribution, fingerprint = "pictures", None, None, None, "pictures"

    def __init__(self, count: int, height: int = 16, width: int = 24, seed: int = 0):
        generator = np.random.default_rng(seed)
        coarse = generator.normal(128, 60, (count, height // 4, width // 4, 3))
        smooth = coarse.repeat(4, axis=1).repeat(4, axis=2) + np.linspace(-40, 40, width)[:, None]
        self.pixels = (smooth + generator.normal(0, 6, smooth.shape)).round().clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pixels[index]


@pytest.fixture(scope="module")
def fitted_to():
    return Pictures(150)


def signed(images: Pictures) -> np.ndarray:
    return images.pixels.astype(np.float64) / 127.5 - 1


def blocks_of(images: Pictures, side: int) -> np.ndarray:
    """`(N, positions, side * side * 3)`, cut with numpy alone."""
    count, height, width, _ = images.pixels.shape
    cut = signed(images).reshape(count, height // side, side, width // side, side, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, side * side * 3)


def reconstruct_exactly(model: torch.nn.Module, images: Pictures) -> np.ndarray:
    """`(N, H, W, 3)` in about [-1, 1], before any rounding."""
    pixels = torch.from_numpy(signed(images)).permute(0, 3, 1, 2).float()
    return model.decode(model.encode(pixels)).sample.permute(0, 2, 3, 1).numpy()


def project(centred_to: np.ndarray, onto: np.ndarray, count: int) -> np.ndarray:
    """Blocks `onto (M, D)` on the first right singular vectors of the centred blocks `(N, D)`."""
    mean = centred_to.mean(axis=0)
    basis = np.linalg.svd(centred_to - mean, full_matrices=False)[2][:count]
    return (onto - mean) @ basis.T @ basis + mean


@pytest.mark.parametrize("batch_size", [7, 150])
def test_it_is_the_projection_onto_singular_vectors_of_all_blocks(fitted_to, batch_size):
    model = fit_linear_autoencoder(fitted_to, (11, 4, 6), batch_size=batch_size)
    others = Pictures(9, seed=1)
    expected = project(blocks_of(fitted_to, 4).reshape(-1, 48), blocks_of(others, 4), 11)
    outputs = reconstruct_exactly(model, others)
    actual = outputs.reshape(9, 4, 4, 6, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(9, 24, 48)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    assert model.encode(torch.zeros(2, 3, 16, 24)).shape == (2, 11, 4, 6) and model.name == "linear f4c11"


def test_it_is_scikit_learns_principal_component_analysis(fitted_to):
    decomposition = pytest.importorskip("sklearn.decomposition")
    blocks = blocks_of(fitted_to, 4).reshape(-1, 48)
    pca = decomposition.PCA(5, svd_solver="full").fit(blocks)
    expected = np.square(pca.inverse_transform(pca.transform(blocks)) - blocks).mean()
    model = fit_linear_autoencoder(fitted_to, (5, 4, 6))
    error = np.square(reconstruct_exactly(model, fitted_to) - signed(fitted_to)).mean()
    assert error == pytest.approx(expected, rel=1e-5)


def test_each_position_can_have_a_basis_of_its_own():
    images = Pictures(500)
    model = fit_linear_autoencoder(images, (3, 4, 6), per_position=True)
    blocks = blocks_of(images, 4)
    expected = np.stack([project(blocks[:, place], blocks[:, place], 3) for place in range(24)], axis=1)
    outputs = reconstruct_exactly(model, images)
    actual = outputs.reshape(500, 4, 4, 6, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(500, 24, 48)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    shared = reconstruct_exactly(fit_linear_autoencoder(images, (3, 4, 6)), images)
    assert np.square(outputs - signed(images)).mean() < np.square(shared - signed(images)).mean()


def test_more_numbers_never_cost_accuracy_and_all_of_them_give_back_every_image(fitted_to):
    others = Pictures(20, seed=1)
    models = [fit_linear_autoencoder(fitted_to, (count, 4, 6)) for count in (1, 4, 16, 40, 48, 200)]
    found = [evaluate_reconstruction(model, others) for model in models]
    errors = [np.square(reconstruct_exactly(model, fitted_to) - signed(fitted_to)).mean() for model in models]
    assert all(more < 0.9 * fewer for fewer, more in itertools.pairwise(errors[:5]))
    psnr = [each.per_image["psnr"].mean() for each in found]
    assert psnr[:5] == sorted(psnr[:5]) and psnr[3] < 60
    # A latent larger than the image has as many numbers as the image.
    assert psnr[4:] == [100.0, 100.0] and found[5].latent_shape == (48, 4, 6)


class Averages:
    """Stands for a feature network: the mean colours of four quarters."""

    name, dimensions = "averages", 12

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)}

    def describe(self) -> dict[str, object]:
        return {"name": self.name}


def test_its_figures_stand_beside_those_of_the_model(fitted_to):
    others, network = Pictures(30, seed=1), Averages()
    model, linear = (fit_linear_autoencoder(fitted_to, (count, 4, 6)) for count in (9, 4))
    found = evaluate_reconstruction(model, others, network, 8, linear=linear)
    alone = evaluate_reconstruction(linear, others, network, 30)
    assert [figure.name for figure in found.figures][::3] == ["PSNR (dB)", "rFD-averages"]
    assert latent_shape(model, others) == (9, 4, 6)
    for figure, expected in zip(found.figures, alone.figures, strict=True):
        assert figure.linear is not None and figure.linear.name == "linear f4c4"
        assert figure.linear.value == pytest.approx(expected.value, rel=1e-9)
        assert figure.linear.interval == pytest.approx(expected.interval, rel=1e-9)
        assert expected.linear is None
        if (column := figure.per_image) is None:
            assert figure.linear.difference_interval is None
            continue
        differences = found.per_image[column] - alone.per_image[column]
        interval = 1.96 * differences.std(ddof=1) / np.sqrt(30)
        assert figure.linear.difference_interval == pytest.approx(interval, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((128, 60), 150, "a latent of shape 128x60 is not a grid of positions"),
        ((16, 2, 4, 6), 150, "a latent of shape 16x2x4x6 is not a grid"),
        ((8, 4, 4), 150, "4x4 positions of the latent do not divide an image of 16x24 pixels"),
        ((8, 4, 5), 150, "4x5 positions of the latent do not divide an image of 16x24 pixels"),
        ((8, 2, 3), 50, "50 images of pictures have 300 blocks of 8x8 pixels; at least 1,920 are needed"),
    ],
)
def test_where_there_is_none_the_reason_is_given(shape, count, message):
    with pytest.raises(NoLinearAutoencoder, match=message):
        fit_linear_autoencoder(Pictures(count), shape)
    assert issubclass(NoLinearAutoencoder, InputError)


def test_covariances_that_would_not_fit_into_memory_are_refused_before_images_are_read():
    class Large(Pictures):
        def __getitem__(self, index: int) -> np.ndarray:
            assert index == 0, "an image was read"
            return np.zeros((256, 256, 3), dtype=np.uint8)

    with pytest.raises(NoLinearAutoencoder, match=r"64x64 pixels have 12,288 numbers.* 1\.1 GiB, more than 1 GiB"):
        fit_linear_autoencoder(Large(150), (128, 4, 4))
    with pytest.raises(NoLinearAutoencoder, match="64 covariance"):
        fit_linear_autoencoder(Large(150), (128, 8, 8), per_position=True)


def test_blocks_are_taken_in_pieces_without_changing_the_fit(fitted_to, monkeypatch):
    whole = fit_linear_autoencoder(fitted_to, (6, 4, 6))
    monkeypatch.setattr(linear_autoencoder, "_BLOCKS", 50)
    pieces = fit_linear_autoencoder(fitted_to, (6, 4, 6))
    others = Pictures(5, seed=1)
    np.testing.assert_allclose(reconstruct_exactly(whole, others), reconstruct_exactly(pieces, others), atol=1e-6)
