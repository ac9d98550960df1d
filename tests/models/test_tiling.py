"""Tiled encoding and decoding: always the right size, weights that sum to one, no visible seams, little memory."""

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.models.tiling import apply_in_tiles, blend_weights, tile_starts


def random_tilings(count: int):
    """`(size, tile, stride)` in units of the compression ratio, awkward ones included."""
    generator = random.Random(0)
    corners = [(1, 1, 1), (5, 1, 1), (7, 3, 3), (7, 3, 1), (8, 7, 1), (9, 8, 8), (4, 9, 2), (13, 5, 4)]
    for _ in range(count):
        tile = generator.randint(1, 9)
        corners.append((generator.randint(1, 25), tile, generator.randint(1, tile)))
    return corners


def pairs_of_tilings(count: int):
    """One for the height, one for the width."""
    tilings = random_tilings(count)
    return list(zip(tilings[::2], tilings[1::2], strict=True))


@pytest.mark.parametrize("unit", [1, 8])
def test_weights_sum_to_one_everywhere_and_tiles_cover_everything(unit):
    for size, tile, stride in random_tilings(200):
        starts = tile_starts(size * unit, tile * unit, stride * unit)
        tile = min(tile, size)
        total = torch.zeros(size * unit)
        for start, weights in zip(starts, blend_weights(starts, tile * unit, size * unit), strict=True):
            assert start % unit == 0 and 0 <= start <= (size - tile) * unit
            assert weights.min() > 0
            total[start : start + tile * unit] += weights
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6), (size, tile, stride)


def test_a_pointwise_function_is_not_changed_by_tiling():
    for (height, tile_height, stride_height), (width, tile_width, stride_width) in pairs_of_tilings(60):
        x = torch.randn(2, 3, height * 4, width * 4)
        sizes = ((tile_height * 4, tile_width * 4), (stride_height * 4, stride_width * 4))
        assert torch.allclose(apply_in_tiles(lambda tile: 2 * tile + 1, x, *sizes, 1, 1), 2 * x + 1, atol=1e-5)
        # Fewer and more entries per pixel, as in encode and decode.
        pooled = apply_in_tiles(lambda tile: torch.nn.functional.avg_pool2d(tile, 4), x, *sizes, 1, 4)
        assert torch.allclose(pooled, torch.nn.functional.avg_pool2d(x, 4), atol=1e-5)
        grown = apply_in_tiles(lambda tile: tile.repeat_interleave(4, 2).repeat_interleave(4, 3), pooled, *sizes, 4, 1)
        assert torch.allclose(grown, pooled.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5)


def test_the_result_has_the_size_of_the_untiled_one_for_every_tiling(make_tiny_tcae):
    model = make_tiny_tcae(patch_size=8, staged_compression=False, encoder_num_layers=(1, 0), hidden_size=16)
    for (height, tile_height, stride_height), (width, tile_width, stride_width) in pairs_of_tilings(40):
        model.enable_tiling(tile_height * 8, tile_width * 8, stride_height * 8, stride_width * 8)
        images = torch.randn(1, 3, height * 8, width * 8)
        with torch.no_grad():
            latent = model.encode(images).latent
            assert latent.shape == (1, 8, height, width)
            assert model.decode(latent).sample.shape == images.shape
            assert torch.isfinite(model(images).sample).all()


def test_an_image_no_larger_than_a_tile_is_not_tiled(tiny_tcae):
    images = torch.randn(1, 3, 64, 40)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        tiny_tcae.enable_tiling()
        assert torch.equal(tiny_tcae(images).sample, expected)
        tiny_tcae.enable_tiling(tile_sample_min_width=32)
        assert not torch.allclose(tiny_tcae(images).sample, expected, atol=1e-3)
        tiny_tcae.disable_tiling()
        assert torch.equal(tiny_tcae(images).sample, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 64, 72, 64), "tile_sample_stride_height 72 exceeds tile_sample_min_height 64"),
        ((64, 64, 64, 65), "tile_sample_stride_width 65 is not a positive multiple of the compression ratio 8"),
        ((60, 64, 32, 32), "tile_sample_min_height 60 is not"),
        ((64, 0, 32, 32), "tile_sample_min_width 0 is not"),
        ((64, 64, 0, 32), "tile_sample_stride_height 0 is not"),
        ((64, 64, -8, 32), "tile_sample_stride_height -8 is not"),
    ],
)
def test_an_impossible_tiling_is_refused_and_changes_nothing(tiny_tcae, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_tcae.enable_tiling(*arguments)
    assert not tiny_tcae.use_tiling
    assert (tiny_tcae.tile_sample_min_height, tiny_tcae.tile_sample_stride_height) == (64, 48)


@pytest.mark.parametrize(("sample_size", "tile", "stride"), [(32, 64, 48), (4, 8, 8), (30, 64, 48), (256, 512, 384)])
def test_default_tiles_are_valid_for_any_sample_size(make_tiny_tcae, sample_size, tile, stride):
    model = make_tiny_tcae(sample_size=sample_size)
    model.enable_tiling()
    assert (model.tile_sample_min_width, model.tile_sample_stride_width) == (tile, stride)


def test_tiling_works_with_slicing_gradients_and_half_precision(tiny_tcae):
    images = torch.randn(2, 3, 72, 96)
    tiny_tcae.enable_tiling(32, 32)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        tiny_tcae.enable_slicing()
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-5)
    tiny_tcae.disable_slicing()
    leaf = images.clone().requires_grad_()
    tiny_tcae(leaf).sample.sum().backward()
    assert leaf.grad.abs().amin((0, 1)).min() > 0
    with torch.no_grad():
        half = tiny_tcae.to(torch.bfloat16)(images.bfloat16()).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


