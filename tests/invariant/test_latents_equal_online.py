"""Cached latents are what the tokenizer encodes, through the real command."""

import json
import shutil

import pytest
import torch

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.multi_crop import to_uint8
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.models.adapters import adapt, load_autoencoder

from ..latent_commands import CLASSES, FOREIGN, NUM_IMAGES, cache, calibrated, home, weights


def images_of_all() -> torch.Tensor:
    source = ImageFolderSource(home() / "images")
    return torch.stack([to_uint8(center_crop(source[index][0], 16)) for index in range(len(source))])


def encode_in_batches_of_the_command(model, images):
    """The same forward passes: shards of 8 images in batches of 3."""
    parts = [part for shard in images.split(8) for part in shard.split(3)]
    with torch.no_grad():
        return torch.cat([adapt(model).encode(part.float() / 127.5 - 1) for part in parts])


def test_cached_latents_equal_online_ones_bit_for_bit():
    tokenizer_folder, latents = calibrated()
    tokenizer = AutoencoderTC.from_pretrained(tokenizer_folder).eval()
    assert not torch.equal(tokenizer.latent_std, torch.ones(4))
    read = LatentCache(latents, expected_tokenizer=tokenizer, use_views=False, verify="sha256")
    images = images_of_all()
    values, labels = read.read(range(NUM_IMAGES))
    assert torch.equal(values, encode_in_batches_of_the_command(tokenizer, images))
    source = ImageFolderSource(home() / "images")
    assert labels.tolist() == [source[index][1] for index in range(NUM_IMAGES)]
    assert list(read.id2label.values()) == list(CLASSES)

    flipped = torch.cat([read.latents_of_shard(shard, "latents_flip") for shard in range(3)])
    normalised = (flipped - read.latent_mean[:, None, None]) / read.latent_std[:, None, None]
    online = encode_in_batches_of_the_command(tokenizer, images.flip(-1))
    assert torch.equal(normalised, online)
    # The latent of the flipped image, not the flipped latent.
    assert not torch.allclose(normalised, values.flip(-1), atol=1e-2)


def test_calibration_gives_unit_variance_and_changes_no_reconstruction():
    tokenizer_folder, _ = calibrated()
    before = AutoencoderTC.from_pretrained(home() / "tokenizer").eval()
    after = AutoencoderTC.from_pretrained(tokenizer_folder).eval()
    images = images_of_all().float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(after(images).sample, before(images).sample, atol=1e-5, rtol=1e-4)
        both = torch.cat([after.encode(images).latent, after.encode(images.flip(-1)).latent])
    torch.testing.assert_close(both.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-5, rtol=0)
    raw, calibrated_weights = weights(home() / "tokenizer"), weights(tokenizer_folder)
    differing = {name for name in raw if not torch.equal(raw[name], calibrated_weights[name])}
    assert differing == {"latent_mean", "latent_std"}


def test_caching_again_with_the_calibrated_tokenizer_gives_the_same_files(tmp_path):
    tokenizer_folder, latents = calibrated()
    again = cache(tmp_path / "again", tokenizer=tokenizer_folder)
    assert json.loads((again / "manifest.json").read_text()) == json.loads((latents / "manifest.json").read_text())


@pytest.mark.parametrize("name", FOREIGN)
def test_any_autoencoder_of_diffusers_can_be_cached(tmp_path, name):
    torch.manual_seed(0)
    FOREIGN[name]().save_pretrained(tmp_path / "autoencoder")
    model = load_autoencoder(tmp_path / "autoencoder")
    # AutoencoderDC names no sample size.
    cache(tmp_path / "latents", tokenizer=tmp_path / "autoencoder", resolution=16, flip=False)
    read = LatentCache(tmp_path / "latents", expected_tokenizer=model)
    assert torch.equal(read.read(range(NUM_IMAGES))[0], encode_in_batches_of_the_command(model, images_of_all()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_latents_are_within_the_stated_rounding_error(tmp_path, dtype):
    _, latents = calibrated()
    half = LatentCache(cache(tmp_path / "half", dtype=dtype), use_views=False)
    exact = LatentCache(latents, use_views=False)
    error = (half.read(range(NUM_IMAGES))[0] - exact.read(range(NUM_IMAGES))[0]).abs().max()
    assert 0 < error <= half.manifest["rounding_error"]["max_abs"]
    assert half.manifest["rounding_error"]["max_abs"] < 0.02 * exact.latent_std.max()
    # Statistics are those of what the encoder gave, before rounding.
    assert torch.equal(half.latent_mean, exact.latent_mean)


def test_augmented_passes_are_functions_of_seed_pass_and_image(tmp_path):
    first = LatentCache(cache(tmp_path / "first", augmented_passes=2))
    again = LatentCache(cache(tmp_path / "again", augmented_passes=2, shard_size=22, batch_size=22))
    other = LatentCache(cache(tmp_path / "other", augmented_passes=2, seed=1))
    assert first.views == ("latents", "latents_flip", "latents_augmented_1", "latents_augmented_2")

    def view(read, name):
        return torch.cat([read.latents_of_shard(shard, name) for shard in range(len(read.manifest["shards"]))])

    for name in first.views[2:]:
        torch.testing.assert_close(view(first, name), view(again, name), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(view(first, name), view(other, name), atol=1e-2)
    assert not torch.allclose(view(first, "latents_augmented_1"), view(first, "latents_augmented_2"), atol=1e-2)
    plain = LatentCache(calibrated()[1])
    assert torch.equal(view(first, "latents"), view(plain, "latents"))


def test_statistics_go_into_the_autoencoder_beside_what_else_its_folder_holds(tmp_path):
    shutil.copytree(home() / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "README.md").write_text("kept")
    cache(tmp_path / "latents", tokenizer=tmp_path / "tokenizer", write_statistics=True)
    written = weights(tmp_path / "tokenizer")
    assert torch.equal(written["latent_std"], LatentCache(tmp_path / "latents").latent_std)
    assert (tmp_path / "tokenizer" / "README.md").read_text() == "kept"
