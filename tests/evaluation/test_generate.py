"""Drawing samples: image i is a function of the seed and i; interrupted runs go on; labels are balanced."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.distributed import rank_range
from tcae_diffusers.data.images.image_sets import FolderImages, NpzImages
from tcae_diffusers.data.sample_labels import image_seed, label_sequence
from tcae_diffusers.evaluation.pictures.drawing import class_names_of, draw, load_pipeline

from .conftest import evaluate

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def pipeline(pipeline_folder):
    return load_pipeline(pipeline_folder)


def generate(pipeline_folder, output, *extra):
    arguments = ["generate", "--pipeline", str(pipeline_folder), "--output", str(output), "--num_images", "7"]
    return evaluate(*arguments, "--num_inference_steps", "2", "--device", "cpu", *map(str, extra))


def test_an_image_depends_on_its_index_and_not_on_its_batch(pipeline):
    labels = label_sequence([1, 1], 6)
    together = draw(pipeline, labels, [0, 1, 2, 3, 4, 5], seed=3, **SAMPLING)
    alone = np.concatenate([draw(pipeline, labels, [index], seed=3, **SAMPLING) for index in range(6)])
    pairs = np.concatenate([draw(pipeline, labels, part, seed=3, **SAMPLING) for part in ([4, 5], [2, 3], [0, 1])])
    # Batched matrix products round differently, which may move a pixel by one level.
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert np.abs(together[[4, 5, 2, 3, 0, 1]].astype(int) - pairs).max() <= 1
    assert np.abs(together[0].astype(int) - together[2]).max() > 1
    assert np.abs(together.astype(int) - draw(pipeline, labels, [0, 1, 2, 3, 4, 5], seed=4, **SAMPLING)).max() > 1


def test_seeds_differ_between_images_and_runs():
    seeds = {image_seed(seed, index) for seed in range(20) for index in range(200)}
    assert len(seeds) == 4000
    assert max(seeds) < 2**63


def test_labels_are_balanced_in_every_prefix_or_follow_the_data():
    balanced = label_sequence([1, 1, 1], 50)
    for length in range(1, 51):
        counts = np.bincount(balanced[:length], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(label_sequence([600, 300, 100], 100)).tolist() == [60, 30, 10]
    assert np.bincount(label_sequence([600, 300, 100], 100)[:50], minlength=3).tolist() == [30, 15, 5]
    assert len(label_sequence([5, 3, 1], 7)) == 7


@pytest.mark.parametrize(("count", "ranks"), [(7, 1), (7, 2), (2, 3), (50_000, 7)])
def test_rank_ranges_cover_every_index_once(count, ranks):
    assert [index for rank in range(ranks) for index in rank_range(count, rank, ranks)] == list(range(count))


def test_an_interrupted_run_goes_on_where_it_was(pipeline_folder, tmp_path):
    output = tmp_path / "samples"
    assert generate(pipeline_folder, output) == 0
    files = sorted(output.rglob("*.png"))
    assert [file.parent.name for file in files] == ["circles"] * 4 + ["squares"] * 3
    before = {file: file.read_bytes() for file in files}
    untouched = files[1].stat().st_mtime_ns
    files[0].unlink()
    (output / "manifest.json").unlink()
    assert generate(pipeline_folder, output, "--batch_size", 3) == 0
    assert files[1].stat().st_mtime_ns == untouched
    with Image.open(files[0]) as image:
        assert image.size == (32, 32)
    assert set(output.rglob("*.png")) == set(before)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["images"] == 7
    assert manifest["seed"] == 0
    assert FolderImages(output).labels == [0] * 4 + [1] * 3


def test_other_settings_do_not_mix_into_one_folder(pipeline_folder, tmp_path, capsys):
    assert generate(pipeline_folder, tmp_path / "samples") == 0
    assert generate(pipeline_folder, tmp_path / "samples", "--seed", 1) == 2
    assert "seed: 0 before, 1 now" in capsys.readouterr().err


def test_all_layouts_hold_the_same_images(pipeline_folder, tmp_path):
    assert generate(pipeline_folder, tmp_path / "folder") == 0
    assert generate(pipeline_folder, tmp_path / "flat", "--layout", "flat") == 0
    assert generate(pipeline_folder, tmp_path / "set.npz", "--layout", "npz") == 0
    flat, archive = FolderImages(tmp_path / "flat"), NpzImages(tmp_path / "set.npz")
    assert archive.labels == [0, 1, 0, 1, 0, 1, 0]
    for index in range(7):
        np.testing.assert_array_equal(flat[index], archive[index])
    labels = json.loads((tmp_path / "flat" / "manifest.json").read_text())["files"]
    assert [entry["label"] for entry in labels] == archive.labels
    in_classes = FolderImages(tmp_path / "folder")
    np.testing.assert_array_equal(in_classes[4], flat[1])
    # What numpy itself reads is the same archive.
    np.testing.assert_array_equal(np.load(tmp_path / "set.npz")["arr_0"][3], flat[3])
    assert not (tmp_path / "set.parts").exists()


def test_baselines_are_sample_sets_too(pipeline_folder, image_folder, tmp_path):
    assert generate(pipeline_folder, tmp_path / "trained") == 0
    assert generate(pipeline_folder, tmp_path / "untrained", "--baseline", "untrained") == 0
    trained, untrained = FolderImages(tmp_path / "trained"), FolderImages(tmp_path / "untrained")
    assert any((trained[index] != untrained[index]).any() for index in range(7))

    assert generate(pipeline_folder, tmp_path / "mean", "--baseline", "class-mean", "--data", image_folder) == 0
    means, real = FolderImages(tmp_path / "mean"), FolderImages(image_folder)
    circles = np.mean([real[index] for index in range(len(real)) if real.labels[index] == 0], axis=0)
    np.testing.assert_array_equal(means[0], circles.round().astype(np.uint8))
    np.testing.assert_array_equal(means[0], means[1])


def test_class_names_come_from_the_pipeline(pipeline):
    assert class_names_of(pipeline) == ["circles", "squares"]


def test_an_untrained_transformer_that_predicts_something_else_is_another_set(pipeline_folder, tmp_path, capsys):
    """Its weights are the same."""
    other = shutil.copytree(pipeline_folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "prediction_type": "flow_sample"}))
    assert generate(pipeline_folder, tmp_path / "set", "--baseline", "untrained") == 0
    assert generate(other, tmp_path / "set", "--baseline", "untrained") == 2
    assert "prediction_type: 'flow_prediction' before, 'flow_sample' now" in capsys.readouterr().err
