"""Masks over groups of tokens, for masked image modelling (iBOT) under staged token compression.

The intermediate bottleneck merges 2x2 tokens into one. A mask drawn on single tokens would leave nearly every merged
token partly visible, so masks are drawn on groups and then expanded: all tokens of a group are hidden or none is.
"""

import math

import numpy as np
import torch

MASK_SHAPES = ("random", "block")
# iBOT release: aspect ratios of blocks between 0.3 and 1/0.3.
_LOG_ASPECT = (math.log(0.3), -math.log(0.3))


def draw_mask(
    grid: tuple[int, int],
    generator: np.random.Generator,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    shape: str = "random",
) -> np.ndarray:
    """Draw one mask over a grid of token groups (iBOT release: `pred_ratio`, `pred_shape`).

    Args:
        grid (`tuple[int, int]`): Height and width of the grid of groups.
        generator (`np.random.Generator`): The only source of randomness.
        probability (`float`, defaults to 0.5): Chance that anything is masked at all.
        ratio (`tuple[float, float]`, defaults to (0.1, 0.5)): Range of the share of masked groups, uniform. At least
            one group is masked, rounded down otherwise.
        shape (`str`, defaults to `"random"`): `"random"` groups, or `"block"`: rectangles (as in BEiT), which may
            stop short of the share when no further rectangle fits.

    Returns:
        `np.ndarray`: bool `grid`; True is hidden.
    """
    height, width = grid
    mask = np.zeros(height * width, dtype=bool)
    # The share is drawn whether it is used or not, so that what follows does not depend on the coin.
    coin, share = generator.random(), generator.uniform(*ratio)
    if coin >= probability:
        return mask.reshape(grid)
    count = max(1, int(share * mask.size))
    if shape == "block":
        return _draw_blocks(height, width, count, generator)
    mask[generator.permutation(mask.size)[:count]] = True
    return mask.reshape(grid)


def _draw_blocks(height: int, width: int, count: int, generator: np.random.Generator) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    smallest = max(1, min(height, width) // 3) ** 2
    missing = count
    attempts = 10
    while missing > 0 and attempts > 0:
        attempts -= 1
        area = generator.uniform(min(smallest, missing), missing)
        aspect = math.exp(generator.uniform(*_LOG_ASPECT))
        block_height = max(1, round(math.sqrt(area * aspect)))
        block_width = max(1, round(math.sqrt(area / aspect)))
        if block_height > height or block_width > width:
            continue
        top = generator.integers(height - block_height + 1)
        left = generator.integers(width - block_width + 1)
        block = mask[top : top + block_height, left : left + block_width]
        gain = block.size - int(block.sum())
        if 0 < gain <= missing:
            block[...] = True
            missing -= gain
            attempts = 10
    if not mask.any():
        mask[generator.integers(height), generator.integers(width)] = True
    return mask


def expand_mask(mask: torch.Tensor, group_size: int = 2) -> torch.Tensor:
    """Expand a mask over groups to a mask over tokens.

    Args:
        mask (`torch.Tensor`): bool `(..., h, w)`.
        group_size (`int`, defaults to 2): Side of a group in tokens; 1 returns the mask itself.

    Returns:
        `torch.Tensor`: bool `(..., h * group_size, w * group_size)`; each group is all True or all False.
    """
    if group_size < 1:
        raise ValueError(f"group_size {group_size} is not a positive whole number")
    return mask.repeat_interleave(group_size, dim=-2).repeat_interleave(group_size, dim=-1)
