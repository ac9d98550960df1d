"""The Fréchet distance against an independent float64 computation and against torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from tcae_diffusers.evaluation.errors import EvaluationError
from tcae_diffusers.evaluation.frechet import FrechetStatistics, frechet_distance, frechet_distance_of_features


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
    assert frechet_distance_of_features(first, second) == pytest.approx(reference_distance(first, second), rel=1e-9)


def test_equals_torch_fidelity():
    first, second = (torch.from_numpy(features(seed, 200, 64)).float() for seed in (2, 3))
    statistics = [fid_features_to_statistics(part) for part in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance_of_features(first, second) == pytest.approx(theirs, rel=1e-6)


def test_fewer_images_than_features_agrees_with_the_covariance_path():
    first, second = features(4, 10, 50), features(5, 12, 50)
    direct = frechet_distance_of_features(first, second)
    through_covariance = frechet_distance(
        FrechetStatistics.from_features(first), FrechetStatistics.from_features(second)
    )
    assert direct == pytest.approx(through_covariance, rel=1e-6)
    # Singular covariances: the exact value for two sets that differ by a shift alone is the shift.
    assert frechet_distance_of_features(first, first + 2.0) == pytest.approx(4.0 * 50, rel=1e-9)


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


def test_reference_statistics_of_adm_are_read(tmp_path):
    data, other = features(7, 90), features(8, 90)
    np.savez(tmp_path / "ref.npz", mu=data.mean(0), sigma=np.cov(data, rowvar=False))
    statistics = FrechetStatistics.from_adm_npz(tmp_path / "ref.npz")
    expected = frechet_distance_of_features(data, other)
    assert frechet_distance(statistics, FrechetStatistics.from_features(other)) == pytest.approx(expected, rel=1e-9)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="at least 2 images"):
        frechet_distance_of_features(features(0, 1), features(0, 5))
    with pytest.raises(EvaluationError, match="24 and 8 dimensions"):
        frechet_distance(
            FrechetStatistics.from_features(features(0, 9)), FrechetStatistics.from_features(features(0, 9, 8))
        )
    with pytest.raises(EvaluationError, match="NaN"):
        FrechetStatistics(24).update(np.full((2, 24), np.nan))
    np.savez(tmp_path / "wrong.npz", mean=np.zeros(3))
    with pytest.raises(EvaluationError, match="expected mu and sigma"):
        FrechetStatistics.from_adm_npz(tmp_path / "wrong.npz")
