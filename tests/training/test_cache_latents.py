"""What `cache_latents` keeps: latents of the images that are there, and statistics that count."""

import json
import os
import shutil

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.latents.calibration import warn_of_latents_without_unit
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.models.adapters.adapter import SCALING_ENTRIES
from tcae_diffusers.models.fingerprint import TokenizerFingerprint, is_calibrated
from tcae_diffusers.training import cache_latents

from ..latent_commands import FOREIGN, TOKENIZER, cache, calibrated, home, run, train
from .test_train_dit_errors import ends_in_one_line

FAST = {"batch_size": 8, "flip": False}


def pictures(folder, *colors):
    """Uncompressed pictures: whatever the colours, all files have one size."""
    for index, color in enumerate(colors):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), color).save(place / f"{index}.bmp")
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    return shutil.copytree(home() / "tokenizer", tmp_path / "tokenizer")


def test_other_images_under_the_same_names_are_another_job_and_a_copy_is_the_same(tmp_path, capsys):
    images = pictures(tmp_path / "images", "red", "green", "blue", "white")
    output = cache(tmp_path / "latents", data=images, batch_size=8)
    manifest = (output / "manifest.json").read_bytes()
    cache(output, data=shutil.copytree(images, tmp_path / "copy"), batch_size=8)
    assert (output / "manifest.json").read_bytes() == manifest
    pictures(images, "red", "green", "blue", "black")
    options = {"tokenizer": home() / "tokenizer", "shard_size": 8, "batch_size": 8, "data": images}
    line = ends_in_one_line(capsys, cache_latents.main, write_statistics=False, output_dir=output, **options)
    assert "another job (different: data_fingerprint)" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest.json is damaged"),
        ("[]", "manifest.json is not that of a latent cache; choose another folder"),
        ('{"kind": "samples"}', "manifest.json is not that of a latent cache; choose another folder"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, content, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    options = {"tokenizer": home() / "tokenizer", "data": home() / "images", "output_dir": tmp_path / "out"}
    assert message in ends_in_one_line(capsys, cache_latents.main, write_statistics=False, **options)
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == [content]


def test_a_dataset_folder_that_exists_is_refused_before_anything_is_encoded(tmp_path, capsys):
    (tmp_path / "dataset").mkdir()
    options = {"tokenizer": home() / "tokenizer", "data": home() / "images", "output_dir": tmp_path / "out"}
    line = ends_in_one_line(capsys, cache_latents.main, dataset_dir=tmp_path / "dataset", **options)
    assert "already exists" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["resolution", "data_resolution"])
def test_a_size_of_nothing_is_refused(tmp_path, capsys, name):
    options = {"tokenizer": home() / "tokenizer", "data": home() / "images", "output_dir": tmp_path / "out"}
    line = ends_in_one_line(capsys, cache_latents.main, **{**options, name: 0})
    assert f"--{name} 0 must be at least 1 pixel" in line


