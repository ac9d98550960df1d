"""Latents that are alike where a frozen network finds images alike (VA-VAE, arXiv 2501.01423)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..models.frozen_network import FrozenNetworkHolder
from ..models.precision import without_autocast
from ..models.target_tokens import TokenNetwork, resize_token_map
from .adaptive_weight import adaptive_weight, adaptive_weight_from_squares, squared_gradients
from .latent_shaping import Decoded, Generators, LatentShaping, Shaped


def margin_cosine(projected: torch.Tensor, tokens: torch.Tensor, margin: float) -> torch.Tensor:
    """
    How far the cosine between latent and token of a position stays below `1 - margin`, averaged over positions
    (L_mcos of VA-VAE): a scalar in [0, 2 - margin].

    Args:
        projected, tokens (`torch.Tensor` of shape `(B, D, h, w)`): Latents in the space of the tokens, and tokens.
        margin (`float`): m1.
    """
    return F.relu(1 - margin - F.cosine_similarity(projected.float(), tokens.float(), dim=1)).mean()


def margin_distance(projected: torch.Tensor, tokens: torch.Tensor, margin: float) -> torch.Tensor:
    """
    How much further than `margin` the cosines between the positions of an image differ between latents and tokens,
    averaged over pairs of positions (L_mdms of VA-VAE): a scalar in [0, 2 - margin].

    Args:
        projected, tokens (`torch.Tensor` of shape `(B, D, h, w)`): As of [`margin_cosine`].
        margin (`float`): m2.
    """
    found, wanted = (F.normalize(each.float().flatten(2), dim=1) for each in (projected, tokens))
    # A product in half precision would lose what a margin is compared with.
    with without_autocast(found):
        difference = found.transpose(1, 2) @ found - wanted.transpose(1, 2) @ wanted
    return F.relu(difference.abs() - margin).mean()


class LatentAlignment(FrozenNetworkHolder, LatentShaping):
    """
    Beside the reconstruction, a linear projection of the latent is aligned with the tokens of a frozen network that
    sees the same image, `weight * w * (L_mcos + L_mdms)`. The adaptive weight `w` makes the gradient at the latent as
    large as that of the reconstruction loss; the paper takes both at the weight of the encoder's last layer, which not
    every autoencoder has. What is decoded stays as it is.

    As in the authors' release, both losses read the projected latent. Images are resized so that the network has as
    many tokens as the latent has positions, or tokens are averaged or interpolated.

    Args:
        network ([`TokenNetwork`]): Of the tokens.
        latent_channels (`int`): Of the latent.
        weight (`float`, defaults to 0.1): w_hyper (paper: 0.1).
        cosine_margin (`float`, defaults to 0.5): m1 (paper: 0.5).
        distance_margin (`float`, defaults to 0.25): m2 (paper: 0.25).

    Raises:
        InputError: a weight that is not positive, or a margin outside [0, 1].
    """

    frozen_network: TokenNetwork
    weighs_gradients = True

    def __init__(
        self,
        network: TokenNetwork,
        latent_channels: int,
        weight: float = 0.1,
        cosine_margin: float = 0.5,
        distance_margin: float = 0.25,
    ):
        super().__init__(network)
        if weight <= 0:
            raise InputError(f"alignment weight is {weight}; expected more than 0")
        for name, margin in (("cosine_margin", cosine_margin), ("distance_margin", distance_margin)):
            if not 0 <= margin <= 1:
                raise InputError(f"alignment {name} is {margin}; expected 0 to 1")
        self.weight = weight
        self.cosine_margin = cosine_margin
        self.distance_margin = distance_margin
        self.projection = nn.Conv2d(latent_channels, network.token_width, kernel_size=1, bias=False)
        # The adaptive weight of the step at hand, where it is not that of one forward pass.
        self.balance: torch.Tensor | None = None

    @property
    def description(self) -> str:
        return (
            f"alignment to {self.frozen_network.name} (weight {self.weight:g}, margins {self.cosine_margin:g} and"
            f" {self.distance_margin:g})"
        )

    def forward(self, shaped: Shaped, generators: Generators | None, step: int) -> Shaped:
        with torch.no_grad():
            tokens = self.frozen_network(shaped.target)
        projected = self.projection(shaped.latent)
        tokens = resize_token_map(tokens, (projected.shape[-2], projected.shape[-1]))
        losses = {
            "alignment_cosine": margin_cosine(projected, tokens, self.cosine_margin),
            "alignment_distance": margin_distance(projected, tokens, self.distance_margin),
        }
        return replace(shaped, losses={**shaped.losses, **losses})

    def begin_step(self, passes: Callable[[], Iterable[Decoded]], num_passes: int) -> None:
        self.balance = None
        if num_passes > 1:
            squares = [
                squared_gradients(each.reconstruction_loss, _sum(each.shaped), each.latent) for each in passes()
            ]
            self.balance = adaptive_weight_from_squares(sum(squares[1:], squares[0]), num_passes)

    def loss(self, decoded: Decoded) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, balance = _sum(decoded.shaped), self.balance
        if balance is None:
            balance = adaptive_weight(decoded.reconstruction_loss, loss, decoded.latent)
        return self.weight * balance * loss, {"train/alignment_weight": balance}


def _sum(shaped: Shaped) -> torch.Tensor:
    return shaped.losses["alignment_cosine"] + shaped.losses["alignment_distance"]
