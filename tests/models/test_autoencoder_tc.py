"""What AutoencoderTC computes: shapes, token features, masks, rotary positions, normalisation, slicing."""

import pytest
import torch

from tcae_diffusers.models.rotary_embedding import apply_axial_rotary_embedding, axial_rotary_embedding
from tcae_diffusers.models.tcae.autoencoder_tc import (
    AutoencoderTCBlock,
    channel_to_space,
    map_to_tokens,
    space_to_channel,
    tokens_to_map,
)


@pytest.mark.parametrize(
    ("overrides", "first_grid", "last_grid"),
    [
        ({}, (16, 24), (8, 12)),
        ({"staged_compression": False}, (16, 24), (16, 24)),
        ({"patch_size": 4}, (8, 12), (4, 6)),
        ({"patch_size": 4, "staged_compression": False}, (8, 12), (8, 12)),
        ({"patch_size": 8, "staged_compression": False}, (4, 6), (4, 6)),
        ({"activation_fn": "gelu", "decoder_num_layers": (0, 1)}, (16, 24), (8, 12)),
    ],
)
def test_tokens_latent_and_image_have_the_promised_shapes(make_tiny_tcae, overrides, first_grid, last_grid):
    model = make_tiny_tcae(**overrides)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features = model.forward_features(images)
        encoded = model.encode(images)
        decoded = model.decode(encoded.latent).sample
    assert (features.first_stage_grid, features.last_grid) == (first_grid, last_grid)
    assert features.first_stage.shape == (2, first_grid[0] * first_grid[1], 32)
    assert features.last.shape == (2, last_grid[0] * last_grid[1], 32)
    assert features.class_token.shape == features.first_stage_class_token.shape == (2, 32)
    assert encoded.latent.shape == features.latent.shape == (2, 8, 4, 6)
    assert decoded.shape == images.shape


def test_encode_and_decode_speak_every_dialect(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        output = tiny_tcae.encode(images)
        for latent in (
            output.latents,
            output.latent_dist.sample(),
            output.latent_dist.sample(torch.Generator().manual_seed(0)),
            output.latent_dist.mode(),
            output[0],
            tiny_tcae.encode(images, return_dict=False)[0],
        ):
            assert torch.equal(latent, output.latent)
        sample = tiny_tcae.decode(output.latent, generator=torch.Generator()).sample
        assert torch.equal(tiny_tcae.decode(output.latent, return_dict=False)[0], sample)
        assert torch.equal(tiny_tcae(images).sample, sample)
        assert torch.equal(tiny_tcae(images, return_dict=False)[0], sample)


@pytest.mark.parametrize(
    ("height", "width", "overrides"),
    [
        (64, 64, {}),
        (96, 2048, {}),
        (2048, 64, {}),
        (2048, 2048, {"patch_size": 32, "staged_compression": False, "encoder_num_layers": (1, 0)}),
    ],
)
def test_any_multiple_of_the_ratio_is_accepted(make_tiny_tcae, height, width, overrides):
    model = make_tiny_tcae(
        **{
            "spatial_compression_ratio": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "encoder_num_layers": (1, 1),
            **overrides,
        }
    )
    with torch.no_grad():
        latent = model.encode(torch.randn(1, 3, height, width)).latent
        assert latent.shape == (1, 8, height // 32, width // 32)
        assert model.decode(latent).sample.shape == (1, 3, height, width)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 250, 256), "height 250 .* multiple of the compression ratio 8.*pad"),
        ((1, 3, 256, 4), "width 4 "),
        ((1, 3, 0, 32), "height 0 "),
        ((1, 4, 32, 32), r"\(1, 4, 32, 32\), expected \(B, 3, H, W\)"),
        ((3, 32, 32), r"\(3, 32, 32\), expected \(B, 3, H, W\)"),
    ],
)
def test_encode_names_the_size_that_does_not_fit(tiny_tcae, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_tcae.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        tiny_tcae.forward_features(torch.zeros(shape))


def test_decode_names_a_latent_that_does_not_fit(tiny_tcae):
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\), expected \(B, 8, h, w\)"):
        tiny_tcae.decode(torch.zeros(1, 4, 4, 4))


