"""Averages of the weights whose length is chosen afterwards."""

import numpy as np
import pytest
import torch

from tcae_diffusers.trainer.posthoc_ema import PowerFunctionEMA, exponent_of, reconstruct, snapshot_weights

STEPS, EVERY = 400, 50


def trajectory():
    """Weights that drift and jitter, as weights do."""
    generator = torch.Generator().manual_seed(0)
    jitter = torch.randn(STEPS, 8, generator=generator, dtype=torch.float64)
    drift = torch.linspace(0, 1, STEPS, dtype=torch.float64)[:, None] ** 0.5 * torch.arange(8)
    return drift + 0.3 * jitter


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_the_profile_has_the_width_it_is_named_after(sigma_rel):
    times = (np.arange(200_000) + 0.5) / 200_000
    profile = times ** exponent_of(sigma_rel)
    profile /= profile.sum()
    mean = (profile * times).sum()
    assert np.sqrt((profile * (times - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)


def test_the_running_average_is_the_weighted_sum_over_the_trajectory():
    weights = trajectory()
    ema = PowerFunctionEMA([torch.nn.Parameter(torch.full((8,), 99.0, dtype=torch.float64))], 0.1)
    for value in weights:
        ema.step([torch.nn.Parameter(value)])
    steps = np.arange(STEPS + 1, dtype=np.float64)
    cumulative = (steps / STEPS) ** (ema.gamma + 1)
    expected = torch.from_numpy(np.diff(cumulative)) @ weights
    # Nothing is left of the initial weights.
    torch.testing.assert_close(ema.averages[0], expected)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.1, 0.12])
@pytest.mark.parametrize("step", [None, 200])
def test_snapshots_combine_to_the_average_of_another_length(tmp_path, sigma_rel, step):
    weights = trajectory().float()
    kept = [PowerFunctionEMA([weights[0]], sigma) for sigma in (0.05, 0.1)]
    wanted = PowerFunctionEMA([weights[0]], sigma_rel)
    for number, value in enumerate(weights, start=1):
        for ema in (*kept, *([wanted] if number <= (step or STEPS) else [])):
            ema.step([value])
        if number % EVERY == 0:
            for ema in kept:
                ema.save_snapshot(tmp_path, ["weight"])
    found = reconstruct(tmp_path, sigma_rel, step)["weight"]
    error = (found - wanted.averages[0]).norm() / (weights[-1] - wanted.averages[0]).norm()
    # The fit is of profiles over continuous time, and the jitter here is worse than that of a real run.
    assert error < 0.03
    assert found.dtype == torch.float32


def test_a_snapshot_is_made_of_itself():
    snapshots = [(100, 0.05), (100, 0.1), (200, 0.05), (200, 0.1)]
    np.testing.assert_allclose(snapshot_weights(snapshots, 0.1, 200), [0, 0, 0, 1], atol=1e-9)


@pytest.mark.parametrize("steps", [[100], [100, 400], [200, 400], [100, 200, 300, 400]])
@pytest.mark.parametrize("sigmas", [(0.05,), (0.05, 0.1), (0.02, 0.25)])
@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.2])
def test_a_constant_averages_to_itself(tmp_path, steps, sigmas, sigma_rel):
    for sigma in sigmas:
        ema = PowerFunctionEMA([torch.ones(3)], sigma)
        for step in steps:
            ema.steps = step
            ema.save_snapshot(tmp_path, ["weight"])
    torch.testing.assert_close(reconstruct(tmp_path, sigma_rel)["weight"], torch.ones(3), rtol=0, atol=1e-6)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no snapshots of step 0 in"):
        reconstruct(tmp_path, 0.1)
    PowerFunctionEMA([torch.zeros(2)], 0.1).save_snapshot(tmp_path, ["weight"])
    with pytest.raises(ValueError, match=r"no snapshots of step 7 in .*; available steps: \[0\]"):
        reconstruct(tmp_path, 0.1, step=7)
    with pytest.raises(ValueError, match=r"sigma_rel 0.5 must be above 0 and below 0.28"):
        exponent_of(0.5)
