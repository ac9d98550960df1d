"""Variance-preserving diffusion on latents: `x_t = sqrt(a_t) * x_0 + sqrt(1 - a_t) * noise`, epsilon or v prediction.

The noise schedule is DDPM's linear one over 1000 steps, DiT's, so that diffusers' DDPM, DDIM and DPM-Solver++ and the
stock `DiTPipeline` sample from the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDIMScheduler

PREDICTION_TYPES = ("epsilon", "v_prediction")


@cache
def alphas_cumprod() -> torch.Tensor:
    """`a_t` for the 1000 timesteps, fp32 on the CPU."""
    return DDIMScheduler(beta_schedule="linear").alphas_cumprod


def min_snr_weights(signal_share: torch.Tensor, prediction_type: str, gamma: float | None) -> torch.Tensor:
    """
    Weights of Hang et al. (2023), section 3.4: the loss on the clean latent weighted by `min(SNR, gamma)`, expressed
    for what the network predicts.

    Args:
        signal_share (`torch.Tensor`): `a_t`, any shape; the signal-to-noise ratio is `a_t / (1 - a_t)`.
        prediction_type (`str`): `"epsilon"` or `"v_prediction"`.
        gamma (`float`, *optional*): 5 in the paper; `None` weighs all timesteps alike.

    Returns:
        `torch.Tensor`: of the same shape.
    """
    if gamma is None:
        return torch.ones_like(signal_share)
    snr = signal_share / (1 - signal_share)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


@dataclass(frozen=True)
class NoisePredictionObjective:
    """
    Args:
        prediction_type (`str`): `"epsilon"`, the noise, or `"v_prediction"`, `sqrt(a) * noise - sqrt(1 - a) * x_0`
            (Salimans and Ho, 2022).
        min_snr_gamma (`float`, *optional*): See [`min_snr_weights`].

    Raises:
        ValueError: an unknown prediction type, or a gamma that is not positive.
    """

    prediction_type: str
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {self.prediction_type!r} must be one of {', '.join(PREDICTION_TYPES)}.")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma {self.min_snr_gamma} must be positive; omit it for equal weights.")

    def draw_levels(self, num: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
        """Timesteps of `num` samples, uniform in 0 to 999, int64 `(num,)`."""
        return torch.randint(len(alphas_cumprod()), (num,), generator=generator, device=device)

    def losses(
        self, predict: Callable, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Same contract as [`FlowMatchingObjective.losses`], with timesteps for levels."""
        share = alphas_cumprod().to(latents.device, non_blocking=True)[levels]
        signal, sigma = (part.view(-1, 1, 1, 1) for part in (share.sqrt(), (1 - share).sqrt()))
        prediction = predict(signal * latents + sigma * noise, levels).float()
        target = noise if self.prediction_type == "epsilon" else signal * noise - sigma * latents
        squared = (prediction - target).square().flatten(1).mean(dim=1)
        weights = min_snr_weights(share, self.prediction_type, self.min_snr_gamma)
        return {"loss": (weights * squared).mean()}

    def build_scheduler(self) -> DDIMScheduler:
        """The sampler that fits; other schedulers take over with `from_config(pipeline.scheduler.config)`.

        Trailing spacing starts at the last timestep, which is noise, also in few steps (Lin et al., 2024). Nothing is
        clipped: latents of unit variance exceed [-1, 1].
        """
        return DDIMScheduler(
            beta_schedule="linear",
            prediction_type=self.prediction_type,
            clip_sample=False,
            timestep_spacing="trailing",
        )
