"""Averages of the weights whose length is chosen after training (Karras et al., "Analyzing and Improving the Training
Dynamics of Diffusion Models", 2024, section 3 and appendix C).

During training, two or more averages with power-function profiles are kept and saved now and then. Afterwards a least
squares fit combines those snapshots into the average of any other length. A length is `sigma_rel`, the standard
deviation of the profile over the training time: 0.05 is the last tenth or so of the run.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..data.whole_tensor import whole_tensor


def exponent_of(sigma_rel: float) -> float:
    """
    Exponent gamma of the profile `(t / T)^gamma` with relative deviation `sigma_rel` (their equation 127).

    Raises:
        ValueError: if no profile is that wide.
    """
    if not 0 < sigma_rel < 0.28:
        raise ValueError(f"sigma_rel {sigma_rel} must be above 0 and below 0.28; 0.05 to 0.15 is usual.")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerFunctionEMA:
    """
    Average of the weights with weight proportional to `t^gamma` at step `t`: it forgets in proportion to its age.

    Args:
        parameters (iterable of `torch.nn.Parameter`): What is averaged; kept in their dtype and on their device.
        sigma_rel (`float`): Length of the average.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], sigma_rel: float):
        self.sigma_rel = sigma_rel
        self.gamma = exponent_of(sigma_rel)
        self.steps = 0
        self.averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Call after each optimizer step. The first one replaces the initial weights."""
        self.steps += 1
        share = 1 - (1 - 1 / self.steps) ** (self.gamma + 1)
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in parameters], share)

    def state_dict(self) -> dict:
        return {"sigma_rel": self.sigma_rel, "steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.copy_(stored)

    def save_snapshot(self, folder: Path, names: Sequence[str], is_main_process: bool = True) -> Path:
        """
        Write `step-<n>_sigma-<s>.safetensors`, whole or not at all; `names` are those of the parameters. Where these
        are sharded, all ranks must call this; one writes.
        """
        path = folder / f"step-{self.steps:08d}_sigma-{self.sigma_rel:.15g}.safetensors"
        temporary = path.with_name(f".{path.name}")
        tensors = {}
        for name, average in zip(names, self.averages, strict=True):
            whole = whole_tensor(average)
            if is_main_process:
                tensors[name] = whole.cpu().contiguous()
        if not is_main_process:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"step": str(self.steps), "sigma_rel": repr(self.sigma_rel)})
        temporary.replace(path)
        return path


def _inner_products(
    steps_a: np.ndarray, gammas_a: np.ndarray, steps_b: np.ndarray, gammas_b: np.ndarray
) -> np.ndarray:
    """Inner products of profiles that end at the given steps (their algorithm 3)."""
    steps_a, gammas_a = steps_a[:, None], gammas_a[:, None]
    exponent = np.where(steps_a < steps_b, gammas_b, -gammas_a)
    profile = (gammas_a + 1) * (gammas_b + 1) * (steps_a / steps_b) ** exponent
    return profile / ((gammas_a + gammas_b + 1) * np.maximum(steps_a, steps_b))


def snapshot_weights(snapshots: Sequence[tuple[int, float]], sigma_rel: float, step: int) -> np.ndarray:
    """
    How much of each snapshot goes into the average of length `sigma_rel` as of `step`, float64; the shares sum to 1.

    Args:
        snapshots (sequence of `(step, sigma_rel)`): What there is, not later than `step`.
    """
    steps = np.array([float(at) for at, _ in snapshots])
    gammas = np.array([exponent_of(sigma) for _, sigma in snapshots])
    target = _inner_products(steps, gammas, np.array([float(step)]), np.array([exponent_of(sigma_rel)]))
    weights = np.linalg.solve(_inner_products(steps, gammas, steps, gammas), target)[:, 0]
    # The fit matches the shape of the profile, not its area. As in EDM2's code: a constant averages to itself.
    return weights / weights.sum()


def reconstruct(folder: str | Path, sigma_rel: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """
    The average of length `sigma_rel` from the snapshots in `folder`.

    Args:
        folder (`str` or `Path`): `OUTPUT_DIR/ema_snapshots` of a run of train_dit.
        sigma_rel (`float`): The length; best near or between those of the snapshots.
        step (`int`, *optional*): As of this step of the training, one with snapshots; the last if unset.

    Returns:
        `dict[str, torch.Tensor]`: fp32, for `transformer.load_state_dict`.

    Raises:
        ValueError: if there are no snapshots (at that step).
    """
    files = {}
    for path in sorted(Path(folder).glob("step-*.safetensors")):
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata()
        files[int(metadata["step"]), json.loads(metadata["sigma_rel"])] = path
    available = sorted({at for at, _ in files})
    step = step if step is not None else max(available, default=0)
    if step not in available:
        raise ValueError(f"no snapshots of step {step} in {folder}; available steps: {available or 'none'}.")
    snapshots = [key for key in files if key[0] <= step]
    combined: dict[str, torch.Tensor] = {}
    for key, weight in zip(snapshots, snapshot_weights(snapshots, sigma_rel, step).tolist(), strict=True):
        with safe_open(files[key], "pt") as stream:
            names = stream.keys()
            for name in names:
                # In float64: the weights have both signs and may be large.
                part = weight * stream.get_tensor(name).double()
                combined[name] = combined[name] + part if name in combined else part
    return {name: value.float() for name, value in combined.items()}
