# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of tokens on a 2D grid, which the autoencoder and the diffusion transformer have in common."""

from collections.abc import Callable

import torch
import torch.nn as nn
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .rotary_embedding import apply_axial_rotary_embedding


class AxialAttnProcessor:
    """Self-attention with QK-norm and axial rotary positions."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "AxialAttention",
        hidden_states: torch.Tensor,
        rotary_embedding: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        query = query.unflatten(-1, (-1, attn.head_dim))
        key = key.unflatten(-1, (-1, attn.head_dim))
        value = value.unflatten(-1, (-1, attn.head_dim))

        # Under autocast the projections are in half precision and the norms are not.
        query = attn.norm_q(query.to(attn.norm_q.weight.dtype))
        key = attn.norm_k(key.to(attn.norm_k.weight.dtype))

        query = apply_axial_rotary_embedding(query, rotary_embedding).to(value.dtype)
        key = apply_axial_rotary_embedding(key, rotary_embedding).to(value.dtype)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out(hidden_states.flatten(2, 3).to(value.dtype))


class AxialAttention(nn.Module, AttentionModuleMixin):
    """Self-attention on tokens `(B, N, dim)`; the tables are those of [`axial_rotary_embedding`]."""

    _default_processor_cls = AxialAttnProcessor
    _available_processors = (AxialAttnProcessor,)
    use_bias = True
    is_cross_attention = False
    # Of the mixin: a type checker finds `nn.Module.__getattr__` first.
    set_processor: Callable[[AxialAttnProcessor], None]
    processor: AxialAttnProcessor
    to_qkv: nn.Linear

    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        # QK-norm bounds the attention logits, which keeps half precision from overflowing.
        self.norm_q = nn.RMSNorm(self.head_dim, eps=eps)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=eps)
        self.to_out: nn.Module = nn.Linear(dim, dim)
        self.set_processor(self._default_processor_cls())

    def forward(
        self, hidden_states: torch.Tensor, rotary_embedding: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_embedding)