# Quality -------------------------------------------------------------------------------------------------------------


def steps_of_error(error: torch.Tensor, ratio: int, along: int) -> torch.Tensor:
    """
    Size of the step of an error `(1, 3, S, S)` across each line between latent positions, where the model's own
    patches meet: `(2, S / ratio - 1, S / along)`, for rows and for columns. The error is taken, not the picture, whose
    contours have nothing to do with tiles. Steps are averaged with their sign over `along` pixels of a line first: an
    eye overlooks noise and sees a faint step that goes on.
    """
    steps = [error[:, ratio::ratio] - error[:, ratio - 1 : -1 : ratio] for error in (error[0], error[0].mT)]
    return torch.stack(steps).unflatten(-1, (-1, along)).mean(-1).abs().mean(1)


def errors_of_single_tiles(model, image: torch.Tensor, tile: int) -> list[tuple[int, torch.Tensor]]:
    """
    `(shift, error)` of all shifted grids of tiles side by side. All, so that every line is seen at every place of a
    tile: in the middle of a tile steps are smaller, and the edges of overlapping tiles are in the middle of others.
    """
    errors = []
    for shift in range(0, tile, model.spatial_compression_ratio):
        error = torch.full_like(image, torch.nan)
        starts = range(shift, image.shape[-1] - tile + 1, tile)
        for top in starts:
            for left in starts:
                window = (..., slice(top, top + tile), slice(left, left + tile))
                error[window] = model(image[window]).sample - image[window]
        errors.append((shift, error))
    return errors


def seam_ratios(model, images: list[torch.Tensor], tile: int, stride: int | None) -> dict[int, tuple[float, float]]:
    """
    Steps across the edges of tiles, and across all other lines, each over the steps at the same pixels inside a single
    tile: what a photograph shows at a line changes the steps there, and hardly their ratio. Means over the images, for
    each length `along` of [`steps_of_error`].
    """
    ratio = model.spatial_compression_ratio
    model.enable_tiling(tile, tile, stride, stride)
    ratios = {1: [], 64: []}
    for image in images:
        size = image.shape[-1]
        lines = torch.arange(ratio, size, ratio)
        starts = tile_starts(size, tile, model.tile_sample_stride_height)
        edges = [*starts[1:], *(start + tile for start in starts[:-1])]
        is_edge = torch.isin(lines, torch.tensor(edges))[None, :, None]
        error = model(image).sample - image
        singles = errors_of_single_tiles(model, image, tile)
        for along, entries in ratios.items():
            inside = torch.stack(
                [
                    steps_of_error(single, ratio, along).masked_fill((lines % tile == shift)[:, None], torch.nan)
                    for shift, single in singles
                ]
            ).nanmean(0)
            steps = steps_of_error(error, ratio, along)
            entries.append(
                [
                    steps[chosen].mean() / inside[chosen].mean()
                    for chosen in (is_edge & ~inside.isnan(), ~is_edge & ~inside.isnan())
                ]
            )
    model.disable_tiling()
    return {along: tuple(torch.tensor(entries).mean(0).tolist()) for along, entries in ratios.items()}


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (1024, ("rocket.jpg", "ihc.png")),
        pytest.param(2048, ("retina.jpg",), marks=pytest.mark.slow),
    ],
)
def test_steps_at_the_edges_of_tiles_are_no_larger_than_inside_tiles(
    tcae_of_photographs, photograph, record_property, size, names
):
    images = [photograph(name, size) for name in names]
    ratios = seam_ratios(tcae_of_photographs, images, 128, None)
    for along, (edges, others) in ratios.items():
        record_property(f"along {along} px", f"edges {edges:.4f}, other lines {others:.4f}")
    assert ratios[1][0] < 1
    # What an eye sees of a step is its mean along some length.
    assert ratios[64][0] < 1.05
    if size == 1024:
        # The measure does see seams: tiles that do not overlap.
        for edges, others in seam_ratios(tcae_of_photographs, images, 128, 128).values():
            assert edges > 1.5 * others


def test_a_tiled_2048_pixel_round_trip_needs_less_than_2_5_times_the_memory_of_512(live_tensors):
    """Width, patch and tile of the paper's model; the depth changes no peak. The image itself is counted."""
    peaks = {}
    with FakeTensorMode():
        model = AutoencoderTC.from_preset("tc-ae-f32c128", encoder_num_layers=(1, 1)).eval()
        for size, tiling in ((512, False), (2048, True)):
            model.use_tiling = tiling
            images = torch.empty(1, 3, size, size)
            with torch.no_grad(), live_tensors(ignore=model.state_dict().values()) as tensors:
                model(images)
            peaks[size] = tensors.peak + images.nbytes
    assert 100e6 < peaks[512] < peaks[2048] < 2.5 * peaks[512], peaks