FORMS = {
    "one file": {},
    "shards": {"max_shard_size": "20KB"},
    "pickle": {"safe_serialization": False},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_count_in_whatever_form_the_tokenizer_is_saved(tmp_path, form, dtype):
    torch.manual_seed(0)
    folder = tmp_path / "tokenizer"
    AutoencoderTC(**TOKENIZER).to(dtype).save_pretrained(folder, **FORMS[form])
    before = sorted(folder.iterdir())
    assert (len(before) > 3) == ("shards" in form)
    cache(tmp_path / "latents", **FAST, tokenizer=folder, write_statistics=True)
    latents = LatentCache(tmp_path / "latents")
    tokenizer = AutoencoderTC.from_pretrained(folder)
    assert torch.equal(tokenizer.latent_mean.float(), latents.latent_mean)
    assert torch.equal(tokenizer.latent_std.float(), latents.latent_std)
    assert not torch.equal(latents.latent_std, torch.ones(4)) and sorted(folder.iterdir()) == before
    normalised = LatentCache(tmp_path / "latents", expected_tokenizer=tokenizer).read(range(len(latents)))[0]
    torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_statistics_count_in_every_variant(tmp_path, tokenizer):
    AutoencoderTC.from_pretrained(tokenizer).half().save_pretrained(tokenizer, variant="fp16")
    cache(tmp_path / "latents", **FAST, tokenizer=tokenizer, write_statistics=True)
    expected = LatentCache(tmp_path / "latents").latent_mean
    for variant in (None, "fp16"):
        assert torch.equal(AutoencoderTC.from_pretrained(tokenizer, variant=variant).latent_mean.float(), expected)


def test_statistics_that_would_not_count_are_no_success(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr("tcae_diffusers.data.latents.calibration.write_atomically", lambda *_: None)
    options = {**FAST, "data": home() / "images", "tokenizer": tokenizer, "output_dir": tmp_path / "latents"}
    line = ends_in_one_line(capsys, cache_latents.main, **options)
    assert f"the tokenizer in {tokenizer} does not load with the statistics" in line


def test_a_tokenizer_without_statistics_gets_them_unless_told_otherwise(tmp_path, tokenizer):
    options = {**FAST, "data": home() / "images", "tokenizer": tokenizer}
    run(cache_latents.main, **options, write_statistics=False, output_dir=tmp_path / "latents")
    assert not is_calibrated(AutoencoderTC.from_pretrained(tokenizer))
    run(cache_latents.main, **options, output_dir=tmp_path / "latents")
    assert is_calibrated(AutoencoderTC.from_pretrained(tokenizer))


def test_statistics_of_another_cache_stay_until_told_otherwise(tmp_path, tokenizer, caplog):
    options = {**FAST, "data": home() / "images", "tokenizer": tokenizer}
    run(cache_latents.main, **options, output_dir=tmp_path / "latents")
    first = AutoencoderTC.from_pretrained(tokenizer).latent_mean
    options["data"] = pictures(tmp_path / "images", "red", "green", "blue", "white")
    run(cache_latents.main, **options, output_dir=tmp_path / "others")
    assert torch.equal(AutoencoderTC.from_pretrained(tokenizer).latent_mean, first)
    assert "calibrated with other statistics" in caplog.text and "--write_statistics" in caplog.text
    run(cache_latents.main, "--write_statistics", **options, output_dir=tmp_path / "others")
    mean = AutoencoderTC.from_pretrained(tokenizer).latent_mean
    assert torch.equal(mean, LatentCache(tmp_path / "others").latent_mean) and not torch.equal(mean, first)


def test_a_tokenizer_that_cannot_be_written_is_named(tmp_path, tokenizer, caplog, capsys, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tokenizer and access(path, mode))
    options = {**FAST, "data": home() / "images", "tokenizer": tokenizer, "output_dir": tmp_path / "latents"}
    line = ends_in_one_line(capsys, cache_latents.main, "--write_statistics", **options)
    assert f"{tokenizer} cannot be written; copy the tokenizer" in line and not (tmp_path / "latents").exists()
    run(cache_latents.main, **options)
    assert f"no per-channel statistics will be written: the tokenizer's folder {tokenizer}" in caplog.text


@pytest.mark.parametrize("place", ["", "vae"])
def test_the_latents_of_a_pipeline_stay_those_that_it_was_trained_on(tmp_path, capsys, caplog, place):
    latents = cache(tmp_path / "raw", **FAST)
    train(tmp_path / "run", latents=latents, tokenizer=home() / "tokenizer", max_train_steps=1)
    pipeline = tmp_path / "run" / "pipeline"
    before = (pipeline / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    options = {**FAST, "data": home() / "images", "tokenizer": pipeline / place, "output_dir": tmp_path / "latents"}
    line = ends_in_one_line(capsys, cache_latents.main, "--write_statistics", **options)
    assert f"the transformer of the pipeline {pipeline} was trained on other latents" in line
    run(cache_latents.main, **options)
    assert "no per-channel statistics will be written: the transformer of the pipeline" in caplog.text
    assert (pipeline / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_other_autoencoders_are_cached_without_statistics_and_without_a_word(tmp_path, caplog):
    torch.manual_seed(0)
    FOREIGN["AutoencoderKL"]().save_pretrained(tmp_path / "autoencoder")
    options = {
        **FAST,
        "data": home() / "images",
        "tokenizer": tmp_path / "autoencoder",
        "output_dir": tmp_path / "latents",
    }
    run(cache_latents.main, **options)
    assert (tmp_path / "latents/manifest.json").exists() and "statistics" not in caplog.text


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderDC"])
def test_other_autoencoders_get_one_scale_for_all_channels(tmp_path, name):
    torch.manual_seed(0)
    folder, latents = tmp_path / "autoencoder", tmp_path / "latents"
    FOREIGN[name]().save_pretrained(folder)
    first = load_autoencoder(folder)
    options = {**FAST, "tokenizer": folder, "resolution": 16}
    cache(latents, **options)
    before = LatentCache(latents, expected_tokenizer=first).read(range(4))[0]
    # The same cache, then and now: what it holds does not depend on a scale.
    cache(latents, **options, write_statistics=True)
    scaled = load_autoencoder(folder)
    assert {**first.config, **dict.fromkeys(SCALING_ENTRIES)} == {**scaled.config, **dict.fromkeys(SCALING_ENTRIES)}
    manifest = (latents / "manifest.json").read_bytes()
    cache(latents, **options)
    assert (latents / "manifest.json").read_bytes() == manifest
    cached = LatentCache(latents, expected_tokenizer=scaled)
    assert torch.equal(cached.read(range(4))[0], before)
    everything = cached.read(range(len(cached)))[0].double()
    scaling, shift = adapt(scaled).pipeline_scaling
    assert scaling == pytest.approx(1 / float(everything.std(correction=0)), rel=1e-5)
    assert shift == (pytest.approx(float(everything.mean()), rel=1e-4) if name == "AutoencoderKL" else 0.0)
    fingerprints = [TokenizerFingerprint.of(model) for model in (first, scaled)]
    assert fingerprints[0].difference(fingerprints[1]) is None
    words = f"scaling and shift factors {(scaling, shift)}, not {adapt(first).pipeline_scaling}"
    assert words in fingerprints[0].difference_of_latents(fingerprints[1])
    options = {"max_train_steps": 1, "checkpointing_steps": 1, "latents": latents, "tokenizer": folder}
    train(tmp_path / "run", **options)
    saved = load_autoencoder(tmp_path / "run" / "pipeline" / "vae")
    assert adapt(saved).pipeline_scaling == (scaling, shift)


def test_a_cache_of_before_is_still_the_same_job(tmp_path):
    latents = cache(tmp_path / "latents", **FAST, tokenizer=home() / "tokenizer")
    manifest = latents / "manifest.json"
    # As it has been written ever since.
    assert set(json.loads(manifest.read_text())["tokenizer"]) == {
        *("class_name", "config_sha256", "weights_sha256", "latent_mean", "latent_std")
    }
    content = json.loads(manifest.read_text())
    # Added since; a cache without it is one of the third version.
    assert content.pop("decoding") == 3
    manifest.write_text(json.dumps(content))
    before = manifest.stat().st_mtime_ns
    cache(latents, **FAST, tokenizer=home() / "tokenizer")
    assert manifest.stat().st_mtime_ns == before


def test_a_cache_of_other_pixels_is_another_job(tmp_path, capsys, monkeypatch):
    latents = cache(tmp_path / "latents", **FAST, tokenizer=home() / "tokenizer")
    monkeypatch.setattr("tcae_diffusers.data.latents.writer.DECODING_VERSION", 4)
    options = {**FAST, "data": home() / "images", "tokenizer": home() / "tokenizer"}
    line = ends_in_one_line(capsys, cache_latents.main, **options, output_dir=latents)
    assert "holds latents of another job (different: decoding" in line


def test_one_scale_is_not_written_for_an_encoder_that_says_the_same_of_every_image(tmp_path, capsys):
    torch.manual_seed(0)
    model = FOREIGN["AutoencoderKL"]()
    torch.nn.init.zeros_(model.quant_conv.weight)
    model.save_pretrained(tmp_path / "autoencoder")
    options = {**FAST, "data": home() / "images", "tokenizer": tmp_path / "autoencoder"}
    line = ends_in_one_line(capsys, cache_latents.main, "--write_statistics", **options, output_dir=tmp_path / "l")
    assert "all channels of the latent are constant" in line


def test_an_autoencoder_that_scales_its_latent_itself_is_left_alone(tmp_path, capsys):
    torch.manual_seed(0)
    FOREIGN["AutoencoderRAE"]().save_pretrained(tmp_path / "autoencoder")
    options = {**FAST, "data": home() / "images", "tokenizer": tmp_path / "autoencoder"}
    line = ends_in_one_line(capsys, cache_latents.main, "--write_statistics", **options, output_dir=tmp_path / "l")
    assert "AutoencoderRAE" in line and "no per-channel statistics and no scaling_factor" in line
    assert not (tmp_path / "l").exists()


def test_training_on_latents_without_unit_is_warned_of(tmp_path, tokenizer, caplog):
    model = AutoencoderTC.from_pretrained(tokenizer)
    last = model.encoder.to_latent.linear_out
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.add_(7)
    model.save_pretrained(tokenizer)
    latents = cache(tmp_path / "latents", **FAST, tokenizer=tokenizer)
    options = {"max_train_steps": 1, "checkpointing_steps": 1, "latents": latents, "tokenizer": tokenizer}
    train(tmp_path / "run", **options)
    (record,) = [each for each in caplog.records if "but noise has 0 and 1" in each.message]
    assert str(latents) in record.message and "cache_latents" in record.message
    caplog.clear()
    cache(tmp_path / "latents", **FAST, tokenizer=tokenizer, write_statistics=True)
    train(tmp_path / "calibrated", **options)
    assert "but noise has" not in caplog.text


@pytest.mark.parametrize(
    ("mean", "std", "warned"), [(0.9, 1.9, False), (1.1, 1, True), (0, 2.1, True), (0, 0.4, True)]
)
def test_what_counts_as_a_unit(caplog, mean, std, warned):
    PartialState()
    latents = LatentCache(calibrated()[1])
    scale = latents.latent_std / std
    warn_of_latents_without_unit(latents.normalize_with(latents.latent_mean - mean * scale, scale))
    assert ("but noise has" in caplog.text) == warned