# Masks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"staged_compression": False}, {"patch_size": 4}])
def test_nothing_of_a_masked_patch_reaches_any_output(make_tiny_tcae, overrides):
    model = make_tiny_tcae(**overrides)
    patch_size = model.config.patch_size
    grid = 32 // patch_size
    mask = torch.rand(2, grid, grid, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden_pixels = mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]
    images, mask_token = torch.randn(2, 3, 32, 32), torch.randn(32)
    # Not even a NaN gets through: masked pixels take no part in any sum.
    poisoned = images.masked_fill(hidden_pixels, float("nan"))
    with torch.no_grad():
        expected = model.forward_features(images, token_mask=mask, mask_token=mask_token)
        actual = model.forward_features(poisoned, token_mask=mask, mask_token=mask_token)
        visible_changed = model.forward_features(images + ~hidden_pixels, token_mask=mask, mask_token=mask_token)
    for name in ("first_stage", "first_stage_class_token", "last", "class_token", "latent"):
        assert torch.equal(expected[name], actual[name]), name
        assert not torch.allclose(expected[name], visible_changed[name], atol=1e-3), name


def test_the_mask_token_learns_and_masked_pixels_get_no_gradient(tiny_tcae):
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    mask_token = torch.zeros(32, requires_grad=True)
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :4, :8] = True
    tiny_tcae.forward_features(images, mask, mask_token).last.square().sum().backward()
    assert mask_token.grad.abs().sum() > 0
    assert images.grad[:, :, :8, :16].abs().max() == 0
    assert images.grad[:, :, 8:, 16:].abs().min() > 0


