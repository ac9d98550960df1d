"""Reconstruction loss: L_rec without its adversarial term (paper, section 3)."""

from dataclasses import dataclass

import torch
from torch import nn

from ..models.frozen_network import FrozenNetwork

PIXEL_LOSSES = ("l1", "charbonnier", "mse")


def pixel_distance(kind: str, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Mean distance of two image batches over all pixels and channels, in fp32.

    Args:
        kind (`str`): `"l1"`, `"mse"`, or `"charbonnier"`, `sqrt(d^2 + 1e-6)`, which is L1 with a smooth bottom.
        sample, target (`torch.Tensor` of shape `(B, 3, H, W)`): in [-1, 1].
    """
    difference = sample.float() - target.float()
    if kind == "l1":
        return difference.abs().mean()
    if kind == "mse":
        return difference.square().mean()
    if kind == "charbonnier":
        return (difference.square() + 1e-6).sqrt().mean()
    raise ValueError(f"pixel loss is {kind!r}; expected one of {', '.join(PIXEL_LOSSES)}")


@dataclass
class ReconstructionOutput:
    """
    Output of [`ReconstructionLoss`], fp32 tensors without dimensions.

    Args:
        loss: weighted sum.
        terms: each term that is on, without its weight: the name of the pixel loss, `mse`, the perceptual loss's name.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


class ReconstructionLoss(nn.Module):
    """
    `pixel_weight * pixel + mse_weight * MSE + perceptual_weight * perceptual` (paper, section 3: L1 + lambda_p *
    L_LPIPS).

    Args:
        pixel_loss (`str`, defaults to `"l1"`): `"l1"`, `"charbonnier"` or `"mse"`.
        pixel_weight (`float`, defaults to 1.0).
        mse_weight (`float`, defaults to 0.0):
            An MSE beside an L1 helps short runs: the first thing that L1 alone learns is the median, often all white.
        perceptual (`FrozenNetwork`, *optional*): from [`perceptual.build_perceptual_loss`].
        perceptual_weight (`float`, defaults to 1.0): lambda_p (RAE).

    Raises:
        ValueError: unknown pixel loss, a negative weight, or no term at all.
    """

    def __init__(
        self,
        pixel_loss: str = "l1",
        pixel_weight: float = 1.0,
        mse_weight: float = 0.0,
        perceptual: FrozenNetwork | None = None,
        perceptual_weight: float = 1.0,
    ):
        super().__init__()
        if pixel_loss not in PIXEL_LOSSES:
            raise ValueError(f"pixel_loss is {pixel_loss!r}; expected one of {', '.join(PIXEL_LOSSES)}")
        if pixel_loss == "mse" and mse_weight:
            raise ValueError('pixel_loss is "mse" and mse_weight is not 0; set pixel_weight only')
        weights = {"pixel_weight": pixel_weight, "mse_weight": mse_weight, "perceptual_weight": perceptual_weight}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name} is {weight}; expected 0 or more")
        self.perceptual = perceptual if perceptual_weight else None
        self.weights = {pixel_loss: pixel_weight, "mse": mse_weight} if pixel_loss != "mse" else {"mse": pixel_weight}
        self.weights = {name: weight for name, weight in self.weights.items() if weight}
        if self.perceptual is not None:
            self.weights[self.perceptual.name] = perceptual_weight
        if not self.weights:
            raise ValueError("all reconstruction weights are 0; set pixel_weight, mse_weight or perceptual_weight")

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> ReconstructionOutput:
        """
        Args:
            sample (`torch.Tensor` of shape `(B, 3, H, W)`): the decoder's output, about [-1, 1], not clamped.
            target (`torch.Tensor` of shape `(B, 3, H, W)`): the image in [-1, 1].
        """
        if sample.shape != target.shape:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, target {tuple(target.shape)}; expected the same"
            )
        terms = {name: pixel_distance(name, sample, target) for name in self.weights if name in PIXEL_LOSSES}
        if self.perceptual is not None:
            terms[self.perceptual.name] = self.perceptual(sample, target)
        weighted = [self.weights[name] * term for name, term in terms.items()]
        return ReconstructionOutput(sum(weighted, start=sample.new_zeros(())), terms)

    @property
    def description(self) -> str:
        """The terms in words for reports and logs, such as `1 l1 + 1 lpips-vgg` or `1 l1, without a perceptual
        loss`."""
        terms = " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())
        return terms if self.perceptual is not None else f"{terms}, without a perceptual loss"
