"""Training at several resolutions and aspect ratios, from images through latents to a transformer, by the commands."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.multi_crop import to_uint8
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.latents.format import LatentCacheError
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.training import cache_latents, finetune_decoder, train_dit, train_tcae

from .. import latent_commands
from ..latent_commands import (
    FOREIGN,
    assert_close,
    assert_same_training_state,
    calibrated,
    fork_ranks,
    home,
    run,
    signalling,
    weights,
)
from ..tokenizer_commands import SMOOTH, assert_close_state, checkpoint, finetune, train

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

SEVERAL = {"extra_resolutions": [32], "aspect_ratio_buckets": True}
# Height and width of what images are cropped to.
SIZES = {(16, 16), (8, 24), (24, 8), (32, 32), (24, 48), (48, 24)}


@functools.cache
def images():
    """22 images of three aspect ratios, of three classes."""
    generator = np.random.default_rng(1)
    for index in range(22):
        height, width = [(40, 40), (30, 60), (60, 30), (44, 40)][index % 4]
        place = home() / "several" / f"class {index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(place / f"{index:02d}.png")
    return home() / "several"


def cache(output, **options):
    return latent_commands.cache(output, data=images(), **{**SEVERAL, **options})


@functools.cache
def latents():
    """Of the tokenizer of other tests; with its tokens."""
    return cache(home() / "several_latents", tokens="tokenizer")


def train_dit_on(output, folder=None, **options):
    small = {"tokenizer": home() / "tokenizer", "transformer": "tc-dit"}
    return latent_commands.train(output, latents=folder or latents(), **{**small, **options})


@functools.cache
def tokenizer(**options):
    name = "-".join(["several", *map(str, options.values())])
    return train(home() / "runs" / name, images(), **SEVERAL, **options)


def test_a_tokenizer_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        training = train_tcae.TokenizerTraining
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, 2))
        train(tmp_path / "run", images(), **SEVERAL)
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    train(tmp_path / "run", images(), **SEVERAL, resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(tokenizer()))
    described = json.loads((tokenizer() / "run.json").read_text())
    assert described["data"].endswith(": 22 images, 6 sizes from 24x8 to 48x24")


def test_images_of_one_shape_train_as_without_buckets(tmp_path):
    plain = train(tmp_path / "plain")
    # All of 20x24 pixels, whose nearest size is the square.
    bucketed = train(tmp_path / "bucketed", aspect_ratio_buckets=True)
    assert_same_training_state(checkpoint(bucketed), checkpoint(plain))


def test_a_step_sees_one_size_and_a_run_all_of_them(tmp_path, monkeypatch):
    seen, forward = [], train_tcae.TokenizerTraining.forward

    def watched(self, batch, step, micro_step):
        seen.append((step, tuple(batch["pixel_values"].shape[-2:]), tuple(batch["global_crops"].shape[-2:])))
        return forward(self, batch, step, micro_step)

    monkeypatch.setattr(train_tcae.TokenizerTraining, "forward", watched)
    options = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "max_train_steps": 24}
    train(tmp_path / "run", images(), **SEVERAL, **options, ssl="dino")
    sizes = {step: {size for number, size, _ in seen if number == step} for step in range(24)}
    assert len(seen) == 48 and all(len(found) == 1 for found in sizes.values())
    assert set().union(*sizes.values()) == SIZES
    # Views of the self-supervised method are squares of --resolution.
    assert {crops for _, _, crops in seen} == {(16, 16)}


@pytest.mark.parametrize("options", [{"ssl": "ibot"}, {"ssl": "mae"}, {"ssl": "none"}], ids=lambda each: each["ssl"])
def test_two_ranks_and_accumulated_images_learn_what_one_rank_learns(tmp_path, options):
    images()
    whole = train(tmp_path / "whole", images(), **SEVERAL, **SMOOTH, **options, train_batch_size=8)
    half = {**SEVERAL, **SMOOTH, **options, "train_batch_size": 4}
    train(tmp_path / "accumulated", images(), **half, gradient_accumulation_steps=2)
    assert fork_ranks(lambda rank: train(tmp_path / "ranks", images(), **half)) == [0, 0]
    for folder in ("accumulated", "ranks"):
        assert_close(weights(checkpoint(tmp_path / folder)), weights(checkpoint(whole)))
        if options["ssl"] == "ibot":
            assert_close_state(tmp_path / folder, whole)


def test_a_decoder_is_fine_tuned_at_several_resolutions(tmp_path, monkeypatch):
    options = {"train_data": images(), "extra_resolutions": [24]}
    with monkeypatch.context() as patch:
        training = finetune_decoder.DecoderTraining
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, 2))
        finetune(tmp_path / "run", **options)
    finetune(tmp_path / "run", **options, resume="latest")
    whole = finetune(tmp_path / "whole", **options)
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))


def test_cached_latents_are_those_of_each_image_at_each_of_its_sizes():
    read = LatentCache(latents(), use_views=False, verify="sha256", with_tokens=True)
    source = ImageFolderSource(images())
    assert {bucket.image_size for bucket in read.buckets} == SIZES and len(read) == 44
    model = load_autoencoder(home() / "tokenizer")
    samples = []
    for number, bucket in enumerate(read.buckets):
        rows = np.flatnonzero(read.bucket_of == number)
        found, labels = read.read(rows)
        tokens = read.read_tokens(rows)
        height, width = bucket.image_size
        assert found.shape[1:] == bucket.latent_shape == (4, height // 8, width // 8)
        assert tokens.shape[1:] == bucket.token_shape == (16, height // 8, width // 8)
        for latent, label, image in zip(found, labels, read.images[rows].tolist(), strict=True):
            picture, expected = source[image]
            pixels = to_uint8(center_crop(picture, bucket.image_size))[None].float() / 127.5 - 1
            with torch.no_grad():
                torch.testing.assert_close(latent, adapt(model).encode(pixels)[0], atol=1e-5, rtol=1e-4)
            assert label == expected
            samples.append((image, height * width > 20 * 20))
    assert sorted(samples) == [(image, large) for image in range(22) for large in (False, True)]
    assert read.latent_shape == (4, 2, 2) and read.token_shape == (16, 2, 2)
    with pytest.raises(ValueError, match="are no batch; read those of one bucket at a time"):
        read.read([0, len(read) - 1])


def test_a_cache_is_the_same_for_two_ranks_and_after_an_interruption(tmp_path, monkeypatch):
    latents()
    assert fork_ranks(lambda rank: cache(tmp_path / "ranks", tokens="tokenizer")) == [0, 0]
    with monkeypatch.context() as patch:
        patch.setattr(cache_latents, "encode_views", signalling(cache_latents.encode_views, 7))
        cache(tmp_path / "stopped", tokens="tokenizer")
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    cache(tmp_path / "stopped", tokens="tokenizer")
    expected = json.loads((latents() / "manifest.json").read_text())
    for folder in ("ranks", "stopped"):
        assert json.loads((tmp_path / folder / "manifest.json").read_text()) == expected


def test_another_job_in_the_folder_of_several_sizes_is_refused(tmp_path, capsys):
    folder = shutil.copytree(latents(), tmp_path / "latents")
    with pytest.raises(SystemExit):
        cache(folder, tokens="tokenizer", extra_resolutions=[24])
    assert "another job (different: transform, buckets)" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["counts", "shape", "image"])
def test_a_manifest_of_other_sizes_than_its_shards_is_refused(tmp_path, damage):
    folder = shutil.copytree(latents(), tmp_path / "latents")
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second = manifest["buckets"][:2]
    if damage == "counts":
        first["count"], second["count"] = first["count"] + 1, second["count"] - 1
        message = "do not cover every image exactly once"
    elif damage == "shape":
        first["latent_shape"], second["latent_shape"] = second["latent_shape"], first["latent_shape"]
        message = "latents in .* expected F32"
    else:
        manifest["transform"]["resolution"] = [16]
        message = "44 samples of 22 images, expected 1 of each"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LatentCacheError, match=message):
        LatentCache(folder)


DITS = {"velocity": {}, "aligned": {"repa_weight": 0.5, "repa_projector": "conv"}}


@functools.cache
def dit(name):
    return train_dit_on(home() / "runs" / f"several {name}", **DITS[name])


@pytest.mark.parametrize("name", DITS)
def test_a_transformer_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr(train_dit, "compute_losses", signalling(train_dit.compute_losses, 2))
        train_dit_on(tmp_path / "run", **DITS[name])
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    train_dit_on(tmp_path / "run", **DITS[name], resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(dit(name)))
    described = json.loads((dit(name) / "run.json").read_text())
    assert len(described["latent_shapes"]) == 6 and described["latent_shape"] == [4, 2, 2]


@pytest.mark.parametrize("name", DITS)
def test_two_ranks_and_accumulation_train_the_transformer_of_one_rank(tmp_path, name):
    expected, half = weights(checkpoint(dit(name))), {**DITS[name], "train_batch_size": 2}
    assert fork_ranks(lambda rank: train_dit_on(tmp_path / "two", **half)) == [0, 0]
    train_dit_on(tmp_path / "accumulated", **half, gradient_accumulation_steps=2)
    for folder in ("two", "accumulated"):
        found = weights(checkpoint(tmp_path / folder))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)


def ends_in_one_line(capsys, main, **options):
    with pytest.raises(SystemExit) as stopped:
        run(main, **options)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_does_not_go_together_is_named(tmp_path, capsys):
    torch.manual_seed(0)
    FOREIGN["AutoencoderRAE"]().save_pretrained(tmp_path / "rae")
    output = tmp_path / "run"
    encoder = {"tokenizer": home() / "tokenizer", "data": images(), "output_dir": output}
    for change, message in [
        ({"extra_resolutions": [20]}, "--extra_resolutions 20 is not a multiple of 8"),
        ({"extra_resolutions": [16], "resolution": 16}, "--extra_resolutions [16] must be all different, and none of"),
        ({"extra_resolutions": [16]}, "--extra_resolutions [16] must be all different, and none of them --resolution"),
        ({"extra_resolutions": [24, 24]}, "--extra_resolutions [24, 24] must be all different"),
        ({"extra_resolutions": [0]}, "--extra_resolutions [0] must be at least 1 pixel each"),
        ({**SEVERAL, "aspect_ratio_divisor": 12}, "--aspect_ratio_divisor 12 is not a multiple of 8"),
        (
            {**SEVERAL, "resolution": 24, "aspect_ratio_divisor": 16},
            "resolution 24 is not a multiple of --aspect",
        ),
        ({"aspect_ratio_divisor": 16}, "--aspect_ratio_divisor 16 has no effect without --aspect_ratio_buckets"),
        ({**SEVERAL, "dataset_dir": tmp_path / "dataset"}, "--dataset_dir makes a dataset of latents of one shape"),
        ({**SEVERAL, "tokenizer": tmp_path / "rae", "resolution": 16}, "AutoencoderRAE resizes images to one size"),
    ]:
        assert message in ends_in_one_line(capsys, cache_latents.main, **{**encoder, **change}), change
        assert not output.exists()
    transformer = {"latents": latents(), "tokenizer": calibrated()[0], "output_dir": output}
    tc_dit = {**transformer, "tokenizer": home() / "tokenizer", "transformer": "tc-dit"}
    for options, message in [
        ({**transformer, "tokenizer": home() / "tokenizer"}, "DiT supports square latents only"),
        ({**tc_dit, "patch_size": 2}, "--patch_size 2 does not divide the latents, some of which are 1x3"),
        (
            {**tc_dit, "timestep_shift_base": 64},
            "--timestep_shift_base 64 takes the shift from the size of",
        ),
        (
            {**tc_dit, "latents": cache(tmp_path / "squares", aspect_ratio_buckets=False), "transformer": "dit"},
            "latents are 2x2, 4x4, and DiT supports a single size only",
        ),
    ]:
        assert message in ends_in_one_line(capsys, train_dit.main, **options), message
        assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra_resolutions": [20]}, "--extra_resolutions 20 is not a multiple of 8"),
        ({**SEVERAL, "latent_equivariance": 0.5}, "--latent_equivariance turns latents, which must be square"),
        (
            {**SEVERAL, "discriminator": "patchgan", "discriminator_layers": 2},
            "trained on at 24x8 pixels, but the losses of this run need at least 12",
        ),
        (
            {"resolution": 32, "extra_resolutions": [16], "latent_equivariance": 0.5, "discriminator": "patchgan"}
            | {"discriminator_layers": 2, "latent_equivariance_min_scale": 0.5},
            "makes images of 8 pixels",
        ),
        ({"extra_resolutions": [8], "latent_equivariance": 0.5}, "a single position, as of 8 pixels here"),
    ],
)
def test_a_tokenizer_that_cannot_have_several_sizes_says_so(tmp_path, capsys, change, message):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", images(), **change)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_stream_has_one_size(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", f"stream:{images()}", **SEVERAL)
    assert stopped.value.code == 2
    assert "is a stream, whose images are all of one size" in capsys.readouterr().err
