# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""TC-AE: a ViT autoencoder with staged token compression ("TC-AE: Unlocking Token Capacity for Deep Compression
Autoencoders", arXiv 2604.07340). The model is in this file, except for attention and tiling, and reads from top to
bottom."""

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks.tensor_parallel import PackedColwiseParallel
from diffusers.loaders import FromOriginalModelMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, IdentityDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from ..axial_attention import AxialAttention
from ..model_card import ModelCardMixin
from ..rotary_embedding import axial_rotary_embedding
from ..tiling import TilingMixin, apply_in_tiles


@dataclass
class AutoencoderTCEncoderOutput(BaseOutput):
    """
    Output of [`AutoencoderTC.encode`], readable through each of the accessors that diffusers callers use.

    Args:
        latent (`torch.Tensor` of shape `(B, latent_channels, H / ratio, W / ratio)`):
            The latent, normalised per channel. `latents`, `latent_dist.sample()` and `latent_dist.mode()` return this
            same tensor: the encoder is deterministic.
    """

    latent: torch.Tensor

    @property
    def latents(self) -> torch.Tensor:
        return self.latent

    @property
    def latent_dist(self) -> IdentityDistribution:
        return IdentityDistribution(self.latent)


@dataclass
class AutoencoderTCFeatures(BaseOutput):
    """
    Token features of each encoder stage, for self-supervision and probing.

    Args:
        first_stage (`torch.Tensor` of shape `(B, H/p * W/p, hidden_size)`):
            Patch tokens after the first `M` blocks, layer-normalised, before the intermediate bottleneck.
        first_stage_class_token (`torch.Tensor` of shape `(B, hidden_size)`): Class token at the same place.
        first_stage_grid (`tuple[int, int]`): Rows and columns of `first_stage`.
        last (`torch.Tensor` of shape `(B, N, hidden_size)`):
            Patch tokens after the last encoder block, layer-normalised, before the final bottleneck. With staged
            compression `N` is a quarter of the first stage's token count.
        class_token (`torch.Tensor` of shape `(B, hidden_size)`): Class token at the same place.
        last_grid (`tuple[int, int]`): Rows and columns of `last`.
        latent (`torch.Tensor` of shape `(B, latent_channels, H / ratio, W / ratio)`): The latent **before**
            per-channel normalisation.
    """

    first_stage: torch.Tensor
    first_stage_class_token: torch.Tensor
    first_stage_grid: tuple[int, int]
    last: torch.Tensor
    class_token: torch.Tensor
    last_grid: tuple[int, int]
    latent: torch.Tensor


class AutoencoderTCFeedForward(nn.Module):
    """MLP, gated by a SiLU (`"swiglu"`) or with a GELU."""

    def __init__(self, dim: int, inner_dim: int, activation_fn: str):
        super().__init__()
        self.activation_fn = activation_fn
        self.proj_in = nn.Linear(dim, 2 * inner_dim if activation_fn == "swiglu" else inner_dim)
        # Read by tensor parallelism, which divides the gate and what it gates each for itself.
        blocks = [inner_dim, inner_dim] if activation_fn == "swiglu" else [inner_dim]
        self.proj_in._tp_packed_col_blocks = blocks  # type: ignore[assignment]
        self.proj_out = nn.Linear(inner_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.proj_in(hidden_states)
        if self.activation_fn == "swiglu":
            hidden_states, gate = hidden_states.chunk(2, dim=-1)
            hidden_states = hidden_states * F.silu(gate)
        else:
            hidden_states = F.gelu(hidden_states, approximate="none" if self.activation_fn == "gelu" else "tanh")
        return self.proj_out(hidden_states)


class AutoencoderTCBlock(nn.Module):
    """Pre-norm transformer block on tokens `(B, N, dim)`."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, activation_fn: str, eps: float):
        super().__init__()
        # A gated MLP has three matrices instead of two: two thirds of the width cost the same.
        inner_dim = round(dim * mlp_ratio * (2 / 3 if activation_fn == "swiglu" else 1))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = AxialAttention(dim, heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.ff = AutoencoderTCFeedForward(dim, inner_dim, activation_fn)

    def forward(
        self, hidden_states: torch.Tensor, rotary_embedding: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), rotary_embedding)
        hidden_states = hidden_states + self.ff(self.norm2(hidden_states))
        return hidden_states


