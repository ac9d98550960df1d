"""A trained model with smaller patches computes what it did wherever a patch holds nothing that they could tell."""

import pytest
import torch

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.finer_patches import with_finer_patches
from tcae_diffusers.models.tcae.autoencoder_tc import AutoencoderTC
from tests.conftest import TINY_CONFIG


def build(**changes):
    torch.manual_seed(0)
    model = AutoencoderTC(**{**TINY_CONFIG, "spatial_compression_ratio": 16, "patch_size": 4, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.set_latent_statistics(torch.randn(4), torch.rand(4) + 0.5)
    return model


def enlarged(tokens, k):
    """Maps `(B, C, h, w)` with every position `k x k` times."""
    return tokens.repeat_interleave(k, 2).repeat_interleave(k, 3)


# The final bottleneck of the coarse model, with patches of 4 pixels, joins 2, 2, 4 and 1 tokens along a side.
CASES = [(2, True, 16), (1, True, 16), (2, False, 16), (2, True, 8)]


@pytest.mark.parametrize(("patch_size", "staged", "ratio"), CASES)
@torch.no_grad()
def test_what_even_patches_say_is_kept(patch_size, staged, ratio):
    coarse = build(staged_compression=staged, spatial_compression_ratio=ratio)
    finer, k = with_finer_patches(coarse, patch_size), 4 // patch_size
    assert (finer.config.patch_size, finer.config.spatial_compression_ratio) == (patch_size, ratio)
    # Patches of one colour each.
    images = enlarged(torch.randn(2, 3, 8, 8), 4)
    torch.testing.assert_close(finer.encoder.patch_embed(images), enlarged(coarse.encoder.patch_embed(images), k))
    # Tokens that are equal where one was.
    side = 4 if staged else 8
    tokens = torch.randn(2, 32, side, side)
    latent = coarse.encoder.to_latent(tokens.flatten(2).mT, (side, side))
    repeated = enlarged(tokens, k).flatten(2).mT
    torch.testing.assert_close(finer.encoder.to_latent(repeated, (side * k, side * k)), latent)
    decoded = coarse.decoder.from_latent(latent).mT.unflatten(2, (side, side))
    found = finer.decoder.from_latent(latent).mT.unflatten(2, (side * k, side * k))
    torch.testing.assert_close(found, enlarged(decoded, k))
    # A token paints a patch of as many pixels less, each the mean of those that were there.
    token = torch.randn(1, 32)
    patches = [m.decoder.proj_out(token).reshape(1, m.config.patch_size, -1, 3).movedim(3, 1) for m in (coarse, finer)]
    torch.testing.assert_close(patches[1], torch.nn.functional.avg_pool2d(patches[0], k))


@torch.no_grad()
def test_everything_else_is_the_same(tmp_path):
    coarse = build().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in coarse.state_dict().items()}
    finer = with_finer_patches(coarse, 2)
    assert finer.dtype == torch.bfloat16 and not finer.training
    changed = {name for name, tensor in finer.state_dict().items() if not torch.equal(tensor, before[name])}
    of_the_decoder = {f"decoder.{layer}.{kind}" for layer in ("proj_out", "from_latent.linear_out") for kind in KINDS}
    assert changed == {"encoder.patch_embed.weight", "encoder.to_latent.linear_in.weight", *of_the_decoder}
    assert all(torch.equal(tensor, before[name]) for name, tensor in coarse.state_dict().items())
    finer.save_pretrained(tmp_path)
    assert AutoencoderTC.from_pretrained(tmp_path).encode(torch.zeros(1, 3, 32, 32)).latent.shape == (1, 4, 2, 2)
    unchanged = with_finer_patches(coarse, 4).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unchanged.items())


KINDS = ("weight", "bias")


def test_a_patch_size_that_the_config_left_out_is_divided_too():
    small = {"hidden_size": 32, "num_attention_heads": 2, "encoder_num_layers": (1, 1)}
    assert with_finer_patches(AutoencoderTC(**small), 4).encoder.patch_embed.kernel_size == (4, 4)


@pytest.mark.parametrize("patch_size", [8, 3, 0, -2, "2", 2.0, True])
def test_patches_that_are_no_parts_are_refused(patch_size):
    with pytest.raises(InputError, match="use a divisor of 4"):
        with_finer_patches(build(), patch_size)