@pytest.mark.parametrize(
    ("mask", "mask_token", "message"),
    [
        (torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(32), r"\(1, 8, 8\), expected torch.bool \(1, 16, 16\)"),
        (torch.zeros(1, 16, 16), torch.zeros(32), "torch.float32"),
        (torch.zeros(1, 16, 16, dtype=torch.bool), None, "without mask_token"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tiny_tcae, mask, mask_token, message):
    with pytest.raises(ValueError, match=message):
        tiny_tcae.forward_features(torch.zeros(1, 3, 32, 32), mask, mask_token)


def test_the_class_token_sees_the_image_and_the_latent_sees_the_class_token(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = tiny_tcae.forward_features(images)
        assert not torch.allclose(tiny_tcae.forward_features(-images).class_token, before.class_token, atol=1e-3)
        tiny_tcae.encoder.class_token.copy_(torch.randn(32))
        assert not torch.allclose(tiny_tcae.forward_features(images).latent, before.latent, atol=1e-4)


# Rotary positions ----------------------------------------------------------------------------------------------------


def test_attention_logits_depend_on_row_and_column_offsets_only():
    height, width, head_dim = 5, 7, 16
    tables = axial_rotary_embedding(height, width, head_dim, 100.0, torch.device("cpu"))
    query, key = torch.randn(2, head_dim, dtype=torch.float64)
    rotated = [
        apply_axial_rotary_embedding(vector.expand(1, height * width, 1, head_dim), tables)[0, :, 0]
        for vector in (query, key)
    ]
    logits = (rotated[0] @ rotated[1].T).view(height, width, height, width)
    shifted = logits[1:, 2:, 1:, 2:]
    assert torch.allclose(shifted, logits[:-1, :-2, :-1, :-2], atol=1e-4)
    # Rows and columns are told apart, and so are directions.
    assert not torch.allclose(logits[0, 0, 0, 1], logits[0, 0, 1, 0], atol=1e-3)
    assert not torch.allclose(logits[0, 0, 0, 1], logits[0, 1, 0, 0], atol=1e-3)


def test_a_block_gives_the_same_on_a_shifted_grid():
    torch.manual_seed(0)
    block = AutoencoderTCBlock(32, heads=2, mlp_ratio=4.0, activation_fn="swiglu", eps=1e-6)
    tokens = torch.randn(2, 4 * 6, 32)
    here = axial_rotary_embedding(4, 6, 16, 100.0, torch.device("cpu"))
    larger = axial_rotary_embedding(4 + 9, 6 + 5, 16, 100.0, torch.device("cpu"))
    elsewhere = tuple(table.view(13, 11, -1)[9:, 5:].reshape(24, -1) for table in larger)
    transposed = tuple(table.view(4, 6, -1).transpose(0, 1).reshape(24, -1) for table in here)
    with torch.no_grad():
        assert torch.allclose(block(tokens, here), block(tokens, elsewhere), atol=1e-5)
        assert not torch.allclose(block(tokens, here), block(tokens, transposed), atol=1e-3)


def test_leading_tokens_are_not_rotated():
    tables = axial_rotary_embedding(3, 3, 8, 100.0, torch.device("cpu"), num_leading=1)
    hidden_states = torch.randn(2, 10, 4, 8)
    rotated = apply_axial_rotary_embedding(hidden_states, tables)
    without = apply_axial_rotary_embedding(
        hidden_states[:, 1:], axial_rotary_embedding(3, 3, 8, 100.0, torch.device("cpu"))
    )
    assert torch.equal(rotated[:, :1], hidden_states[:, :1])
    assert torch.equal(rotated[:, 1:], without)
    assert torch.allclose(rotated.norm(dim=-1), hidden_states.norm(dim=-1), atol=1e-5)


# Tokens and maps -----------------------------------------------------------------------------------------------------


def test_space_to_channel_joins_neighbours_and_channel_to_space_undoes_it():
    height, width, channels, factor = 4, 6, 5, 2
    tokens = torch.randn(2, height * width, channels)
    joined = space_to_channel(tokens, (height, width), factor)
    window = tokens.view(2, height, width, channels)[:, 2:4, 4:6].reshape(2, -1)
    assert torch.equal(joined[:, 1 * (width // 2) + 2], window)
    assert torch.equal(channel_to_space(joined, (height // 2, width // 2), factor), tokens)
    assert torch.equal(map_to_tokens(tokens_to_map(tokens, (height, width))), tokens)
    assert tokens_to_map(tokens, (height, width)).is_contiguous(memory_format=torch.channels_last)


def test_the_patch_head_mirrors_the_patch_embedding(tiny_tcae):
    """A pixel comes out where it went in: token (r, c) of the last decoder stage paints patch (r, c)."""
    tokens = torch.zeros(1, 16 * 16, 12)
    tokens[0, 3 * 16 + 5] = torch.arange(12.0)
    pixels = tokens_to_map(channel_to_space(tokens, (16, 16), 2), (32, 32))
    assert pixels[0, :, 6:8, 10:12].flatten(1).T.flatten().tolist() == list(range(12))
    assert pixels.count_nonzero() == 11


# Normalisation and slicing -------------------------------------------------------------------------------------------


def test_latents_are_normalised_inside_encode_and_decode(make_tiny_tcae):
    images = torch.randn(4, 3, 32, 32)
    model = make_tiny_tcae()
    channels = model.config.latent_channels
    with torch.no_grad():
        raw = model.forward_features(images).latent
        model.set_latent_statistics(torch.zeros(channels), torch.ones(channels))
        assert torch.allclose(model.encode(images).latent, raw, atol=1e-6)
        reference = model(images).sample
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3), correction=0)
        model.set_latent_statistics(mean, std)
        normalised = model.encode(images).latent
        assert normalised.mean((0, 2, 3)).abs().max() < 1e-5
        assert (normalised.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
        assert torch.allclose(model.decode(normalised).sample, reference, atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(7), torch.ones(8), r"mean has shape \(7,\), expected \(8,\)"),
        (torch.zeros(8), torch.ones(8, 1), "std has shape"),
        (torch.full((8,), float("nan")), torch.ones(8), "mean holds values that are not finite"),
        (torch.zeros(8), torch.tensor([1.0] * 7 + [0.0]), "channel 7 has 0"),
    ],
)
def test_impossible_latent_statistics_are_refused_and_change_nothing(tiny_tcae, mean, std, message):
    before = tiny_tcae.latent_mean.clone(), tiny_tcae.latent_std.clone()
    with pytest.raises(ValueError, match=message):
        tiny_tcae.set_latent_statistics(mean, std)
    assert torch.equal(tiny_tcae.latent_mean, before[0]) and torch.equal(tiny_tcae.latent_std, before[1])


def test_latent_statistics_follow_the_latent(tiny_tcae):
    """Offloading hooks move no buffers of the outermost module when a pipeline calls encode and decode."""
    latent = torch.empty(1, 8, 2, 2, dtype=torch.float16, device="meta")
    for statistic in tiny_tcae._latent_statistics(latent):
        assert (statistic.device, statistic.dtype) == (latent.device, latent.dtype)


def test_slicing_changes_nothing(tiny_tcae):
    images = torch.randn(3, 3, 32, 48)
    with torch.no_grad():
        latent = tiny_tcae.encode(images).latent
        sample = tiny_tcae.decode(latent).sample
        tiny_tcae.enable_slicing()
        sizes = []
        for module in (tiny_tcae.encoder, tiny_tcae.decoder):
            module.register_forward_hook(lambda module, args, output: sizes.append(args[0].shape[0]))
        assert torch.allclose(tiny_tcae.encode(images).latent, latent, atol=1e-5)
        assert torch.allclose(tiny_tcae.decode(latent).sample, sample, atol=1e-5)
    assert sizes == [1] * 6


def test_an_image_does_not_depend_on_its_batch(tiny_tcae):
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(tiny_tcae(images).sample[1:2], tiny_tcae(images[1:2]).sample, atol=1e-5)
