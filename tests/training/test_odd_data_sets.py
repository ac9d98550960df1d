"""Data sets with rows that hold no image or no label, through the commands that meet them."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tcae_diffusers.evaluation.__main__ import main as evaluate
from tcae_diffusers.training import cache_latents

from ..latent_commands import run
from ..tokenizer_commands import train, trained_tokenizer

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


def save(folder, labels=None, feature=CLASSES, without_image=()):
    """Eight images of 16x16 with `labels`, as `datasets:FOLDER`."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    rows = {"image": [None if i in without_image else Image.fromarray(pixels[i]) for i in range(8)]}
    features = {"image": datasets.Image()}
    if labels is not None:
        rows["kind"], features["kind"] = labels, feature
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder)
    return f"datasets:{folder}?label=kind" if labels is not None else f"datasets:{folder}"


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_training_skips_a_row_without_an_image_within_the_bound(tmp_path, capsys):
    data = save(tmp_path / "set", without_image=[3])
    options = {"max_train_steps": 4, "data": data}
    train(tmp_path / "run", **options, max_broken_images=1)
    assert (tmp_path / "run" / "model").is_dir()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "strict", **options, max_broken_images=0)
    assert caught.value.code == 2
    assert "1 broken images, 0 allowed" in (line := one_line(capsys)) and "set[3]: the row holds no image" in line
    # The same of a path that is gone.
    gone = str(tmp_path / "gone.png")
    datasets.Dataset.from_dict({"file": [gone, f"{gone}.png"]}).save_to_disk(tmp_path / "paths")
    with pytest.raises(SystemExit):
        train(tmp_path / "paths-run", data=f"datasets:{tmp_path}/paths?image=file", max_broken_images=1)
    assert "gone.png" in one_line(capsys)


@pytest.mark.parametrize(
    ("labels", "feature"),
    [([[1, 0]] * 8, datasets.List(datasets.Value("int64"))), ([0, None] * 4, CLASSES), ([0.5] * 8, None)],
    ids=["one-hot", "missing", "fractional"],
)
def test_a_tokenizer_needs_no_labels(tmp_path, labels, feature):
    data = save(tmp_path / "set", labels, feature or datasets.Value("float64"))
    one = train(tmp_path / "one", data=data, heldout_data=data, max_train_steps=2)
    other = train(tmp_path / "other", data=data.partition("?")[0], max_train_steps=2)
    ours, theirs = (load_file(folder / "model" / "diffusion_pytorch_model.safetensors") for folder in (one, other))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_tokenizer_needs_no_class_folders(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    runs = []
    for place in ("classes/cat", "flat"):
        (tmp_path / place).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / place / f"{number}.png")
        data = tmp_path / place.partition("/")[0]
        runs.append(train(tmp_path / f"run-of-{data.name}", data=data, heldout_data=data, max_train_steps=2))
    ours, theirs = (load_file(folder / "model" / "diffusion_pytorch_model.safetensors") for folder in runs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_trackers_take_paths_that_are_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xe9/cat"))
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(folder / f"{number}.png")
    run_folder = train(tmp_path / "run", data=folder.parent, max_train_steps=1, report_to="tensorboard")
    assert (run_folder / "model").is_dir() and any((run_folder / "logs").rglob("events*"))


def test_caching_refuses_a_label_that_is_none_before_anything_is_encoded(tmp_path, capsys):
    data = save(tmp_path / "set", [0, 1, None, 1] * 2)
    with pytest.raises(SystemExit) as caught:
        run(cache_latents.main, tokenizer=trained_tokenizer(), data=data, output_dir=tmp_path / "cache")
    line = one_line(capsys)
    assert caught.value.code == 2 and "row 2 of" in line and "column 'kind' is None" in line
    assert not list((tmp_path / "cache").glob("*"))


def test_caching_and_evaluation_refuse_a_row_without_an_image_by_name(tmp_path, capsys):
    data = save(tmp_path / "set", [0, 1] * 4, without_image=[5])
    with pytest.raises(SystemExit):
        run(cache_latents.main, tokenizer=trained_tokenizer(), data=data, output_dir=tmp_path / "cache")
    assert "set[5]: the row holds no image" in one_line(capsys)
    options = ["--autoencoder", str(trained_tokenizer()), "--data", data, "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        evaluate(["reconstruction", *options, "--extractor", "none"])
    assert "set[5]: the row holds no image" in one_line(capsys)


def test_only_measures_of_classes_ask_for_labels(tmp_path, capsys):
    data = save(tmp_path / "set", [[0, 1]] * 8, datasets.List(datasets.Value("int64")))
    options = ["--autoencoder", str(trained_tokenizer()), "--output", str(tmp_path / "out")]
    assert evaluate(["reconstruction", *options, "--data", data, "--extractor", "none"]) == 0
    assert (tmp_path / "out" / "reconstruction.json").exists()
    with pytest.raises(SystemExit):
        evaluate(["probing", *options, "--train", data, "--test", data])
    assert "row 0 of" in (line := one_line(capsys)) and "column 'kind' holds" in line
