"""Flow matching on latents: `x_t = (1 - sigma) * x_0 + sigma * noise`, the network predicts `noise - x_0`.

This is the convention of diffusers' `FlowMatchEulerDiscreteScheduler`, whose timesteps are `1000 * sigma`.
"""

import torch

TIMESTEP_DISTRIBUTIONS = ("lognormal", "uniform")


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


def add_flow_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """`x_t` for latents and noise `(B, C, h, w)` and noise levels `(B,)`."""
    sigmas = sigmas.view(-1, *[1] * (latents.ndim - 1))
    return (1 - sigmas) * latents + sigmas * noise


def flow_velocity(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network predicts: the direction from data to noise."""
    return noise - latents
