"""Flow matching on latents: `x_t = (1 - sigma) * x_0 + sigma * noise`, the network predicts `noise - x_0`, or `x_0`.

This is the convention of diffusers' `FlowMatchEulerDiscreteScheduler`, whose timesteps are `1000 * sigma`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

TIMESTEP_DISTRIBUTIONS = ("lognormal", "uniform")
FLOW_PREDICTIONS = ("velocity", "sample")
# Below, an error of the predicted sample counts as if there were this much noise (the release of arXiv 2511.13720).
SMALLEST_SIGMA = 0.05


def draw_sigmas(
    num: int, distribution: str, generator: torch.Generator, shift: float = 1.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """
    Noise levels of a training batch.

    Args:
        num (`int`): How many.
        distribution (`str`): `"lognormal"`, the sigmoid of a standard normal (SD3, section 3.1; LightningDiT), or
            `"uniform"`.
        generator (`torch.Generator`): On `device`.
        shift (`float`, defaults to 1.0): `sigma -> shift * sigma / (1 + (shift - 1) * sigma)`; above 1 moves training
            towards noise, which larger latents need (SD3, section 5.3.2).
        device (`torch.device` or `str`, defaults to `"cpu"`).

    Returns:
        `torch.Tensor` of shape `(num,)`, fp32, in (0, 1).

    Raises:
        ValueError: unknown distribution, or a shift that is not positive.
    """
    if shift <= 0:
        raise ValueError(f"shift {shift} must be positive.")
    if distribution == "lognormal":
        sigmas = torch.sigmoid(torch.randn(num, generator=generator, device=device))
    elif distribution == "uniform":
        sigmas = torch.rand(num, generator=generator, device=device)
    else:
        raise ValueError(f"distribution {distribution!r} must be one of {', '.join(TIMESTEP_DISTRIBUTIONS)}.")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def resolution_shift(latent_shape: tuple[int, int, int], base_values: int) -> float:
    """
    Shift that gives a latent of many values the signal-to-noise ratio of one of `base_values` values: the square root
    of their ratio (SD3, equation 23; RAE counts channels too, with 4096 as base).

    Args:
        latent_shape (`tuple[int, int, int]`): `(C, h, w)`.
        base_values (`int`): Values of a latent that needs no shift.
    """
    return math.sqrt(math.prod(latent_shape) / base_values)


def add_flow_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """`x_t` for latents and noise `(B, C, h, w)` and noise levels `(B,)`."""
    sigmas = sigmas.view(-1, *[1] * (latents.ndim - 1))
    return (1 - sigmas) * latents + sigmas * noise


def flow_velocity(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network predicts: the direction from data to noise."""
    return noise - latents


def velocity_of_sample(noisy: torch.Tensor, sample: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """
    The velocity that leads from the clean latents `sample` through `noisy`, both `(B, C, h, w)`, for noise levels
    `(B,)`; it is shortened below [`SMALLEST_SIGMA`], where it would have no bound.
    """
    sigmas = sigmas.clamp(min=SMALLEST_SIGMA).view(-1, *[1] * (noisy.ndim - 1))
    return (noisy - sample) / sigmas


def direction_loss(prediction: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between the channels of predicted and true velocity, both `(B, C, h, w)`; a scalar in
    [0, 2] (LightningDiT, section 3.3)."""
    return 1 - F.cosine_similarity(prediction, velocity, dim=1).mean()


@dataclass(frozen=True)
class FlowMatchingObjective:
    """
    Args:
        distribution (`str`, defaults to `"lognormal"`), shift (`float`, defaults to 1.0): See [`draw_sigmas`].
        direction_weight (`float`, defaults to 0.0): Weight of [`direction_loss`] beside the mean squared error.
        prediction (`str`, defaults to `"velocity"`): What the network predicts: the velocity, or with `"sample"` the
            clean latent (Li and He, arXiv 2511.13720). The loss is that of the velocity in both cases.

    Raises:
        ValueError: an unknown prediction.
    """

    distribution: str = "lognormal"
    shift: float = 1.0
    direction_weight: float = 0.0
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        if self.prediction not in FLOW_PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} must be one of {', '.join(FLOW_PREDICTIONS)}.")

    @property
    def prediction_type(self) -> str:
        """As [`~pipelines.TCDiTPipeline`] calls it."""
        return "flow_prediction" if self.prediction == "velocity" else "flow_sample"

    def draw_levels(self, num: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
        """Noise levels of `num` samples, fp32 `(num,)`."""
        return draw_sigmas(num, self.distribution, generator, self.shift, device)

    def losses(
        self, predict: Callable, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            predict (`Callable`): `(noisy (B, C, h, w), timestep (B,))` to the network's output, in any float dtype.
            latents, noise (`torch.Tensor` of shape `(B, C, h, w)`): Of unit variance, fp32.
            levels (`torch.Tensor` of shape `(B,)`): From [`draw_levels`].

        Returns:
            `dict[str, torch.Tensor]`: scalars; `loss` is to be minimised, the others are its parts.
        """
        noisy = add_flow_noise(latents, noise, levels)
        prediction, velocity = predict(noisy, 1000 * levels).float(), flow_velocity(latents, noise)
        if self.prediction == "sample":
            prediction, velocity = (velocity_of_sample(noisy, each, levels) for each in (prediction, latents))
        squared = (prediction - velocity).square().mean()
        if not self.direction_weight:
            return {"loss": squared}
        direction = direction_loss(prediction, velocity)
        return {
            "loss": squared + self.direction_weight * direction,
            "velocity_loss": squared,
            "direction_loss": direction,
        }

    def build_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The sampler that fits: steps are shifted as the training was (SD3, section 5.3.2)."""
        return FlowMatchEulerDiscreteScheduler(shift=self.shift)
