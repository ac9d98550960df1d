"""What is done already is decided by the content of images and models, through links, whatever their dates."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.evaluation.arguments.generation import GenerationArguments
from tcae_diffusers.evaluation.arguments.reconstruction import ReconstructionArguments
from tcae_diffusers.evaluation.commands import reconstruction
from tcae_diffusers.evaluation.results.kinds.reconstruction import ReconstructionResult
from tcae_diffusers.evaluation.results.resumption import inputs_of, run_unless_done

from .conftest import draw_images


@pytest.fixture
def measure(tiny_autoencoder, tmp_path):
    """`measure(data)` gives `(PSNR, whether it was measured now)`."""
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    runs = []

    def counted(arguments):
        runs.append(arguments)
        return reconstruction.run(arguments)

    def measure(data, **changed):
        before = len(runs)
        options = {"autoencoder": str(tmp_path / "vae"), "data": str(data), "extractor": "none", "device": "cpu"}
        arguments = ReconstructionArguments(**{**options, **changed}, output=tmp_path / "out")
        result = run_unless_done(counted, arguments, ReconstructionResult)
        return result.figures[0].value, len(runs) > before

    return measure


def test_what_was_decoded_to_other_pixels_is_measured_again(measure, tmp_path, monkeypatch):
    write_bitmaps(tmp_path / "data" / "a", 0)
    for version, is_new in ((3, True), (3, False), (4, True)):
        monkeypatch.setattr("tcae_diffusers.evaluation.results.resumption.DECODING_VERSION", version)
        assert measure(tmp_path / "data")[1] == is_new


def write_bitmaps(folder, seed):
    """Pictures whose files have one size, whatever they show."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(draw_images(seed, 4)):
        Image.fromarray(pixels).save(folder / f"{index}.bmp")


def replace_first(folder, seed=7):
    """Another picture in the place of the first: the same name, size and date."""
    file = folder / "0.bmp"
    before = file.stat()
    Image.fromarray(draw_images(seed, 1)[0]).save(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_measured_on_the_same_content_is_read_again(measure, tmp_path):
    write_bitmaps(tmp_path / "data" / "a", 0)
    first, is_new = measure(tmp_path / "data")
    assert is_new
    assert measure(tmp_path / "data") == (first, False)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "copy").rename(tmp_path / "data")
    assert measure(tmp_path / "data") == (first, False)
    assert measure(tmp_path / "data", max_images=3)[1]
    stored = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert stored["inputs"]["arguments"]["max_images"] == 3


def test_images_behind_a_linked_class_folder_are_followed(measure, tmp_path):
    write_bitmaps(tmp_path / "elsewhere", 0)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    first, _ = measure(tmp_path / "data")
    replace_first(tmp_path / "elsewhere")
    second, is_new = measure(tmp_path / "data")
    assert is_new and second != first


def test_images_behind_a_data_set_are_followed(measure, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    write_bitmaps(tmp_path / "data" / "a", 0)
    write_bitmaps(tmp_path / "data" / "b", 1)
    first, _ = measure(f"datasets:{tmp_path / 'data'}")
    assert measure(f"datasets:{tmp_path / 'data'}") == (first, False)
    replace_first(tmp_path / "data" / "a")
    second, is_new = measure(f"datasets:{tmp_path / 'data'}")
    assert is_new and second != first


def test_sample_sets_are_known_by_their_content_whatever_they_are_called(tmp_path):
    def inputs(name):
        arguments = GenerationArguments(samples=[f"{name}={tmp_path / 'a'}"], reference=str(tmp_path), output=tmp_path)
        return inputs_of(arguments)["content"]

    write_bitmaps(tmp_path / "a", 0)
    before = inputs("lr=1e-4 after 100 steps")
    assert set(before) == {"samples", "reference"} and inputs("another") == before
    replace_first(tmp_path / "a")
    assert not set(inputs("another").values()) & set(before.values())


def test_networks_are_known_by_the_content_of_their_weights(tmp_path):
    def inputs(*networks):
        arguments = GenerationArguments(
            samples=[str(tmp_path / "a")],
            reference=str(tmp_path),
            heldout=str(tmp_path),
            fdr_networks=list(networks),
            output=tmp_path,
        )
        return inputs_of(arguments)["content"].get("fdr_networks")

    write_bitmaps(tmp_path / "a", 0)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    assert inputs() is None and inputs("inception") == []
    (before,) = inputs("inception", f"dinov2={weights}")
    weights.write_bytes(b"two")
    assert inputs("inception", f"dinov2={weights}") != [before]


def test_a_linked_model_is_measured_again_when_its_weights_change(measure, tiny_autoencoder, tmp_path):
    write_bitmaps(tmp_path / "data" / "a", 0)
    model = tmp_path / "linked"
    model.symlink_to(tmp_path / "vae", target_is_directory=True)
    first, _ = measure(tmp_path / "data", autoencoder=str(model))
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(weights)
    assert measure(tmp_path / "data", autoencoder=str(model)) == (first, False)
    other = type(tiny_autoencoder).from_config(tiny_autoencoder.config)
    other.save_pretrained(tmp_path / "vae")
    second, is_new = measure(tmp_path / "data", autoencoder=str(model))
    assert is_new and not np.isclose(first, second)
