"""
REPA (Yu et al., arXiv 2410.06940): what a block of a diffusion transformer makes of a noisy latent is projected to the
tokens that another network makes of the clean image. iREPA (Singh et al., arXiv 2512.10794) projects with a
convolution and takes from each target what all its tokens have in common.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import nn

from ..errors import InputError
from ..models.target_tokens import resize_token_map


class TokenProjector(nn.Module):
    """
    Tokens of a transformer `(B, h * w, width)` to a map `(B, target_width, h, w)`.

    Args:
        width (`int`), target_width (`int`): Channels of the transformer's tokens and of the targets.
        kind (`str`): `"mlp"`, three layers with SiLU on each token (REPA), or `"conv"`, one 3x3 convolution (iREPA).
        hidden_width (`int`): Of the MLP (REPA: 2048).
    """

    def __init__(self, width: int, target_width: int, kind: str, hidden_width: int):
        super().__init__()
        self.layers: nn.Module = nn.Conv2d(width, target_width, kernel_size=3, padding=1)
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(width, hidden_width),
                nn.SiLU(),
                nn.Linear(hidden_width, hidden_width),
                nn.SiLU(),
                nn.Linear(hidden_width, target_width),
            )

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if isinstance(self.layers, nn.Conv2d):
            return self.layers(tokens.transpose(1, 2).unflatten(2, grid))
        return self.layers(tokens).transpose(1, 2).unflatten(2, grid)


class AlignedTransformer(nn.Module):
    """
    A transformer and the projector of one of its blocks under one `forward`, so that a distributed wrapper sees every
    parameter once. The transformer stays as it is: the projector is no part of it and is not saved with it.

    Args:
        transformer (`ModelMixin`): With `transformer_blocks` whose output is tokens `(B, N, width)`.
        layer (`int`): The block whose output is projected, counted from 1.
        projector ([`TokenProjector`]): For tokens of that width.
    """

    def __init__(self, transformer: ModelMixin, layer: int, projector: TokenProjector):
        super().__init__()
        self.transformer = transformer
        self.projector = projector
        # Apart from a training step the transformer draws samples, and gradient checkpointing runs blocks once more.
        self._is_listening = False
        self._tokens: torch.Tensor | None = None
        transformer.get_submodule("transformer_blocks")[layer - 1].register_forward_hook(self._keep)

    @torch.compiler.disable
    def _keep(self, block: nn.Module, inputs: tuple, tokens: torch.Tensor) -> None:
        if self._is_listening:
            self._tokens = tokens

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states, timestep, class_labels: Of the transformer.
            return_dict (`bool`): Ignored: always a tuple.

        Returns:
            The prediction `(B, C, h, w)`, and the projected tokens `(B, target_width, h / patch, w / patch)`.
        """
        patch_size = self.transformer.config.patch_size
        grid = (hidden_states.shape[-2] // patch_size, hidden_states.shape[-1] // patch_size)
        self._is_listening = True
        try:
            prediction = self.transformer(
                hidden_states, timestep=timestep, class_labels=class_labels, return_dict=False
            )[0]
        finally:
            self._is_listening = False
        tokens, self._tokens = self._tokens, None
        return prediction, self.projector(tokens, grid)


@dataclass(frozen=True)
class RepresentationAlignment:
    """
    Args:
        weight (`float`): Of the loss beside that of the objective (REPA: 0.5).
        layer (`int`): Block whose output is aligned, counted from 1.
        projector (`str`), projector_width (`int`): See [`TokenProjector`].
        spatial_normalization (`float`, *optional*): See [`normalize_spatially`]; not at all if `None`.
    """

    weight: float
    layer: int
    projector: str = "mlp"
    projector_width: int = 2048
    spatial_normalization: float | None = None

    def attach(self, transformer: ModelMixin, target_width: int) -> AlignedTransformer:
        """
        Raises:
            InputError: the transformer has no such block.
        """
        config: Any = transformer.config
        if not 1 <= self.layer <= config.num_layers:
            raise InputError(
                f"--repa_layer {self.layer} must be a block of the transformer, 1 to {config.num_layers}."
            )
        width = config.num_attention_heads * config.attention_head_dim
        projector = TokenProjector(width, target_width, self.projector, self.projector_width)
        return AlignedTransformer(transformer, self.layer, projector)

    def loss(self, projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        One minus the cosine between projected tokens and targets, averaged over positions: a scalar in [0, 2]. REPA
        leaves out the one, which changes no gradient.

        Args:
            projected (`torch.Tensor` of shape `(B, D, h, w)`): From [`AlignedTransformer`], fp32.
            targets (`torch.Tensor` of shape `(B, D, h', w')`): Any grid, see [`resize_token_map`], and float dtype.
        """
        grid = (projected.shape[-2], projected.shape[-1])
        targets = resize_token_map(targets.float(), grid)
        if self.spatial_normalization is not None:
            targets = normalize_spatially(targets, self.spatial_normalization)
        return 1 - F.cosine_similarity(projected.float(), targets, dim=1).mean()


def normalize_spatially(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """
    Tokens `(B, D, h, w)` less `share` of their mean over the positions of an image, over their deviation (iREPA,
    section 4; `share` is its gamma, 0.6 to 0.8 there).
    """
    mean = tokens.mean(dim=(2, 3), keepdim=True)
    deviation = tokens.std(dim=(2, 3), keepdim=True)
    return (tokens - share * mean) / (deviation + 1e-6)