def tokens_to_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens `(B, h*w, C)` seen as a map `(B, C, h, w)`; the strides are those of channels_last, nothing is copied."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def map_to_tokens(hidden_map: torch.Tensor) -> torch.Tensor:
    """Inverse of [`tokens_to_map`]."""
    return hidden_map.permute(0, 2, 3, 1).flatten(1, 2)


def space_to_channel(tokens: torch.Tensor, grid: tuple[int, int], factor: int) -> torch.Tensor:
    """Join `factor x factor` neighbouring tokens: `(B, h*w, C)` -> `(B, h*w / factor^2, C * factor^2)`."""
    height, width = grid
    tokens = tokens.unflatten(1, (height // factor, factor, width // factor, factor))
    return tokens.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def channel_to_space(tokens: torch.Tensor, grid: tuple[int, int], factor: int) -> torch.Tensor:
    """Inverse of [`space_to_channel`]; `grid` is the grid of the input tokens."""
    tokens = tokens.unflatten(2, (factor, factor, -1)).unflatten(1, grid)
    return tokens.transpose(2, 3).flatten(1, 4)


class TokenReduction(nn.Module):
    """Intermediate bottleneck: two convolutions, the first with stride 2, so a quarter of the tokens remains."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_in = nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.act = nn.GELU(approximate="tanh")
        self.conv_out = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        hidden_map = self.conv_in(tokens_to_map(tokens, grid))
        return map_to_tokens(self.conv_out(self.act(hidden_map)))


class TokenExpansion(nn.Module):
    """Mirror of [`TokenReduction`]: four times as many tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_in = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.act = nn.GELU(approximate="tanh")
        self.conv_out = nn.ConvTranspose2d(dim, dim, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        hidden_map = self.conv_in(tokens_to_map(tokens, grid))
        return map_to_tokens(self.conv_out(self.act(hidden_map)))


class TokensToLatent(nn.Module):
    """Final bottleneck: space-to-channel, then an MLP to the latent channels."""

    def __init__(self, dim: int, factor: int, hidden_dim: int, latent_channels: int):
        super().__init__()
        self.factor = factor
        self.linear_in = nn.Linear(dim * factor**2, hidden_dim)
        self.act = nn.GELU(approximate="tanh")
        self.linear_out = nn.Linear(hidden_dim, latent_channels)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        tokens = self.linear_in(space_to_channel(tokens, grid, self.factor))
        tokens = self.linear_out(self.act(tokens))
        return tokens_to_map(tokens, (grid[0] // self.factor, grid[1] // self.factor))


class LatentToTokens(nn.Module):
    """Mirror of [`TokensToLatent`]."""

    def __init__(self, dim: int, factor: int, hidden_dim: int, latent_channels: int):
        super().__init__()
        self.factor = factor
        self.linear_in = nn.Linear(latent_channels, hidden_dim)
        self.act = nn.GELU(approximate="tanh")
        self.linear_out = nn.Linear(hidden_dim, dim * factor**2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        tokens = self.linear_out(self.act(self.linear_in(map_to_tokens(latent))))
        return channel_to_space(tokens, (latent.shape[2], latent.shape[3]), self.factor)


class AutoencoderTCStages(nn.Module):
    """What encoder and decoder have in common: blocks on a grid of tokens."""

    num_class_tokens = 0
    head_dim: int
    rope_theta: float
    # Both set by `ModelMixin.enable_gradient_checkpointing`.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def _run_blocks(self, blocks: nn.ModuleList, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        rotary_embedding = axial_rotary_embedding(
            *grid, self.head_dim, self.rope_theta, hidden_states.device, num_leading=self.num_class_tokens
        )
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, rotary_embedding)
            else:
                hidden_states = block(hidden_states, rotary_embedding)
        return hidden_states


class AutoencoderTCEncoder(AutoencoderTCStages):
    """Patch embedding -> M blocks -> intermediate bottleneck -> N' blocks -> final bottleneck (paper, section 3)."""

    num_class_tokens = 1

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        patch_size: int,
        dim: int,
        heads: int,
        num_layers: tuple[int, int],
        mlp_ratio: float,
        activation_fn: str,
        staged_compression: bool,
        final_factor: int,
        rope_theta: float,
        eps: float,
    ):
        super().__init__()
        self.head_dim = dim // heads
        self.rope_theta = rope_theta
        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        block_args = (dim, heads, mlp_ratio, activation_fn, eps)
        self.first_blocks = nn.ModuleList([AutoencoderTCBlock(*block_args) for _ in range(num_layers[0])])
        self.first_norm = nn.LayerNorm(dim, eps=eps)
        self.token_reduction = TokenReduction(dim) if staged_compression else None
        self.last_blocks = nn.ModuleList([AutoencoderTCBlock(*block_args) for _ in range(num_layers[1])])
        self.last_norm = nn.LayerNorm(dim, eps=eps)
        self.to_latent = TokensToLatent(dim, final_factor, 4 * dim, latent_channels)

    def forward(
        self, sample: torch.Tensor, token_mask: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> AutoencoderTCFeatures:
        hidden_map = self.patch_embed(sample)
        grid = (hidden_map.shape[2], hidden_map.shape[3])
        hidden_states = map_to_tokens(hidden_map)
        if token_mask is not None and mask_token is not None:
            # The embedding is replaced, so nothing of a masked patch is left in the sequence.
            hidden_states = torch.where(token_mask.flatten(1)[..., None], mask_token.to(hidden_states), hidden_states)
        hidden_states = torch.cat([self.class_token.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)

        hidden_states = self._run_blocks(self.first_blocks, hidden_states, grid)
        first = self.first_norm(hidden_states)

        if self.token_reduction is not None:
            tokens = self.token_reduction(first[:, 1:], grid)
            last_grid = (grid[0] // 2, grid[1] // 2)
            hidden_states = torch.cat([first[:, :1], tokens], dim=1)
        else:
            last_grid = grid

        hidden_states = self._run_blocks(self.last_blocks, hidden_states, last_grid)
        last = self.last_norm(hidden_states)

        return AutoencoderTCFeatures(
            first_stage=first[:, 1:],
            first_stage_class_token=first[:, 0],
            first_stage_grid=grid,
            last=last[:, 1:],
            class_token=last[:, 0],
            last_grid=last_grid,
            latent=self.to_latent(last[:, 1:], last_grid),
        )


class AutoencoderTCDecoder(AutoencoderTCStages):
    """Mirror of [`AutoencoderTCEncoder`], without a class token."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        patch_size: int,
        dim: int,
        heads: int,
        num_layers: tuple[int, int],
        mlp_ratio: float,
        activation_fn: str,
        staged_compression: bool,
        final_factor: int,
        rope_theta: float,
        eps: float,
    ):
        super().__init__()
        self.head_dim = dim // heads
        self.rope_theta = rope_theta
        self.final_factor = final_factor
        self.patch_size = patch_size
        self.from_latent = LatentToTokens(dim, final_factor, 4 * dim, latent_channels)
        block_args = (dim, heads, mlp_ratio, activation_fn, eps)
        self.first_blocks = nn.ModuleList([AutoencoderTCBlock(*block_args) for _ in range(num_layers[0])])
        self.first_norm = nn.LayerNorm(dim, eps=eps) if staged_compression else None
        self.token_expansion = TokenExpansion(dim) if staged_compression else None
        self.last_blocks = nn.ModuleList([AutoencoderTCBlock(*block_args) for _ in range(num_layers[1])])
        self.last_norm = nn.LayerNorm(dim, eps=eps)
        self.proj_out = nn.Linear(dim, out_channels * patch_size**2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        hidden_states = self.from_latent(latent)
        grid = (latent.shape[2] * self.final_factor, latent.shape[3] * self.final_factor)

        hidden_states = self._run_blocks(self.first_blocks, hidden_states, grid)

        if self.token_expansion is not None and self.first_norm is not None:
            hidden_states = self.token_expansion(self.first_norm(hidden_states), grid)
            grid = (grid[0] * 2, grid[1] * 2)

        hidden_states = self._run_blocks(self.last_blocks, hidden_states, grid)
        patches = self.proj_out(self.last_norm(hidden_states))
        pixels = channel_to_space(patches, grid, self.patch_size)
        return tokens_to_map(pixels, (grid[0] * self.patch_size, grid[1] * self.patch_size)).contiguous()


class AutoencoderTC(
    TilingMixin, ModelCardMixin, ModelMixin, AttentionMixin, AutoencoderMixin, ConfigMixin, FromOriginalModelMixin
):
    r"""
    TC-AE, a deterministic ViT autoencoder with staged token compression (arXiv 2604.07340).

    `encode` maps images `(B, in_channels, H, W)` in [-1, 1] to a latent `(B, latent_channels, H / ratio, W / ratio)`;
    `decode` maps back. The latent is normalised per channel inside `encode` and `decode` with the statistics in the
    buffers `latent_mean` and `latent_std` (see [`~AutoencoderTC.set_latent_statistics`]), so that callers which know
    only a scalar work at unit variance with `scaling_factor = 1`.

    This model inherits from [`ModelMixin`]. Check the superclass documentation for its generic methods implemented for
    all models (such as downloading or saving).

    Parameters:
        in_channels (`int`, *optional*, defaults to 3): Channels of the image.
        latent_channels (`int`, *optional*, defaults to 128): Channels of the latent (paper: 128; ablation 256).
        sample_size (`int`, *optional*, defaults to 256): Side of the training images in pixels. Any multiple of the
            compression ratio works at inference.
        spatial_compression_ratio (`int`, *optional*, defaults to 32): Pixels per latent position along each side.
        patch_size (`int`, *optional*, defaults to 8): Side of a patch in pixels (paper: 8, ablations 16 and 32).
        staged_compression (`bool`, *optional*, defaults to `True`): Whether an intermediate bottleneck cuts the tokens
            to a quarter after the first blocks (the paper's STC). Without it the final bottleneck does all the work.
        hidden_size (`int`, *optional*, defaults to 768): Width of the tokens.
        num_attention_heads (`int`, *optional*, defaults to 12): Number of attention heads.
        encoder_num_layers (`tuple[int, int]`, *optional*, defaults to `(8, 4)`): Blocks before (`M`) and after (`N'`)
            the intermediate bottleneck. 8 + 4 at width 768 gives the paper's 164 GMAC.
        decoder_num_layers (`tuple[int, int]`, *optional*): Blocks before and after the decoder's token expansion.
            Mirrors the encoder if not given.
        decoder_hidden_size, decoder_num_attention_heads (`int`, *optional*): Width and heads of the decoder, those of
            the encoder if not given. A narrower decoder works on the same latent.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Hidden width of the MLPs over `hidden_size`; a SwiGLU uses
            two thirds of it, at equal cost.
        activation_fn (`str`, *optional*, defaults to `"swiglu"`): `"swiglu"`, `"gelu"` or `"gelu-approximate"`.
        rope_theta (`float`, *optional*, defaults to 100.0): Base of the axial rotary frequencies, in tokens (the value
            of RoPE-ViT, arXiv 2403.13298, for axial 2D positions).
        norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of all normalisations.
        scaling_factor (`float`, *optional*, defaults to 1.0): Always 1: normalisation happens inside the model.
        shift_factor (`float`, *optional*, defaults to 0.0): Always 0, for the same reason.
        force_upcast (`bool`, *optional*, defaults to `False`): Read by Stable Diffusion pipelines; half precision is
            safe here.
        latents_mean, latents_std (`None`): Read by some pipelines to normalise outside the model; always `None` here.
        block_out_channels, encoder_block_out_channels (`tuple[int, ...]`, *optional*): Read by pipelines, which take
            the compression ratio as `2 ** (len(...) - 1)`. Derived if not given.

    Raises:
        ValueError: if the sizes do not fit together; the message names the value.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("AutoencoderTCBlock",)
    _repeated_blocks = ("AutoencoderTCBlock",)
    _skip_layerwise_casting_patterns = ("patch_embed", "norm", "latent_mean", "latent_std")
    _group_offload_block_modules = ("encoder", "decoder")
    # Heads and the width of the MLPs are divided; convolutions, heads of the stages and norms are whole on each rank.
    _tp_plan = {  # noqa: RUF012 - diffusers' own form
        f"{blocks}.*.{layer}": style
        for blocks in (f"{part}.{stage}_blocks" for part in ("encoder", "decoder") for stage in ("first", "last"))
        for layer, style in {
            "attn.to_q": "colwise",
            "attn.to_k": "colwise",
            "attn.to_v": "colwise",
            "attn.to_out": "rowwise",
            "ff.proj_in": PackedColwiseParallel(),
            "ff.proj_out": "rowwise",
        }.items()
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 128,
        sample_size: int = 256,
        spatial_compression_ratio: int = 32,
        patch_size: int = 8,
        staged_compression: bool = True,
        hidden_size: int = 768,
        num_attention_heads: int = 12,
        encoder_num_layers: tuple[int, int] = (8, 4),
        decoder_num_layers: tuple[int, int] | None = None,
        decoder_hidden_size: int | None = None,
        decoder_num_attention_heads: int | None = None,
        mlp_ratio: float = 4.0,
        activation_fn: str = "swiglu",
        rope_theta: float = 100.0,
        norm_eps: float = 1e-6,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        force_upcast: bool = False,
        latents_mean: None = None,
        latents_std: None = None,
        block_out_channels: tuple[int, ...] | None = None,
        encoder_block_out_channels: tuple[int, ...] | None = None,
    ):
        super().__init__()
        decoder_width = hidden_size if decoder_hidden_size is None else decoder_hidden_size
        decoder_heads = num_attention_heads if decoder_num_attention_heads is None else decoder_num_attention_heads
        for name, value in (
            ("in_channels", in_channels),
            ("latent_channels", latent_channels),
            ("sample_size", sample_size),
            ("patch_size", patch_size),
            ("hidden_size", hidden_size),
            ("num_attention_heads", num_attention_heads),
            ("decoder_hidden_size", decoder_width),
            ("decoder_num_attention_heads", decoder_heads),
        ):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1.")
        for name, layers in (("encoder_num_layers", encoder_num_layers), ("decoder_num_layers", decoder_num_layers)):
            if layers is not None and (len(layers) != 2 or min(layers) < 0):
                raise ValueError(
                    f"{name} {tuple(layers)} must be two counts of blocks, before and after the intermediate step."
                )
        final_factor = _final_compression_factor(spatial_compression_ratio, patch_size, staged_compression)
        for part, width, heads in (("", hidden_size, num_attention_heads), ("decoder_", decoder_width, decoder_heads)):
            if width % heads or (width // heads) % 4:
                raise ValueError(
                    f"{part}hidden_size {width} divided by {part}num_attention_heads {heads} must be a multiple "
                    "of 4: axial rotary positions need two pairs of channels per head."
                )
        if activation_fn not in ("swiglu", "gelu", "gelu-approximate"):
            raise ValueError(f"activation_fn {activation_fn!r} must be 'swiglu', 'gelu' or 'gelu-approximate'.")
        if (scaling_factor, shift_factor) != (1.0, 0.0) or latents_mean is not None or latents_std is not None:
            raise ValueError(
                "scaling_factor, shift_factor, latents_mean and latents_std must keep their defaults: latents are"
                " normalised inside encode and decode; call set_latent_statistics() to change the normalisation."
            )
        if decoder_num_layers is None:
            decoder_num_layers = (encoder_num_layers[1], encoder_num_layers[0])

        block_channels = (hidden_size,) * (int(math.log2(spatial_compression_ratio)) + 1)
        for name, given in (
            ("block_out_channels", block_out_channels),
            ("encoder_block_out_channels", encoder_block_out_channels),
        ):
            if given is not None and len(given) != len(block_channels):
                raise ValueError(
                    f"{name} has {len(given)} entries, expected {len(block_channels)}: log2 of the compression ratio "
                    f"{spatial_compression_ratio}, plus one. Omit it to derive it."
                )
        self.register_to_config(
            decoder_num_layers=tuple(decoder_num_layers),
            decoder_hidden_size=decoder_width,
            decoder_num_attention_heads=decoder_heads,
            block_out_channels=tuple(block_out_channels or block_channels),
            encoder_block_out_channels=tuple(encoder_block_out_channels or block_channels),
        )

        shared: dict[str, Any] = {
            "latent_channels": latent_channels,
            "patch_size": patch_size,
            "mlp_ratio": mlp_ratio,
            "activation_fn": activation_fn,
            "staged_compression": staged_compression,
            "final_factor": final_factor,
            "rope_theta": rope_theta,
            "eps": norm_eps,
        }
        self.encoder = AutoencoderTCEncoder(
            in_channels, dim=hidden_size, heads=num_attention_heads, num_layers=encoder_num_layers, **shared
        )
        self.decoder = AutoencoderTCDecoder(
            in_channels, dim=decoder_width, heads=decoder_heads, num_layers=decoder_num_layers, **shared
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.apply(self._init_weights)
        nn.init.normal_(self.encoder.class_token, std=0.02)
        # Images start near mid-grey instead of as noise beyond [-1, 1], whose error would fill the first steps.
        nn.init.xavier_uniform_(self.decoder.proj_out.weight, gain=0.1)

        self.spatial_compression_ratio = spatial_compression_ratio
        self.temporal_compression_ratio = 1
        self.use_slicing = False
        self.set_default_tiles(2 * sample_size)

    @property
    def _cp_plan(self) -> dict[str, Any]:
        """
        Where context parallelism divides the tokens and puts them together: in the blocks alone, since bottlenecks are
        convolutions over the whole grid. The encoder has a class token more than its grid, so the number of tokens is
        hardly ever a multiple of the number of ranks: use `ContextParallelConfig(ulysses_anything=True)`.
        """
        tokens = {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)}
        positions = {"rotary_embedding": [ContextParallelInput(split_dim=0, expected_dims=2)] * 2}
        plan: dict[str, Any] = {}
        for part in ("encoder", "decoder"):
            is_divided = False
            for stage in ("first", "last"):
                if len(self.get_submodule(f"{part}.{stage}_blocks")):
                    if not is_divided:
                        plan[f"{part}.{stage}_blocks.0"] = tokens
                    plan[f"{part}.{stage}_blocks.*"] = positions
                    is_divided = True
                if is_divided and getattr(self.get_submodule(part), f"{stage}_norm") is not None:
                    plan[f"{part}.{stage}_norm"] = ContextParallelOutput(gather_dim=1, expected_dims=3)
                    # Without the bottleneck the last blocks go on with what the first ones passed by the norm.
                    is_divided = not self.config.staged_compression
        return plan

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        # As in MAE and DiT: Xavier uniform on matrices, convolutions seen as matrices over their whole window.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "AutoencoderTC":
        """
        Build a randomly initialised model from a named preset.

        Args:
            name (`str`): A key of `AUTOENCODER_TC_PRESETS`, for example `"tc-ae-f32c128"`.
            overrides: Config arguments that replace the preset's.

        Raises:
            ValueError: if there is no such preset.
            TypeError: if an override is not a config argument of the model.
        """
        if name not in AUTOENCODER_TC_PRESETS:
            raise ValueError(f"Unknown preset {name!r}; known presets: {', '.join(AUTOENCODER_TC_PRESETS)}.")
        known = cls._get_init_keys(cls) - {"self"}
        for key in overrides:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=3)
                raise TypeError(
                    f"{cls.__name__} has no config argument {key!r}; "
                    + (f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {sorted(known)}.")
                )
        return cls(**{**AUTOENCODER_TC_PRESETS[name], **overrides})

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: Any, **kwargs: Any) -> "AutoencoderTC":
        """
        Load the weights of a single file; see `FromOriginalModelMixin.from_single_file` for the other arguments.

        Args:
            pretrained_model_link_or_path_or_dict (`str` or `dict`): A `.safetensors` or PyTorch file, or its content.
            config (`str`, *optional*): Folder or repository with the `config.json`. Defaults to the file's folder.
            key_map (`dict` or `Callable`, *optional*): For weights in another layout, see
                [`~tcae_diffusers.models.conversion.convert_checkpoint`].

        Raises:
            ValueError: if there is no config, or weights are missing, left over or of a wrong shape.
        """
        if kwargs.get("config") is None:
            # Without a config diffusers takes every checkpoint that it does not know for Stable Diffusion's.
            is_path = isinstance(pretrained_model_link_or_path_or_dict, str | os.PathLike)
            folder = os.path.dirname(os.path.abspath(pretrained_model_link_or_path_or_dict)) if is_path else None
            if folder is None or not os.path.isfile(os.path.join(folder, cls.config_name)):
                raise ValueError(
                    f"There is no {cls.config_name} next to the single file; pass config= with a folder or "
                    "repository that has one."
                )
            kwargs["config"] = folder
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)

    @torch.no_grad()
    def set_latent_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """
        Set the per-channel statistics with which `encode` and `decode` normalise. They are saved with the weights.

        Args:
            mean (`torch.Tensor` of shape `(latent_channels,)`): Mean of the raw latent over the training set.
            std (`torch.Tensor` of shape `(latent_channels,)`): Its standard deviation, positive.

        Raises:
            ValueError: if a shape is wrong or a value is not finite or a deviation is not positive.
        """
        for name, value in (("mean", mean), ("std", std)):
            if tuple(value.shape) != tuple(self.latent_mean.shape):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(self.latent_mean.shape)}.")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds values that are not finite.")
        if not (std > 0).all():
            raise ValueError(f"std must be positive; channel {int(std.argmin())} has {float(std.min()):g}.")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def forward_features(
        self, sample: torch.Tensor, token_mask: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> AutoencoderTCFeatures:
        """
        Run the encoder and return the tokens of each stage.

        Args:
            sample (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [-1, 1].
            token_mask (`torch.Tensor` of shape `(B, H / patch_size, W / patch_size)`, *optional*): Boolean, true where
                a patch is hidden: its embedding is replaced before the first block.
            mask_token (`torch.Tensor` of shape `(hidden_size,)`, *optional*): What replaces it; a training parameter
                that is kept outside this model.

        Raises:
            ValueError: if the image size is not a multiple of the compression ratio, or the mask does not fit.
        """
        self._check_sample(sample)
        if token_mask is not None:
            patch_size = self.config.patch_size
            expected = (sample.shape[0], sample.shape[2] // patch_size, sample.shape[3] // patch_size)
            if tuple(token_mask.shape) != expected or token_mask.dtype != torch.bool:
                raise ValueError(
                    f"token_mask is {token_mask.dtype} {tuple(token_mask.shape)}, expected torch.bool {expected}."
                )
            if mask_token is None:
                raise ValueError("token_mask was given without mask_token.")
        return self.encoder(sample, token_mask, mask_token)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTCEncoderOutput | tuple[torch.Tensor]:
        """
        Encode images into normalised latents.

        Args:
            x (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output object instead of a tuple.

        Raises:
            ValueError: if H or W is not a multiple of the compression ratio.
        """
        self._check_sample(x)
        if self.use_slicing and x.shape[0] > 1:
            latent = torch.cat([self._encode(x_slice) for x_slice in x.split(1)])
        else:
            latent = self._encode(x)
        if not return_dict:
            return (latent,)
        return AutoencoderTCEncoderOutput(latent=latent)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        if self._needs_tiles(x.shape[2], x.shape[3]):
            return apply_in_tiles(self._encode_tile, x, *self._tile_size_and_stride, 1, self.spatial_compression_ratio)
        return self._encode_tile(x)

    def _encode_tile(self, x: torch.Tensor) -> torch.Tensor:
        latent = self.encoder(x).latent
        mean, std = self._latent_statistics(latent)
        return (latent - mean) / std

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Decode normalised latents into images.

        Args:
            z (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Latents as `encode` returns them.
            return_dict (`bool`, defaults to `True`): Whether to return a `DecoderOutput` instead of a tuple.
            generator (`torch.Generator`, *optional*): Accepted because some pipelines pass one; decoding is
                deterministic and does not use it.

        Returns:
            `DecoderOutput` or `tuple`: images `(B, in_channels, h * ratio, w * ratio)`, about [-1, 1], not clamped.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"z has shape {tuple(z.shape)}, expected (B, {self.config.latent_channels}, h, w).")
        if self.use_slicing and z.shape[0] > 1:
            sample = torch.cat([self._decode(z_slice) for z_slice in z.split(1)])
        else:
            sample = self._decode(z)
        if not return_dict:
            return (sample,)
        return DecoderOutput(sample=sample)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        ratio = self.spatial_compression_ratio
        if self._needs_tiles(z.shape[2] * ratio, z.shape[3] * ratio):
            return apply_in_tiles(self._decode_tile, z, *self._tile_size_and_stride, ratio, 1)
        return self._decode_tile(z)

    def _decode_tile(self, z: torch.Tensor) -> torch.Tensor:
        mean, std = self._latent_statistics(z)
        return self.decoder(z * std + mean)

    def _latent_statistics(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Group offloading brings the outermost module's buffers back when its `forward` is called, and pipelines call
        # `encode` and `decode`.
        hooks = getattr(self, "_diffusers_hook", None)
        offloading = hooks.get_hook("group_offloading") if hooks is not None else None
        if offloading is not None:
            offloading.group.onload_()
        return self.latent_mean.to(latent)[:, None, None], self.latent_std.to(latent)[:, None, None]

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Encode and decode.

        Args:
            sample (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return a `DecoderOutput` instead of a tuple.
        """
        latent = self.encode(sample, return_dict=False)[0]
        return self.decode(latent, return_dict=return_dict)

    def _check_sample(self, sample: torch.Tensor) -> None:
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"images have shape {tuple(sample.shape)}, expected (B, {self.config.in_channels}, H, W)."
            )
        ratio = self.spatial_compression_ratio
        for side, size in (("height", sample.shape[2]), ("width", sample.shape[3])):
            if size % ratio or size == 0:
                raise ValueError(
                    f"image {side} {size} is not a positive multiple of the compression ratio {ratio}: resize, pad or"
                    " crop the image."
                )


def _final_compression_factor(spatial_compression_ratio: int, patch_size: int, staged_compression: bool) -> int:
    """Side of the token group that the final bottleneck joins."""
    before = patch_size * (2 if staged_compression else 1)
    factor, remainder = divmod(spatial_compression_ratio, before)
    if remainder or factor < 1 or spatial_compression_ratio & (spatial_compression_ratio - 1):
        raise ValueError(
            f"spatial_compression_ratio {spatial_compression_ratio} must be a power of two and a multiple of {before}:"
            f" patch_size {patch_size}{' times 2 for staged_compression' if staged_compression else ''}."
        )
    return factor
