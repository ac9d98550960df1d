"""MIND against optimal assignments, against closed forms, and its interval against the scatter over draws."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tcae_diffusers.metrics.confidence import random_groups
from tcae_diffusers.metrics.reference import Reference
from tcae_diffusers.metrics.set_measures import SampleFeatures
from tcae_diffusers.metrics.set_measures.monge_distance import DIRECTIONS, monge_distances, random_directions

from .test_confidence import gaussian


def test_it_is_the_mean_cost_of_optimal_assignments_along_the_directions():
    samples, real = gaussian(0, 9, 0.5, 6), gaussian(1, 9, 0, 6)
    costs = []
    for direction in random_directions(6).numpy().astype(float):
        cost = np.square((samples @ direction)[:, None] - (real @ direction)[None])
        costs.append(cost[linear_sum_assignment(cost)].mean())
    assert len(costs) == DIRECTIONS
    assert monge_distances(samples, real)[0] == pytest.approx(3 * 6 * np.mean(costs), rel=1e-5)


def test_directions_are_uniform_on_the_sphere_and_do_not_change():
    directions = random_directions(16).numpy()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    assert np.abs(16 * np.cov(directions, rowvar=False) - np.eye(16)).max() < 0.3
    random_directions.cache_clear()
    np.testing.assert_array_equal(random_directions(16).numpy(), directions)


def test_moved_and_stretched_sets_have_known_distances():
    real = gaussian(2, 500, 0, 32)
    moved = np.zeros(32, dtype=np.float32)
    moved[:4] = 2.0
    # Along a direction the move is its projection, whose mean square is that of the move over the dimensions.
    assert monge_distances(real + moved, real)[0] == pytest.approx(3 * 16, rel=0.15)
    # Every value is a half further from zero: a quarter of the mean square.
    assert monge_distances(1.5 * real, real)[0] == pytest.approx(3 * 0.25 * np.square(real).sum(1).mean(), rel=0.02)
    assert monge_distances(real[::-1], real)[0] == pytest.approx(0, abs=1e-6)


def test_of_the_larger_set_a_random_part_is_compared():
    samples, real = gaussian(3, 60), np.concatenate([gaussian(4, 60), gaussian(5, 60, 50.0)])
    first, second = (monge_distances(samples, real, seed)[0] for seed in (0, 1))
    assert first != second and min(first, second) > 1000
    assert monge_distances(samples, real, 0)[0] == first
    assert monge_distances(real, samples, 0)[0] == pytest.approx(first)


def test_leaving_a_group_out_is_the_distance_of_the_rest():
    samples, real = gaussian(6, 47, 0.3), gaussian(7, 47)
    distance, without = monge_distances(samples, real, 0, 10)
    assert distance == pytest.approx(monge_distances(samples, real)[0]) and len(without) == 10
    kept = [part[random_groups(47, place) != 3] for place, part in enumerate((samples, real))]
    assert without[3] == pytest.approx(monge_distances(*kept)[0], rel=1e-6)


def test_the_interval_is_as_wide_as_the_figure_scatters_and_the_floor_is_of_real_images():
    draws = [(gaussian(2 * i, 100, 0.7), gaussian(2 * i + 1, 100)) for i in range(40)]
    figures = [Reference(real).compare(SampleFeatures(samples), None)[1]["MIND"] for samples, real in draws[:15]]
    values = [monge_distances(*draw)[0] for draw in draws]
    assert 1.2 * np.std(values) < np.median([figure.interval for figure in figures]) < 3.5 * np.std(values)
    assert figures[0].value == pytest.approx(values[0])
    sizes, floor = Reference(gaussian(99, 200)).floor(100, 100)
    assert sizes == (100, 100) and 0 < floor["MIND"].value < 0.2 * np.mean(values)
    few = Reference(draws[0][1][:15]).compare(SampleFeatures(draws[0][0][:15]), None)[1]
    assert few["MIND"].interval is None
