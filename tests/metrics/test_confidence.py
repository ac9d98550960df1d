"""Intervals cover what they promise; the extrapolated distance is nearer to the truth; density, coverage by hand."""

import numpy as np
import pytest

from tcae_diffusers.metrics.confidence import random_groups, share_interval
from tcae_diffusers.metrics.frechet import FrechetStatistics, frechet_distance
from tcae_diffusers.metrics.frechet_interval import frechet_interval, leave_out_distances, paired_frechet_interval
from tcae_diffusers.metrics.reference import Reference
from tcae_diffusers.metrics.set_measures import SampleFeatures
from tcae_diffusers.metrics.set_measures.density_coverage import density_coverage
from tcae_diffusers.metrics.set_measures.frechet_extrapolation import frechet_at_infinity
from tcae_diffusers.metrics.set_measures.inception_score import inception_score_interval
from tcae_diffusers.metrics.set_measures.kernel_distance import kid, kid_interval


def gaussian(seed, count, shift=0.0, dimensions=8):
    return np.random.default_rng(seed).normal(loc=shift, size=(count, dimensions)).astype(np.float32)


@pytest.mark.parametrize("dimensions", [8, 90])
def test_the_interval_of_a_frechet_distance_covers_its_expectation(dimensions):
    # What the distance of 80 images is on average, and whether the interval of one draw holds it.
    shift = 1.0 / np.sqrt(dimensions / 8)
    draws = [(gaussian(2 * i, 80, 0, dimensions), gaussian(2 * i + 1, 80, shift, dimensions)) for i in range(100)]
    values = [frechet_distance(*pair) for pair in draws]
    intervals = [frechet_interval(*pair) for pair in draws[:40]]
    covered = np.mean([abs(v - np.mean(values)) <= i for v, i in zip(values, intervals, strict=False)])
    assert covered >= 0.85
    # It is no wider than it must be: near 1.96 standard deviations (2.26 for the ten groups).
    assert 1.5 * np.std(values) < np.median(intervals) < 3.5 * np.std(values)


@pytest.mark.parametrize("dimensions", [8, 90])
def test_the_interval_of_a_difference_between_pairs_covers_it_and_is_narrower_than_two_intervals(dimensions):
    def paired(first, second, real):
        return paired_frechet_interval(leave_out_distances(first, real), leave_out_distances(second, real))

    shift = 1.0 / np.sqrt(dimensions / 8)
    draws = []
    for i in range(60):
        first = gaussian(3 * i, 80, 0, dimensions)
        # The same images, a little worse each.
        second = first * 1.1 + 0.1 * gaussian(3 * i + 1, 80, 0, dimensions)
        draws.append((first, second, gaussian(3 * i + 2, 80, shift, dimensions)))
    values = [frechet_distance(first, real) - frechet_distance(second, real) for first, second, real in draws]
    intervals = [paired(*draw) for draw in draws[:30]]
    covered = np.mean([abs(v - np.mean(values)) <= i for v, i in zip(values, intervals, strict=False)])
    assert covered >= 0.85
    assert 1.5 * np.std(values) < np.median(intervals) < 4 * np.std(values)
    apart = [np.hypot(frechet_interval(a, real), frechet_interval(b, real)) for a, b, real in draws[:30]]
    assert np.median(intervals) < np.median(apart) / 2
    assert paired(first, first, draws[0][2]) == 0
    assert paired(first[:19], second[:19], draws[0][2]) is None


def test_intervals_of_kid_and_inception_score_are_as_wide_as_the_figures_scatter():
    pairs = [(gaussian(2 * i, 100), gaussian(2 * i + 1, 100, 0.7)) for i in range(40)]
    values = [kid(*pair, subsets=20).value for pair in pairs]
    assert 1.0 * np.std(values) < np.median([kid_interval(*pair) for pair in pairs]) < 4.5 * np.std(values)

    def score(logits):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())

    sets = [2 * gaussian(i, 150) for i in range(60)]
    scatter = np.std([score(part) for part in sets])
    assert 1.4 * scatter < np.median([inception_score_interval(part) for part in sets]) < 3.5 * scatter


def test_groups_are_random_so_that_labels_in_turn_do_not_align_with_them():
    groups = random_groups(1000)
    assert np.bincount(groups).tolist() == [100] * 10
    assert len(np.unique(groups[::10])) == 10
    assert np.array_equal(groups, random_groups(1000))


def test_the_distance_at_infinity_is_nearer_to_the_truth_than_the_distance():
    truth = 16 * 0.3**2
    errors = []
    for seed in range(12):
        samples, real = gaussian(2 * seed, 200, 0.3, 16), gaussian(2 * seed + 1, 400, 0.0, 16)
        figure = frechet_at_infinity(samples, real)
        errors.append((frechet_distance(samples, real[:200]) - truth, figure.value - truth))
        assert figure.details["sizes"][0] == 50
        assert figure.details["sizes"][-1] == 200
        assert figure.interval > 0
    plain, extrapolated = np.mean(errors, axis=0)
    assert plain > 0.5
    assert abs(extrapolated) < 0.25 * plain


def test_fixed_statistics_are_extrapolated_on_the_samples_side():
    truth = 8 * 0.25
    statistics = FrechetStatistics(8)
    statistics.count, statistics._scatter = 2, np.eye(8)
    samples = gaussian(3, 400, 0.5)
    figures = Reference(None, statistics).compare(SampleFeatures(samples), None)[1]
    assert figures["FID"].interval > 0
    assert figures["FID-inf"].value == pytest.approx(truth, abs=figures["FID-inf"].interval)


def test_too_few_images_have_no_interval_and_no_extrapolation():
    figures = Reference(gaussian(0, 15)).compare(SampleFeatures(gaussian(1, 15)), None)[1]
    assert figures["FID"].interval is None
    assert figures["KID"].interval is None
    assert "FID-inf" not in figures


def test_none_of_a_few_images_is_not_none_of_all():
    assert share_interval(0.0, 20) == pytest.approx(share_interval(1.0, 20))
    assert share_interval(0.0, 20) > 0.05
    assert share_interval(0.3, 10_000) == pytest.approx(1.96 * np.sqrt(0.3 * 0.7 / 10_000), rel=1e-3)


def test_density_and_coverage_equal_the_definition():
    samples, real = gaussian(5, 40, 0.4), gaussian(6, 30)
    distance = np.sqrt(np.square(real[:, None].astype(float) - real[None]).sum(-1))
    radii = np.sort(distance, axis=1)[:, 5]
    across = np.sqrt(np.square(samples[:, None].astype(float) - real[None]).sum(-1))
    density, covered = density_coverage(samples, real, chunk=7)
    assert density.mean() == pytest.approx((across < radii).sum() / (5 * 40))
    assert covered.tolist() == (across.min(axis=0) < radii).tolist()
    same = Reference(gaussian(7, 300)).compare(SampleFeatures(gaussian(8, 300)), None)[1]
    assert same["density"].value == pytest.approx(1.0, abs=0.15)
    assert same["coverage"].value > 0.9
