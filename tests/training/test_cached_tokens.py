"""Tokens that `cache_latents --tokens` stores beside latents: what they are, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.multi_crop import to_uint8
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.models.dino import DINO
from tcae_diffusers.models.efficientnet_lite import EfficientNetLite
from tcae_diffusers.models.target_tokens import resize_token_map
from tcae_diffusers.training import cache_latents

from ..latent_commands import FOREIGN, NUM_IMAGES, cache, calibrated, fork_ranks, home, with_tokens
from .test_train_dit_errors import ends_in_one_line


def images() -> torch.Tensor:
    source = ImageFolderSource(home() / "images")
    pixels = [to_uint8(center_crop(source[index][0], 16)) for index in range(NUM_IMAGES)]
    return torch.stack(pixels).float() / 127.5 - 1


def stored(folder, name):
    return torch.cat([load_file(file)[name] for file in sorted(folder.glob("*.safetensors"))])


@pytest.mark.parametrize("place", ["last", "first_stage"])
def test_tokens_are_the_encoders_of_the_same_view_averaged_to_the_grid_of_the_latent(tmp_path, place):
    latents = with_tokens() if place == "last" else cache(tmp_path / "c", tokens="tokenizer", token_place=place)
    tokenizer = load_autoencoder(calibrated()[0])
    for name, seen in (("tokens", images()), ("tokens_flip", images().flip(-1))):
        with torch.no_grad():
            features = tokenizer.encoder(seen)
        tokens, side = (features.last, 4) if place == "last" else (features.first_stage, 8)
        blocks = tokens.unflatten(1, (2, side // 2, 2, side // 2)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
        assert stored(latents, name).dtype == torch.float16
        torch.testing.assert_close(stored(latents, name).float(), blocks, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(stored(latents, "tokens"), stored(latents, "tokens_flip"), atol=1e-2)
    described = json.loads((latents / "manifest.json").read_text())["tokens"]
    assert described == {
        "network": "tokenizer",
        "place": place,
        "network_grid": [side, side],
        "shape": [16, 2, 2],
        "dtype": "float16",
    }


def test_latents_and_their_statistics_are_those_of_a_cache_without_tokens():
    _, plain = calibrated()
    for name in ("latents", "latents_flip", "labels", "index"):
        assert torch.equal(stored(with_tokens(), name), stored(plain, name))
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (with_tokens(), plain))
    assert ours["statistics"] == theirs["statistics"] and "tokens" not in theirs


@pytest.mark.fresh_process
def test_two_ranks_write_the_files_of_one(tmp_path):
    tokenizer, expected = calibrated()[0], with_tokens()
    assert fork_ranks(lambda rank: cache(tmp_path / "two", tokenizer=tokenizer, tokens="tokenizer")) == [0, 0]
    for file in sorted(expected.iterdir()):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


def dinov2(folder):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_tokens_of_a_frozen_dinov2_are_its_normalised_patch_tokens(tmp_path):
    weights = dinov2(tmp_path / "dinov2")
    options = {"tokens": "dinov2", "token_weights": weights, "token_resolution": 56, "token_dtype": "float32"}
    latents = cache(tmp_path / "latents", flip=False, **options)
    network = DINO(weights, resolution=56)
    with torch.no_grad():
        output = network.network(network.normalize(images())).last_hidden_state
    expected = output[:, 1:].unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(stored(latents, "tokens"), expected, atol=1e-4, rtol=1e-4)
    described = json.loads((latents / "manifest.json").read_text())["tokens"]
    assert described["network"] == network.name and described["resolution"] == 56
    assert len(described["weights_sha256"]) == 64 and described["network_grid"] == [4, 4]
    # The class token is not among them.
    assert not torch.allclose(output[:, :16].mean(1), expected.mean((2, 3)), atol=1e-3)


@pytest.mark.parametrize(("number", "width", "last"), [(0, 320, 15), (2, 352, 20)])
def test_tokens_of_an_efficientnet_work_for_any_autoencoder_and_offline(tmp_path, number, width, last):
    torch.manual_seed(0)
    FOREIGN["AutoencoderKL"]().save_pretrained(tmp_path / "kl")
    options = {"tokens": f"efficientnet-lite{number}", "token_resolution": 64, "augmented_passes": 1}
    latents = LatentCache(cache(tmp_path / "latents", tokenizer=tmp_path / "kl", **options))
    # Of 64 pixels the network makes 2x2 positions, fewer than the 8x8 of this latent: they are kept as they are.
    assert latents.latent_shape == (4, 8, 8) and latents.token_shape == (width, 2, 2)
    resized = torch.nn.functional.interpolate(images(), size=(64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = EfficientNetLite(f"efficientnet-lite{number}").feature_maps(resized, (last,))[0]
    torch.testing.assert_close(stored(latents.path, "tokens").float(), expected, atol=2e-2, rtol=1e-2)
    assert stored(latents.path, "tokens_augmented_1").shape == (NUM_IMAGES, width, 2, 2)


def test_an_autoencoder_kl_has_tokens_of_its_own(tmp_path):
    torch.manual_seed(0)
    FOREIGN["AutoencoderKL"]().save_pretrained(tmp_path / "kl")
    latents = LatentCache(
        cache(tmp_path / "latents", tokenizer=tmp_path / "kl", tokens="tokenizer", token_dtype="float32"),
        use_views=False,
    )
    model = load_autoencoder(tmp_path / "kl")
    with torch.no_grad():
        torch.testing.assert_close(latents.read(range(NUM_IMAGES))[0], adapt(model).encode(images()))
        hidden = model.encoder.conv_in(images())
        for block in model.encoder.down_blocks:
            hidden = block(hidden)
        hidden = model.encoder.mid_block(hidden)
    torch.testing.assert_close(latents.read_tokens(range(NUM_IMAGES)), resize_token_map(hidden, (8, 8)))


def test_the_dataset_holds_tokens_too(tmp_path):
    from datasets import load_from_disk

    cache(tmp_path / "latents", tokens="tokenizer", token_dtype="bfloat16", dataset_dir=tmp_path / "dataset")
    rows = load_from_disk(tmp_path / "dataset").with_format("torch")[:]
    assert torch.equal(rows["tokens_flip"], stored(tmp_path / "latents", "tokens_flip").float())


def test_what_cannot_be_stored_is_named(tmp_path, capsys):
    torch.manual_seed(0)
    for name in ("AutoencoderDC", "AutoencoderKL"):
        FOREIGN[name]().save_pretrained(tmp_path / name)
    good = {"tokenizer": home() / "tokenizer", "data": home() / "images", "output_dir": tmp_path / "latents"}
    kl = {"tokenizer": tmp_path / "AutoencoderKL", "tokens": "tokenizer", "token_place": "first_stage"}
    foreign = {"tokenizer": tmp_path / "AutoencoderDC", "resolution": 16}
    for change, message in (
        ({"tokens": "clip"}, "invalid choice: 'clip'"),
        ({"token_dtype": "float32"}, "--token_dtype float32 must be omitted without --tokens"),
        (
            {"tokens": "tokenizer", "token_weights": "x"},
            "--token_weights x must be omitted unless",
        ),
        ({"tokens": "dinov2", "token_place": "first_stage"}, "--token_place first_stage must be omitted unless"),
        ({"tokens": "dinov2", "token_resolution": 16}, "--token_resolution 16 must be at least 32"),
        (
            {"tokens": "dinov2", "token_weights": tmp_path / "none"},
            "cannot load DINO weights from",
        ),
        ({"tokens": "efficientnet-lite0", "token_weights": tmp_path / "none"}, "cannot load weights of efficientnet"),
        (kl, "--token_place first_stage: AutoencoderKL has tokens at last"),
        ({**foreign, "tokens": "tokenizer"}, "AutoencoderDC does not expose the tokens of its encoder"),
    ):
        line = ends_in_one_line(capsys, cache_latents.main, **{**good, **change})
        assert message in line, line
        assert not (tmp_path / "latents").exists(), change


@pytest.mark.parametrize("tokens_first", [True, False])
def test_a_folder_holds_a_cache_with_tokens_or_one_without(tmp_path, capsys, tokens_first):
    options = [{"tokens": "tokenizer"}, {}]
    first, second = options if tokens_first else options[::-1]
    cache(tmp_path / "latents", **first)
    good = {"tokenizer": home() / "tokenizer", "data": home() / "images", "shard_size": 8, "batch_size": 3}
    good |= {"output_dir": tmp_path / "latents", "write_statistics": False}
    assert "another job (different: tokens)" in ends_in_one_line(capsys, cache_latents.main, **{**good, **second})
