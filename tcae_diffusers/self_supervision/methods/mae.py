"""
Masked autoencoding of the tokens: most patches are hidden, and a light decoder regresses their pixels from what the
encoder makes of the rest (MAE, He et al., 2022). Hidden patches stay in the sequence as a mask token (SimMIM, Xie et
al., 2022), since the staged bottleneck merges neighbours and needs the whole grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...charts import Chart
from ...data.images.pixel_range import to_signed
from ...errors import InputError
from ...models.adapters import AutoencoderAdapter
from ..arguments import SelfSupervisionArguments
from ..method import SelfSupervision, StudentOutput


@dataclass
class Options:
    """
    What `--ssl_options` takes for this method.

    Args:
        mask_ratio (`float`, defaults to 0.75): Share of hidden groups of patches (MAE).
        decoder_layers (`int`, defaults to 1): Transformer layers between the tokens and the regression.
        decoder_heads (`int`, defaults to 4): Attention heads of these layers.
        normalize_pixels (`bool`, defaults to `True`):
            Regress pixels of zero mean and unit deviation within each group, which MAE found to make better features.
    """

    mask_ratio: float = 0.75
    decoder_layers: int = 1
    decoder_heads: int = 4
    normalize_pixels: bool = True


@dataclass
class HiddenGroups:
    """
    Args:
        on_patches (`torch.BoolTensor` of shape `(B, H / p, W / p)`): Hidden patches, for the encoder.
        on_tokens (`torch.BoolTensor` of shape `(B, N)`): The same on the grid of the last tokens, flattened.
        targets (`torch.Tensor` of shape `(B, N, 3 * side**2)`): Pixels that the tokens stand for.
    """

    on_patches: torch.Tensor
    on_tokens: torch.Tensor
    targets: torch.Tensor


class PixelRegression(nn.Module):
    """Mask token, decoder and regression of the pixels behind each of the last tokens."""

    def __init__(self, token_width: int, token_pixels: int, options: Options):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(token_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    token_width,
                    options.decoder_heads,
                    dim_feedforward=4 * token_width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(options.decoder_layers)
            ),
            nn.LayerNorm(token_width),
            nn.Linear(token_width, 3 * token_pixels**2),
        )

    def forward(
        self, adapter: AutoencoderAdapter, images: torch.Tensor, views: HiddenGroups
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the encoder says of the whole images, and `pixels` `(B, N, 3 * side**2)` regressed from hidden ones."""
        mask = torch.cat([torch.zeros_like(views.on_patches), views.on_patches])
        features = adapter.token_encoder()(torch.cat([images, images]), mask, self.mask_token)
        count = images.shape[0]
        return features.latent[:count], {"pixels": self.decoder(features.last[count:])}


class MaskedAutoencoding(SelfSupervision):
    """
    See the module.

    Raises:
        InputError: an autoencoder whose encoder cannot hide patches, or options that make no sense.
    """

    charts = (
        Chart(
            "Masked autoencoding",
            {"train/loss_mae": "hidden pixels"},
            "Squared error of the pixels behind hidden tokens; with normalised pixels, predicting the mean colour "
            "of each group gives 1.",
        ),
    )

    def __init__(self, adapter: AutoencoderAdapter, options: Options):
        if not adapter.hides_patches:
            raise InputError(
                f"--ssl mae hides patches from the encoder, which {adapter.class_name} does not support; pass --ssl"
                " none."
            )
        self.options = options
        if not 0 < self.options.mask_ratio < 1:
            raise InputError(f"--ssl_options mask_ratio {self.options.mask_ratio} must be above 0 and below 1.")
        heads = self.options.decoder_heads
        if self.options.decoder_layers < 0 or heads < 1 or adapter.token_width % heads:
            raise InputError(
                f"--ssl_options decoder_layers {self.options.decoder_layers} must be 0 or more, and decoder_heads"
                f" {heads} must be 1 or more and divide the tokens' {adapter.token_width} channels."
            )
        self.patch, self.side = adapter.token_pixels("first_stage"), adapter.token_pixels("last")
        super().__init__(PixelRegression(adapter.token_width, self.side, self.options))

    @property
    def description(self) -> str:
        return f"mae, {self.options.mask_ratio:g} of the patches hidden"

    @property
    def identity(self) -> dict:
        return {"mae": vars(self.options)}

    def prepare(
        self, batch: dict[str, torch.Tensor], generators: list[torch.Generator], device: torch.device
    ) -> HiddenGroups:
        images = batch["pixel_values"]
        rows, columns = (length // self.side for length in images.shape[-2:])
        if rows * columns < 2:
            height, width = images.shape[-2:]
            raise InputError(
                f"--ssl mae predicts hidden tokens from the others, and images of {height}x{width} have a single one;"
                " use larger images, or pass --ssl none."
            )
        hidden = min(max(1, round(self.options.mask_ratio * rows * columns)), rows * columns - 1)
        on_tokens = torch.zeros(len(images), rows * columns, dtype=torch.bool)
        for mask, generator in zip(on_tokens, generators, strict=True):
            mask[torch.randperm(rows * columns, generator=generator)[:hidden]] = True
        scale = self.side // self.patch
        on_patches = on_tokens.unflatten(1, (rows, columns)).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return HiddenGroups(
            on_patches.to(device, non_blocking=True),
            on_tokens.to(device, non_blocking=True),
            self._targets(to_signed(images, device)),
        )

    def _targets(self, images: torch.Tensor) -> torch.Tensor:
        groups = images.unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        pixels = groups.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        if not self.options.normalize_pixels:
            return pixels
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()

    def loss(
        self, output: StudentOutput, views: HiddenGroups, step: int, with_diagnostics: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        error = (output.method["pixels"].float() - views.targets).square().mean(dim=-1)
        # Every image hides as many groups, so ranks and accumulated batches add up exactly.
        loss = (error * views.on_tokens).sum() / views.on_tokens.sum()
        return loss, {"train/loss_mae": loss}


def build(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, options: Options) -> MaskedAutoencoding:
    return MaskedAutoencoding(adapter, options)
