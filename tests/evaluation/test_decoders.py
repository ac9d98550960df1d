"""Decoders on the same latents: drawn once, decoded by each, compared in pairs; other latents are refused."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from tcae_diffusers.data.images.image_sets import FolderImages
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.trainer.build_autoencoder import with_new_decoder

from .conftest import evaluate

IMAGES = 24


@pytest.fixture(scope="module")
def autoencoders(tiny_autoencoder, tmp_path_factory):
    """A folder with autoencoders that share the encoder of the pipeline's, and some that do not."""
    root = tmp_path_factory.mktemp("autoencoders")
    tiny_autoencoder.save_pretrained(root / "same")
    torch.manual_seed(5)
    light = with_new_decoder(tiny_autoencoder, {"decoder_hidden_size": 16})
    light.save_pretrained(root / "light")
    light.set_latent_statistics(torch.full((4,), 0.1), torch.ones(4))
    light.save_pretrained(root / "statistics")
    with torch.no_grad():
        tiny_autoencoder.encoder.class_token[0, 0, 0] += 1e-6
        tiny_autoencoder.save_pretrained(root / "encoder")
        tiny_autoencoder.encoder.class_token[0, 0, 0] -= 1e-6
    return root


@pytest.fixture
def decoders(pipeline_folder, image_folder, tmp_path):
    """`decoders(output, "light=..", ...)`: the exit code of the command."""

    def run(output, *named, **options):
        command = ["decoders", "--pipeline", pipeline_folder, "--reference", image_folder, "--output", output]
        options = {"num_images": IMAGES, "num_inference_steps": 2, "device": "cpu", **options}
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        return evaluate(*command, "--feature_cache", tmp_path / "cache", "--decoders", *named)

    return run


def pixels(folder):
    images = FolderImages(folder)
    return np.stack([images[index] for index in range(len(images))])


def test_latents_are_drawn_once_and_decoded_by_each(decoders, autoencoders, pipeline_folder, tmp_path, monkeypatch):
    calls, call = [], TCDiTPipeline.__call__

    def counted(self, *arguments, **options):
        calls.append(options["output_type"])
        return call(self, *arguments, **options)

    # The command asks which options the call has.
    counted.__signature__ = inspect.signature(call)
    with monkeypatch.context() as patch:
        patch.setattr(TCDiTPipeline, "__call__", counted)
        output = tmp_path / "out"
        assert decoders(output, f"light={autoencoders / 'light'}", autoencoders / "same", batch_size=8) == 0
    assert calls == ["latent"] * (IMAGES // 8)

    command = ["generate", "--pipeline", pipeline_folder, "--num_images", IMAGES, "--num_inference_steps", 2]
    assert evaluate(*command, "--batch_size", 8, "--device", "cpu", "--output", tmp_path / "alone") == 0
    alone, own, same, light = (
        pixels(folder)
        for folder in (tmp_path / "alone", *(output / "samples" / name for name in ("pipeline", "same", "light")))
    )
    np.testing.assert_array_equal(own, alone)
    np.testing.assert_array_equal(own, same)
    assert (np.abs(light.astype(int) - own).max((1, 2, 3)) > 1).all()
    # Each is a set like those of `generate`: the same command would draw nothing again.
    again = [*command, "--device", "cpu", "--output", output / "samples" / "pipeline"]
    assert evaluate(*again) == 0


def test_a_stock_pipeline_draws_latents_too(tiny_autoencoder, autoencoders, image_folder, tmp_path):
    torch.manual_seed(1)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    sizes |= {"sample_size": 4, "patch_size": 1, "norm_num_groups": 4}
    transformer = DiTTransformer2DModel(**sizes, num_embeds_ada_norm=1000)
    scheduler = DDIMScheduler(clip_sample=False)
    names = {index: f"class {index}" for index in range(1000)}
    stock = DiTPipeline(transformer, tiny_autoencoder, scheduler, id2label=names)
    stock.save_pretrained(tmp_path / "stock")
    shared = ["--pipeline", tmp_path / "stock", "--num_images", 8, "--num_inference_steps", 2, "--device", "cpu"]
    assert evaluate("generate", *shared, "--output", tmp_path / "alone") == 0
    command = ["decoders", *shared, "--reference", image_folder, "--output", tmp_path / "out", "--no_feature_cache"]
    assert evaluate(*command, "--decoders", autoencoders / "light") == 0
    own, alone = pixels(tmp_path / "out" / "samples" / "pipeline"), pixels(tmp_path / "alone")
    assert np.abs(own.astype(int) - alone).max() <= 1


def test_differences_are_paired(decoders, autoencoders, tmp_path, capsys):
    output = tmp_path / "out"
    assert decoders(output, f"light={autoencoders / 'light'}", f"same={autoencoders / 'same'}") == 0
    result = json.loads((output / "generation.json").read_text())
    assert result["kind"] == "generation" and result["settings"]["seed"] == 0
    distances = {
        entry["name"]: next(f for f in entry["figures"] if f["name"] == "gFD-efficientnet-lite0")
        for entry in result["sets"]
    }
    assert list(distances) == ["pipeline", "light", "same"]
    pairs = {(pair["first"], pair["second"]): pair for pair in result["differences"]}
    assert list(pairs) == [("pipeline", "light"), ("pipeline", "same"), ("light", "same")]
    light, same = pairs["pipeline", "light"], pairs["pipeline", "same"]
    assert light["difference"] == pytest.approx(distances["pipeline"]["value"] - distances["light"]["value"])
    assert 0 < light["interval"] < np.hypot(distances["pipeline"]["interval"], distances["light"]["interval"])
    assert (same["difference"], same["interval"], same["larger"]) == (0, 0, False)
    assert light["name"] == same["name"] == "gFD-efficientnet-lite0" and "paired" in light["method"]
    assert "gFD-efficientnet-lite0: pipeline - light = " in capsys.readouterr().out
    assert evaluate("report", "--results", output, "--output", tmp_path / "report.html") == 0
    assert "pipeline − light =" in (tmp_path / "report.html").read_text()


def test_an_interrupted_run_draws_what_is_missing(decoders, autoencoders, tmp_path):
    output, named = tmp_path / "out", f"light={autoencoders / 'light'}"
    assert decoders(output, named) == 0
    sets = {name: output / "samples" / name for name in ("pipeline", "light")}
    content = {name: pixels(folder) for name, folder in sets.items()}
    kept = []
    for name, lost in (("pipeline", range(3, 7)), ("light", range(5))):
        files = sorted(sets[name].rglob("*.png"))
        for index in lost:
            files[index].unlink()
        (sets[name] / "manifest.json").unlink()
        kept += [file for file in files if file.exists()]
    before = {file: file.stat().st_mtime_ns for file in kept}
    assert decoders(output, named) == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    for name, folder in sets.items():
        # Batches of another size round differently.
        assert np.abs(content[name].astype(int) - pixels(folder)).max() <= 1
    # Another seed is another set.
    assert decoders(output, named, seed=1) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder", "another encoder, weights_sha256"),
        ("statistics", "the same encoder, but other latent_mean and latent_std"),
    ],
)
def test_a_decoder_of_other_latents_is_refused(decoders, autoencoders, tmp_path, capsys, name, words):
    assert decoders(tmp_path / "out", autoencoders / name) == 2
    message = capsys.readouterr().err
    assert f"{autoencoders / name} cannot decode the latents of" in message and words in message
    assert not (tmp_path / "out").exists()


