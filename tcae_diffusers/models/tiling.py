# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Processing an image or a latent in overlapping tiles whose results are blended."""

import math
from collections.abc import Callable

import torch


class TilingMixin:
    """Tile sizes of an autoencoder with a `spatial_compression_ratio`, and the switch for them."""

    spatial_compression_ratio: int

    def set_default_tiles(self, size: int) -> None:
        """Tiles of at least `size` pixels that overlap by a quarter; not switched on."""
        ratio = self.spatial_compression_ratio
        tile = math.ceil(size / ratio) * ratio
        self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = tile
        self.tile_sample_stride_height = self.tile_sample_stride_width = default_tile_stride(tile, ratio)

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """
        Encode and decode large images in overlapping tiles that are blended, to save memory. The result has the size
        of the untiled one.

        Args:
            tile_sample_min_height, tile_sample_min_width (`int`, *optional*): Size of a tile in pixels; smaller
                images are not tiled. Defaults to twice `config.sample_size`.
            tile_sample_stride_height, tile_sample_stride_width (`int`, *optional*): Distance between neighbouring
                tiles in pixels; they overlap by tile minus stride. Defaults to three quarters of the tile.

        Raises:
            ValueError: if a size is not a positive multiple of the compression ratio, or a stride exceeds its tile.
        """
        ratio = self.spatial_compression_ratio
        sizes = {}
        for side, tile, stride in (
            ("height", tile_sample_min_height, tile_sample_stride_height),
            ("width", tile_sample_min_width, tile_sample_stride_width),
        ):
            if tile is not None and stride is None:
                stride = default_tile_stride(tile, ratio)
            tile = getattr(self, f"tile_sample_min_{side}") if tile is None else tile
            stride = getattr(self, f"tile_sample_stride_{side}") if stride is None else stride
            for name, value in ((f"tile_sample_min_{side}", tile), (f"tile_sample_stride_{side}", stride)):
                if value <= 0 or value % ratio:
                    raise ValueError(f"{name} {value} is not a positive multiple of the compression ratio {ratio}.")
            if stride > tile:
                raise ValueError(
                    f"tile_sample_stride_{side} {stride} exceeds tile_sample_min_{side} {tile}: pixels between the"
                    " tiles would be lost; choose a stride of at most the tile size."
                )
            sizes[f"tile_sample_min_{side}"], sizes[f"tile_sample_stride_{side}"] = tile, stride
        for name, value in sizes.items():
            setattr(self, name, value)
        self.use_tiling = True

    def _needs_tiles(self, height: int, width: int) -> bool:
        return self.use_tiling and (height > self.tile_sample_min_height or width > self.tile_sample_min_width)

    @property
    def _tile_size_and_stride(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (
            (self.tile_sample_min_height, self.tile_sample_min_width),
            (self.tile_sample_stride_height, self.tile_sample_stride_width),
        )


def apply_in_tiles(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    pixels_per_input: int,
    pixels_per_output: int,
) -> torch.Tensor:
    """
    Apply `function` to overlapping tiles of `x` and blend the results. Only one tile is processed at a time.

    Args:
        function: Maps `(B, C, h, w)` to `(B, C', h * pixels_per_input / pixels_per_output, ...)`.
        x (`torch.Tensor` of shape `(B, C, h, w)`): Image or latent.
        tile_size (`tuple[int, int]`): Height and width of a tile in pixels.
        stride (`tuple[int, int]`): Distance between neighbouring tiles in pixels, at most the tile size.
        pixels_per_input, pixels_per_output (`int`): Pixels along a side that one entry of `x`, or of the result,
            stands for. Sizes, tiles and strides are multiples of both.

    Returns:
        `torch.Tensor`: of the size that `function(x)` would have.
    """
    sides = []
    for size, tile, step in zip(x.shape[2:], tile_size, stride, strict=True):
        size, tile = size * pixels_per_input, min(tile, size * pixels_per_input)
        starts = tile_starts(size, tile, step)
        weights = blend_weights(
            [start // pixels_per_output for start in starts], tile // pixels_per_output, size // pixels_per_output
        )
        sides.append((size // pixels_per_output, tile, list(zip(starts, weights, strict=True))))
    (height, tile_height, rows), (width, tile_width, columns) = sides

    result: torch.Tensor | None = None
    for top, row_weights in rows:
        for left, column_weights in columns:
            output = function(
                x[
                    :,
                    :,
                    top // pixels_per_input : (top + tile_height) // pixels_per_input,
                    left // pixels_per_input : (left + tile_width) // pixels_per_input,
                ]
            )
            if result is None:
                result = output.new_zeros((*output.shape[:2], height, width))
            first_row, first_column = top // pixels_per_output, left // pixels_per_output
            result[:, :, first_row : first_row + output.shape[2], first_column : first_column + output.shape[3]] += (
                output * row_weights.to(output)[:, None] * column_weights.to(output)
            )
    assert result is not None, "a side of any size has a tile"
    return result


def default_tile_stride(tile: int, ratio: int) -> int:
    """Three quarters of the tile, a multiple of the compression ratio."""
    return max(ratio, 3 * tile // 4 // ratio * ratio)


def tile_starts(size: int, tile: int, stride: int) -> list[int]:
    """Starts of equal tiles that cover `size`; the last one is moved inwards so that no tile is cut short."""
    if size <= tile:
        return [0]
    starts = list(range(0, size - tile, stride))
    return [*starts, size - tile]


def blend_weights(starts: list[int], tile: int, size: int) -> list[torch.Tensor]:
    """
    Weights `(tile,)` of each tile along one side: linear ramps over its overlap with either neighbour. At every place
    the weights of all tiles sum to one.
    """
    weights = []
    for index, start in enumerate(starts):
        ramp = torch.ones(tile)
        if index > 0:
            overlap = starts[index - 1] + tile - start
            ramp[:overlap] *= (torch.arange(overlap) + 0.5) / max(overlap, 1)
        if index + 1 < len(starts):
            overlap = start + tile - starts[index + 1]
            ramp[tile - overlap :] *= (torch.arange(overlap).flip(0) + 0.5) / max(overlap, 1)
        weights.append(ramp)
    # Two neighbours sum to one as they are; where a short stride lets more tiles meet, or the last tile was moved
    # inwards, they do not.
    total = torch.zeros(size)
    for start, ramp in zip(starts, weights, strict=True):
        total[start : start + tile] += ramp
    return [ramp / total[start : start + tile] for start, ramp in zip(starts, weights, strict=True)]
