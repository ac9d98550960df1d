# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`TCDiTTransformer2DModel`: a class-conditional diffusion transformer for deep-compression latents, after
LightningDiT (Yao et al., 2025): DiT with SwiGLU, RMSNorm and 2D rotary positions, and with QK-norm, which LightningDiT
offers too but trains without. The model is in this file, except for attention, and reads from top to bottom."""

import difflib
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
)
from diffusers.hooks.tensor_parallel import PackedColwiseParallel
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin

from ..axial_attention import AxialAttention, AxialAttnProcessor
from ..rotary_embedding import axial_rotary_embedding

# Sizes of DiT (Peebles and Xie, 2023, table 1), which LightningDiT keeps.
TC_DIT_PRESETS: dict[str, dict[str, Any]] = {
    "tc-dit-s": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "tc-dit-b": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "tc-dit-l": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "tc-dit-xl": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}


def sincos_position_embedding(height: int, width: int, dim: int, base_size: int, device: torch.device) -> torch.Tensor:
    """
    Fixed absolute positions, fp32 `(height * width, dim)`, in addition to the rotary ones, as in LightningDiT. Any
    grid is scaled to the `base_size` positions of the training grid, so that the centre of a larger picture is still
    the centre.
    """
    exponent = torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4)
    frequencies = 10_000**-exponent
    tables = []
    for size in (height, width):
        positions = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (base_size / size) - 0.5
        angles = positions[:, None] * frequencies
        tables.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows, columns = tables
    return torch.cat(
        [rows[:, None, :].expand(height, width, -1), columns[None, :, :].expand(height, width, -1)], dim=-1
    ).flatten(0, 1)


class TCDiTFeedForward(nn.Module):
    """MLP gated by a SiLU."""

    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * inner_dim)
        self.proj_out = nn.Linear(inner_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, hidden_states = self.proj_in(hidden_states).chunk(2, dim=-1)
        return self.proj_out(F.silu(gate) * hidden_states)


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`(B, N, dim)` times one plus `scale`, plus `shift`, both `(B, dim)`."""
    return hidden_states * (1 + scale[:, None]) + shift[:, None]


