# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Axial rotary positions of tokens on a 2D grid (RoFormer, Su et al., 2021; for images as in RoPE-ViT, arXiv
2403.13298)."""

import torch
import torch.nn.functional as F


def axial_rotary_embedding(
    height: int, width: int, head_dim: int, theta: float, device: torch.device, num_leading: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosine and sine tables of 2D axial rotary positions; half of the head's rotation planes turn with the row, half
    with the column. Positions count tokens, so an offset means the same at every resolution and in every tile.

    Args:
        height, width (`int`): Grid of tokens.
        head_dim (`int`): Channels per head, a multiple of 4.
        theta (`float`): Base of the frequencies.
        device (`torch.device`): Where the tables are made.
        num_leading (`int`, defaults to 0): Tokens before the grid that have no position (the class token).

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: two fp32 tensors of shape `(num_leading + height * width, head_dim / 2)`.
    """
    num_frequencies = head_dim // 4
    exponent = torch.arange(num_frequencies, dtype=torch.float32, device=device) / num_frequencies
    frequencies = theta**-exponent
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * frequencies
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * frequencies
    angles = torch.cat(
        [rows[:, None, :].expand(height, width, -1), columns[None, :, :].expand(height, width, -1)], dim=-1
    ).flatten(0, 1)
    # An angle of zero leaves a token as it is.
    angles = F.pad(angles, (0, 0, num_leading, 0))
    return angles.cos(), angles.sin()


def apply_axial_rotary_embedding(
    hidden_states: torch.Tensor, rotary_embedding: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Rotate queries or keys `(B, N, heads, head_dim)` by tables of shape `(N, head_dim / 2)`."""
    cos, sin = (table[:, None, :] for table in rotary_embedding)
    real, imaginary = hidden_states.float().chunk(2, dim=-1)
    rotated = torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return rotated.to(hidden_states.dtype)
