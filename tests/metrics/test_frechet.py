"""The Fréchet distance against independent computations, in float64 and in 50 digits, and against torch-fidelity."""

from importlib.metadata import version

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics import frechet
from tcae_diffusers.metrics.frechet import (
    OWN_ENGINE,
    FrechetStatistics,
    frechet_distance,
    headline_distance,
)


def features(seed, count, dimensions=24, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, dimensions)) @ generator.normal(size=(dimensions, dimensions)) + shift


def reference_distance(first, second):
    mean = first.mean(0) - second.mean(0)
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return mean @ mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real


@pytest.mark.parametrize("counts", [(100, 80), (25, 300)])
def test_equals_the_matrix_square_root(counts):
    first, second = features(0, counts[0]), features(1, counts[1], shift=0.5)
    assert frechet_distance(first, second) == pytest.approx(reference_distance(first, second), rel=1e-9)


def test_equals_torch_fidelity():
    first, second = (torch.from_numpy(features(seed, 200, 64)).float() for seed in (2, 3))
    statistics = [fid_features_to_statistics(part) for part in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)


def exact_distance(first, second):
    """In 50 digits: `tr (S1 S2)^(1/2)` is the nuclear norm of `F1 F2^T` for the centred features `F^T F = S`."""
    with mpmath.workdps(50):
        means, factors, distance = [], [], mpmath.mpf(0)
        for features in (first, second):
            rows = mpmath.matrix(features.tolist())
            mean = mpmath.matrix([[mpmath.fsum(rows[:, j]) / rows.rows for j in range(rows.cols)]])
            centred = rows - mpmath.matrix([mean.tolist()[0]] * rows.rows)
            factors.append(centred / mpmath.sqrt(rows.rows - 1))
            means.append(mean)
            distance += mpmath.fsum(x * x for x in factors[-1])
        distance += mpmath.fsum(x * x for x in means[0] - means[1])
        return float(distance - 2 * mpmath.fsum(mpmath.svd_r(factors[0] * factors[1].T, compute_uv=False)))


# Fewer images than the 24 features on both sides, on one side, and on none but with features that are combinations of
# others; with variances that are equal and that fall by up to eight orders of magnitude.
SINGULAR = [(12, 9, 24), (9, 30, 24), (30, 9, 24), (28, 30, 9)]


@pytest.mark.parametrize("decay", [0.0, 3.0])
@pytest.mark.parametrize(("first_count", "second_count", "rank"), SINGULAR)
def test_singular_covariances_equal_fifty_digits(first_count, second_count, rank, decay):
    generator = np.random.default_rng(9)
    mixing = generator.normal(size=(rank, 24)) * np.arange(1, rank + 1)[:, None] ** -decay
    first = generator.normal(size=(first_count, rank)) @ mixing
    second = (1.1 * generator.normal(size=(second_count, rank)) + 0.1) @ mixing
    expected = exact_distance(first, second)
    statistics = FrechetStatistics.from_features(first), FrechetStatistics.from_features(second)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(statistics[0], second) == pytest.approx(expected, rel=1e-9)


def test_torch_fidelity_is_off_where_covariances_are_singular():
    # 20 images of 128 features and something near them: 109 eigenvalues of S1 S2 should be 0 and are rounding errors,
    # and the roots of those that happen to be positive are taken off the distance.
    generator = np.random.default_rng(10)
    variances = np.linalg.qr(generator.normal(size=(128, 128)))[0] / np.arange(1, 129)[:, None]
    first = generator.normal(size=(20, 128))
    second = first + 0.1 * generator.normal(size=first.shape)
    first, second = first @ variances, second @ variances
    statistics = [fid_features_to_statistics(torch.from_numpy(part)) for part in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    expected = exact_distance(first, second)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert 1e-5 < 1 - theirs / expected < 1e-3


def falling(count, dimensions, decay):
    """`(set, near set)` whose deviations fall as `1 / i^decay`."""
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))[0]
    directions *= np.arange(1.0, dimensions + 1)[:, None] ** -decay
    drawn = generator.normal(size=(count, dimensions))
    return drawn @ directions, (drawn + 0.1 * generator.normal(size=drawn.shape)) @ directions