class TCDiTBlock(nn.Module):
    """Transformer block on tokens `(B, N, dim)` with adaLN-zero: exactly the identity at initialisation."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=eps)
        self.attn = AxialAttention(dim, heads, eps)
        # The name under which LoRA recipes for diffusers look for it: `to_out.0`.
        self.attn.to_out = nn.Sequential(self.attn.to_out)
        self.norm2 = nn.RMSNorm(dim, eps=eps)
        # A gated MLP has three matrices instead of two: two thirds of the width cost the same.
        self.ff = TCDiTFeedForward(dim, int(dim * mlp_ratio * 2 / 3))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor,
        rotary_embedding: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = self.modulation(conditioning).chunk(6, dim=-1)
        attended = self.attn(modulate(self.norm1(hidden_states), shift_attn, scale_attn), rotary_embedding)
        hidden_states = hidden_states + gate_attn[:, None] * attended
        fed = self.ff(modulate(self.norm2(hidden_states), shift_ff, scale_ff))
        return hidden_states + gate_ff[:, None] * fed


def _make_known_to_hooks() -> None:
    """Tell the hooks of diffusers that skip blocks or attention, for guiders and caches, how those here are called."""
    block = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    block._cls = TCDiTBlock
    attention = AttentionProcessorMetadata(skip_processor_output_fn=lambda module, hidden_states, *_: hidden_states)
    # Their `register` would import every model of diffusers.
    TransformerBlockRegistry._registry[TCDiTBlock] = block
    AttentionProcessorRegistry._registry[AxialAttnProcessor] = attention


_make_known_to_hooks()


class TCDiTTransformer2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    r"""Class-conditional diffusion transformer with the signature of [`~diffusers.DiTTransformer2DModel`], for
    [`TCDiTPipeline`] and the stock [`~diffusers.DiTPipeline`]. Any latent height and width, including non-square ones
    and ones not seen in training.

    Args:
        num_attention_heads (`int`, defaults to 16): Attention heads.
        attention_head_dim (`int`, defaults to 72):
            Channels per head, a multiple of 4; the width of the model is the product of both.
        num_layers (`int`, defaults to 28): Blocks.
        in_channels (`int`, defaults to 128): Channels of the latent.
        out_channels (`int`, *optional*): Channels of the output, `in_channels` if unset.
        sample_size (`int`, defaults to 8): Side of the latents trained on.
        patch_size (`int`, defaults to 1): Latent positions per token side; deep-compression latents need no patches.
        num_classes (`int`, defaults to 1000): Number of classes, the null class not counted.
        null_class_id (`int`, *optional*):
            Class id that stands for "no label", `num_classes` or above; `num_classes` if unset. The stock
            [`~diffusers.DiTPipeline`] always asks for 1000.
        mlp_ratio (`float`, defaults to 4.0):
            Width of the MLP over the width of the model, before the two thirds that a gated MLP gets.
        rope_theta (`float`, defaults to 10000.0): Base of the rotary frequencies.
        norm_eps (`float`, defaults to 1e-6): Epsilon of the norms.

    Raises:
        ValueError: if `attention_head_dim` is not a multiple of 4, or `null_class_id` is the id of a class.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TCDiTBlock"]  # noqa: RUF012 - diffusers' own form
    _repeated_blocks = ["TCDiTBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "time_embed", "class_embed", "^proj_"]  # noqa: RUF012
    # Tokens are divided on the way into the first block and put together on the way out of the last layer: absolute
    # positions have been added by then, and each block is given the rotary positions of its own tokens.
    _cp_plan = {  # noqa: RUF012
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "transformer_blocks.*": {"rotary_embedding": [ContextParallelInput(split_dim=0, expected_dims=2)] * 2},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    # Heads and the width of the MLP are divided, gate and value each for itself. Modulation and norms are not: they
    # need the whole width, or are of one head.
    _tp_plan = {  # noqa: RUF012
        "transformer_blocks.*.attn.to_q": "colwise",
        "transformer_blocks.*.attn.to_k": "colwise",
        "transformer_blocks.*.attn.to_v": "colwise",
        "transformer_blocks.*.attn.to_out.0": "rowwise",
        "transformer_blocks.*.ff.proj_in": PackedColwiseParallel([1, 1]),
        "transformer_blocks.*.ff.proj_out": "rowwise",
    }

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_layers: int = 28,
        in_channels: int = 128,
        out_channels: int | None = None,
        sample_size: int = 8,
        patch_size: int = 1,
        num_classes: int = 1000,
        null_class_id: int | None = None,
        mlp_ratio: float = 4.0,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        null_class_id = num_classes if null_class_id is None else null_class_id
        if attention_head_dim % 4:
            raise ValueError(f"attention_head_dim {attention_head_dim} is not a multiple of 4.")
        if null_class_id < num_classes:
            raise ValueError(f"null_class_id {null_class_id} is the id of a class; choose {num_classes} or above.")
        out_channels = in_channels if out_channels is None else out_channels
        # Pipelines read both from the config.
        self.register_to_config(null_class_id=null_class_id, out_channels=out_channels)
        self.out_channels = out_channels
        self.gradient_checkpointing = False
        dim = num_attention_heads * attention_head_dim

        self.proj_in = nn.Linear(in_channels * patch_size**2, dim)
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(256, dim)
        # The last row is that of the null class.
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.transformer_blocks = nn.ModuleList(
            [TCDiTBlock(dim, num_attention_heads, mlp_ratio, norm_eps) for _ in range(num_layers)]
        )
        self.norm_out = nn.RMSNorm(dim, eps=norm_eps)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, self.out_channels * patch_size**2)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """DiT's: Xavier for matrices, small normal embeddings, and zero where adaLN-zero asks for it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.linear_1, self.time_embed.linear_2, self.class_embed):
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [module.modulation for module in self.modules() if isinstance(module, TCDiTBlock)]
        for layer in (*modulations, self.modulation_out, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "TCDiTTransformer2DModel":
        """
        A new model with the sizes of a preset and random weights.

        Args:
            name (`str`): `"tc-dit-s"`, `"tc-dit-b"`, `"tc-dit-l"` or `"tc-dit-xl"`.
            overrides: Config arguments.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in TC_DIT_PRESETS:
            near = difflib.get_close_matches(name, TC_DIT_PRESETS, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(TC_DIT_PRESETS)}."
            raise ValueError(f"unknown preset {name!r}; {hint}")
        return cls(**{**TC_DIT_PRESETS[name], **overrides})

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(B, in_channels, h, w)`): Noisy latents.
            timestep (`torch.Tensor` of shape `(B,)` or `()`): In [0, 1000]; 0 is clean. Float for flow matching.
            class_labels (`torch.Tensor` of shape `(B,)`): int64 class ids, or `config.null_class_id`.
            return_dict (`bool`, defaults to `True`): `Transformer2DModelOutput` with `.sample`, or a tuple.

        Returns:
            The prediction `(B, out_channels, h, w)`.

        Raises:
            ValueError: if height or width is not a multiple of the patch size.
            IndexError: for an id that is neither a class nor the null class (on the CPU; a GPU's assertion fails).
        """
        patch_size = self.config.patch_size
        batch_size, _, height, width = hidden_states.shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"latent size {height}x{width} is not a multiple of patch_size {patch_size}.")
        grid = (height // patch_size, width // patch_size)

        # 1. Tokens and their places
        tokens = hidden_states.unflatten(3, (grid[1], patch_size)).unflatten(2, (grid[0], patch_size))
        tokens = self.proj_in(tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        base_size = self.config.sample_size // patch_size
        positions = sincos_position_embedding(*grid, tokens.shape[-1], base_size, tokens.device)
        tokens = tokens + positions.to(tokens.dtype)
        rotary_embedding = axial_rotary_embedding(
            *grid, self.config.attention_head_dim, self.config.rope_theta, tokens.device
        )

        # 2. Time and class
        time = self.time_embed(self.time_proj(timestep.expand(batch_size)).to(self.time_embed.linear_1.weight.dtype))
        # Ids between the classes and the null class have no row: the lookup fails, instead of finding the null class.
        rows = torch.where(class_labels < self.config.num_classes, class_labels, self.config.num_classes + 1)
        rows = torch.where(class_labels == self.config.null_class_id, self.config.num_classes, rows)
        conditioning = F.silu(time + self.class_embed(rows))

        # 3. Blocks
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, conditioning, rotary_embedding)
            else:
                tokens = block(tokens, conditioning, rotary_embedding)

        # 4. Output
        shift, scale = self.modulation_out(conditioning).chunk(2, dim=-1)
        tokens = self.proj_out(modulate(self.norm_out(tokens), shift, scale))
        sample = tokens.unflatten(2, (self.out_channels, patch_size, patch_size)).unflatten(1, grid)
        sample = sample.permute(0, 3, 1, 4, 2, 5).reshape(batch_size, self.out_channels, height, width)
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)