def test_bad_names_are_refused(decoders, autoencoders, tmp_path, capsys):
    assert decoders(tmp_path / "out", f"pipeline={autoencoders / 'light'}") == 2
    assert "'pipeline' is the pipeline's own decoder; choose another name" in capsys.readouterr().err
    assert decoders(tmp_path / "out", tmp_path / "nowhere") == 2
    assert f"no autoencoder at {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_only_sets_of_one_seed_and_the_same_labels_are_pairs(
    decoders, autoencoders, pipeline_folder, save_pipeline, image_folder, tmp_path, capsys
):
    def generate(name, *extra):
        command = ["generate", "--pipeline", pipeline_folder, "--num_images", 9, "--num_inference_steps", 1]
        assert evaluate(*command, "--device", "cpu", "--output", tmp_path / name, *extra) == 0
        return tmp_path / name

    def paired(*sets):
        command = ["generation", "--paired", "--reference", image_folder, "--output", tmp_path / "out"]
        return evaluate(*command, "--device", "cpu", "--no_feature_cache", "--samples", *sets)

    first, other, flat = generate("first"), generate("other", "--seed", 1), generate("flat", "--layout", "flat")
    assert paired(first) == 2
    assert "first is alone; name two or more --samples" in capsys.readouterr().err
    for second, words in (
        (other, "first (9 images, seed 0) and other (9 images, seed 1) differ"),
        (flat, "differ in seed, labels or layout"),
        (generate("named", "--pipeline", save_pipeline(["circles", "stars"])), "differ in seed, labels or layout"),
        (image_folder, "does not say which seed it was drawn with"),
    ):
        assert paired(first, second) == 2
        assert words in capsys.readouterr().err
    shutil.copytree(first, tmp_path / "copy")
    assert paired(first, tmp_path / "copy") == 0
    (pair,) = json.loads((tmp_path / "out" / "generation.json").read_text())["differences"]
    # Too few images for an interval.
    assert pair["difference"] == 0 and pair["interval"] is None

    archives = [generate(f"{name}.npz", "--layout", "npz") for name in "ab"]
    assert paired(*archives) == 0
    arrays = dict(np.load(archives[1]))
    np.savez(archives[1], **{**arrays, "arr_0": 255 - arrays["arr_0"]})
    capsys.readouterr()
    assert paired(*archives) == 2
    assert "b does not say which seed it was drawn with" in capsys.readouterr().err