@pytest.mark.parametrize("decay", [0, 1])
def test_the_headline_is_torch_fidelitys_where_covariances_have_full_rank(decay):
    first, second = falling(200, 24, decay)
    headline = headline_distance(first, second)
    moments = [{"mu": part.mean(0), "sigma": np.cov(part, rowvar=False)} for part in (first, second)]
    theirs = fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]
    assert headline.value == pytest.approx(theirs, rel=1e-9)
    assert headline.details == {"engine": f"torch-fidelity {version('torch-fidelity')}"}
    assert headline.value == pytest.approx(frechet_distance(first, second), rel=1e-6)
    statistics = FrechetStatistics.from_features(first), FrechetStatistics.from_features(second)
    assert headline_distance(*statistics) == headline


@pytest.mark.parametrize(("count", "dimensions", "decay"), [(48, 24, 5), (20, 128, 1), (30, 300, 2)])
def test_the_headline_is_ours_where_torch_fidelity_is_off(count, dimensions, decay):
    first, second = falling(count, dimensions, decay)
    statistics = FrechetStatistics.from_features(first), FrechetStatistics.from_features(second)
    for sides in ((first, second), statistics):
        headline = headline_distance(*sides)
        assert headline.details == {"engine": OWN_ENGINE}
        assert headline.value == pytest.approx(exact_distance(first, second), rel=1e-9)


def test_torch_fidelity_is_not_asked_where_features_are_more_than_images(monkeypatch):
    monkeypatch.setattr(frechet, "fid_statistics_to_metric", None)
    first, second = features(4, 10), features(5, 12)
    assert headline_distance(first, second).value == frechet_distance(first, second)


def test_a_loose_tolerance_saves_the_singular_values_where_they_change_nothing(monkeypatch):
    first, second = (FrechetStatistics.from_features(features(seed, 60)) for seed in (4, 5))
    expected = frechet_distance(first, second, tolerance=0)

    def refuse(*arguments, **options):
        raise AssertionError("singular values were computed")

    monkeypatch.setattr(np.linalg, "svd", refuse)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(AssertionError, match="singular values"):
        frechet_distance(first, first)


def test_fewer_images_than_features_agrees_with_the_covariance_path():
    first, second = features(4, 10, 50), features(5, 12, 50)
    direct = frechet_distance(first, second)
    through_covariance = frechet_distance(
        FrechetStatistics.from_features(first), FrechetStatistics.from_features(second)
    )
    assert direct == pytest.approx(through_covariance, rel=1e-6)
    # Singular covariances: the exact value for two sets that differ by a shift alone is the shift.
    assert frechet_distance(first, first + 2.0) == pytest.approx(4.0 * 50, rel=1e-9)


def test_batches_and_ranks_in_any_order_give_one_result():
    data = features(6, 103)
    whole = FrechetStatistics.from_features(data)
    parts = [FrechetStatistics(24) for _ in range(3)]
    for index, start in enumerate(range(0, 103, 10)):
        parts[index % 3].update(data[start : start + 10])
    merged = FrechetStatistics(24)
    for part in reversed(parts):
        merged.merge(part)
    assert merged.count == 103
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(data, rowvar=False), rtol=1e-9)


def test_taking_a_part_out_undoes_its_merging():
    data = features(6, 103)
    whole, part = FrechetStatistics.from_features(data), FrechetStatistics.from_features(data[:20])
    rest, expected = whole.without(part), FrechetStatistics.from_features(data[20:])
    assert rest.count == 83
    np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, expected.covariance, rtol=1e-9)


def test_reference_statistics_of_adm_are_read(tmp_path):
    data, other = features(7, 90), features(8, 90)
    np.savez(tmp_path / "ref.npz", mu=data.mean(0), sigma=np.cov(data, rowvar=False))
    statistics = FrechetStatistics.from_adm_npz(tmp_path / "ref.npz")
    expected = frechet_distance(data, other)
    assert frechet_distance(statistics, FrechetStatistics.from_features(other)) == pytest.approx(expected, rel=1e-9)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 2 images"):
        frechet_distance(features(0, 1), features(0, 5))
    with pytest.raises(InputError, match="24 and 8 dimensions"):
        frechet_distance(
            FrechetStatistics.from_features(features(0, 9)), FrechetStatistics.from_features(features(0, 9, 8))
        )
    with pytest.raises(InputError, match="NaN"):
        FrechetStatistics(24).update(np.full((2, 24), np.nan))
    np.savez(tmp_path / "nan.npz", mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="not finite"):
        FrechetStatistics.from_adm_npz(tmp_path / "nan.npz")
    np.savez(tmp_path / "wrong.npz", mean=np.zeros(3))
    with pytest.raises(InputError, match="expected mu and sigma"):
        FrechetStatistics.from_adm_npz(tmp_path / "wrong.npz")
