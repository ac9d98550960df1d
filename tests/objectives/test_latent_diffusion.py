"""Flow matching and noise prediction on latents: what is added, what is predicted, how it is weighted."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from tcae_diffusers.objectives.flow_matching import (
    FlowMatchingObjective,
    direction_loss,
    draw_sigmas,
    resolution_shift,
)
from tcae_diffusers.objectives.noise_prediction import NoisePredictionObjective, alphas_cumprod, min_snr_weights

LATENTS, NOISE = torch.randn(2, 64, 4, 3, 2, generator=torch.Generator().manual_seed(0))
OBJECTIVES = {
    "flow": FlowMatchingObjective(shift=2.0, direction_weight=1.0),
    "epsilon": NoisePredictionObjective("epsilon", min_snr_gamma=5.0),
    "v_prediction": NoisePredictionObjective("v_prediction"),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_noise_and_target_are_those_of_the_saved_scheduler(name):
    objective = OBJECTIVES[name]
    scheduler = objective.build_scheduler()
    levels = objective.draw_levels(64, generator(), "cpu")
    seen = {}

    def exact(noisy, timestep):
        seen["noisy"], seen["timestep"] = noisy, timestep
        if name == "flow":
            return NOISE - LATENTS
        return NOISE if name == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, levels)

    if name == "v_prediction":
        scheduler = DDPMScheduler.from_config(scheduler.config)
    losses = objective.losses(exact, LATENTS, NOISE, levels)
    assert losses["loss"].abs() < 1e-5
    if name == "flow":
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.config.shift == 2.0
        sigmas = levels.view(-1, 1, 1, 1)
        torch.testing.assert_close(seen["noisy"], sigmas * NOISE + (1 - sigmas) * LATENTS)
        torch.testing.assert_close(seen["timestep"], 1000 * levels)
        assert set(losses) == {"loss", "velocity_loss", "direction_loss"}
    else:
        assert scheduler.config.prediction_type == name and not scheduler.config.clip_sample
        torch.testing.assert_close(seen["noisy"], scheduler.add_noise(LATENTS, NOISE, levels))
        assert torch.equal(seen["timestep"], levels) and levels.dtype == torch.int64


def test_one_step_of_the_samplers_undoes_the_noise_of_training():
    for name in ("epsilon", "v_prediction"):
        objective = OBJECTIVES[name]
        scheduler = objective.build_scheduler()
        scheduler.set_timesteps(1)
        timestep = scheduler.timesteps[0]
        # One trailing step starts at the last timestep, which is almost noise alone.
        assert timestep == 999
        share = alphas_cumprod()[timestep].double()
        noisy = (share.sqrt() * LATENTS + (1 - share).sqrt() * NOISE).float()
        output = NOISE if name == "epsilon" else (share.sqrt() * NOISE - (1 - share).sqrt() * LATENTS).float()
        torch.testing.assert_close(scheduler.step(output, timestep, noisy).prev_sample, LATENTS, atol=1e-3, rtol=1e-3)
    assert DDIMScheduler(beta_schedule="linear").alphas_cumprod.equal(alphas_cumprod())


def test_min_snr_weighs_the_same_error_on_the_clean_latent_alike():
    """Hang et al.: whatever is predicted, the loss is min(SNR, gamma) times the squared error on the clean latent."""
    share = alphas_cumprod().double()[::50]
    snr = share / (1 - share)
    error = 0.1
    expected = snr.clamp(max=5) * error**2
    # An error on x_0 at a given x_t, seen as one on epsilon and on v.
    epsilon_error, v_error = error * snr.sqrt(), error / (1 - share).sqrt()
    torch.testing.assert_close(min_snr_weights(share, "epsilon", 5.0) * epsilon_error**2, expected)
    torch.testing.assert_close(min_snr_weights(share, "v_prediction", 5.0) * v_error**2, expected)
    assert torch.equal(min_snr_weights(share, "epsilon", None), torch.ones_like(share))


def test_weights_are_applied_per_sample():
    objective = NoisePredictionObjective("epsilon", min_snr_gamma=5.0)
    levels = torch.tensor([0, 999]).repeat(32)
    loss = objective.losses(lambda noisy, timestep: NOISE + 1.0, LATENTS, NOISE, levels)["loss"]
    torch.testing.assert_close(loss, min_snr_weights(alphas_cumprod()[levels], "epsilon", 5.0).mean())


@pytest.mark.parametrize(("distribution", "median"), [("lognormal", 0.5), ("uniform", 0.5)])
def test_noise_levels_follow_their_distribution_and_shift(distribution, median):
    plain = draw_sigmas(20_000, distribution, generator())
    assert plain.min() >= 0 and plain.max() < 1
    assert abs(plain.median() - median) < 0.01
    # Of a logit-normal, 68 % lie within one deviation of the logit.
    inside = ((plain > 0.2689) & (plain < 0.7311)).float().mean()
    assert abs(inside - (0.6827 if distribution == "lognormal" else 0.4621)) < 0.015
    shifted = draw_sigmas(20_000, distribution, generator(), shift=3.0)
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    with pytest.raises(ValueError, match="shift 0 must be positive"):
        draw_sigmas(1, distribution, generator(), shift=0)
    with pytest.raises(ValueError, match=r"'cosine' must be one of lognormal, uniform"):
        draw_sigmas(1, "cosine", generator())


def test_larger_latents_are_shifted_by_the_root_of_their_size():
    assert resolution_shift((16, 16, 16), 4096) == 1.0
    assert resolution_shift((128, 16, 16), 4096) == pytest.approx(8**0.5)


def test_a_predicted_sample_is_judged_by_the_velocity_that_it_gives():
    """Li and He: an error of the sample over the noise level is one of the velocity; that counts as 0.05 at least."""
    objective = FlowMatchingObjective(prediction="sample")
    levels = torch.tensor([0.0, 0.001, 0.05, 0.3, 0.7, 1.0]).repeat(11)[:64]
    exact = objective.losses(lambda noisy, timestep: LATENTS, LATENTS, NOISE, levels)
    assert exact["loss"].abs() < 1e-5
    error = 0.1 * torch.ones_like(LATENTS)
    found = objective.losses(lambda noisy, timestep: LATENTS + error, LATENTS, NOISE, levels)["loss"]
    torch.testing.assert_close(found, (0.1 / levels.clamp(min=0.05)).square().mean())
    objective = FlowMatchingObjective(prediction="sample", direction_weight=1.0)
    # Away from the bound it is the loss of a transformer that predicts that velocity.
    levels = torch.linspace(0.06, 1, 64)
    sigmas = levels.view(-1, 1, 1, 1)
    velocity = objective.losses(lambda noisy, timestep: LATENTS + error, LATENTS, NOISE, levels)
    plain = FlowMatchingObjective(direction_weight=1.0).losses(
        lambda noisy, timestep: (noisy - LATENTS - error) / sigmas, LATENTS, NOISE, levels
    )
    for name, value in plain.items():
        torch.testing.assert_close(velocity[name], value)
    assert (objective.prediction_type, FlowMatchingObjective().prediction_type) == ("flow_sample", "flow_prediction")


def test_direction_loss_reads_direction_only():
    velocity = NOISE - LATENTS
    assert direction_loss(3.0 * velocity, velocity).abs() < 1e-6
    torch.testing.assert_close(direction_loss(-velocity, velocity), torch.tensor(2.0))
    turned = torch.stack([-velocity[:, 1], velocity[:, 0], -velocity[:, 3], velocity[:, 2]], dim=1)
    torch.testing.assert_close(direction_loss(turned, velocity), torch.tensor(1.0))


def test_bad_objectives_are_named():
    with pytest.raises(ValueError, match=r"'sample' must be one of epsilon, v_prediction"):
        NoisePredictionObjective("sample")
    with pytest.raises(ValueError, match=r"prediction 'x' must be one of velocity, sample"):
        FlowMatchingObjective(prediction="x")
    with pytest.raises(ValueError, match=r"min_snr_gamma 0 must be positive"):
        NoisePredictionObjective("epsilon", min_snr_gamma=0)
