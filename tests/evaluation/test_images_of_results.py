"""Every figure is of the pixels that the command names, wherever they lie and whatever lay there before."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.__main__ import main
from tcae_diffusers.evaluation.report.training_curves import read_scalars
from tcae_diffusers.evaluation.results.reading import collect_results
from tcae_diffusers.evaluation.results.resumption import folder_content, sample_sets_content
from tcae_diffusers.metrics.reference import open_reference_content

from .conftest import draw_images, write_folder


def bitmaps(root, pixels):
    """Uncompressed files: equal names and sizes, whatever the pixels."""
    root.mkdir(exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{index}.bmp")
    return root


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("samples") / "drawn", draw_images(2, 10))


@pytest.fixture
def measure(samples, tmp_path):
    """`measure(reference)` runs `generation` and returns its result; features are kept between calls."""

    def run(reference, *options, samples=(samples,)):
        command = ["generation", "--samples", *map(str, samples), "--reference", str(reference), "--device", "cpu"]
        cache = ["--feature_cache", str(tmp_path / "features")]
        assert main([*command, *cache, "--output", str(tmp_path / "out"), *options]) == 0
        return json.loads((tmp_path / "out" / "generation.json").read_text())

    return run


def distance(result):
    return next(f["value"] for f in result["sets"][0]["figures"] if f["name"].startswith("gFD-efficientnet-lite0"))


def test_features_are_those_of_the_images_that_are_there_now(measure, tmp_path):
    dark, bright = draw_images(3, 12) // 4, draw_images(4, 12) // 2 + 120
    first = measure(bitmaps(tmp_path / "a", dark))
    second = measure(bitmaps(tmp_path / "b", bright))
    assert distance(second) == distance(measure(tmp_path / "b", "--no_feature_cache")) != distance(first)
    # The same folder with other pixels.
    replaced = measure(bitmaps(tmp_path / "a", bright))
    assert distance(replaced) == distance(second)
    assert replaced["reference"]["fingerprint"] == second["reference"]["fingerprint"]
    assert first["reference"]["fingerprint"] != second["reference"]["fingerprint"]


def test_a_reference_of_another_size_is_resized_in_every_layout(measure, tmp_path):
    pixels = draw_images(5, 10, size=96)
    write_folder(tmp_path / "classes", pixels, classes=("only",))
    bitmaps(tmp_path / "flat", pixels)
    np.savez(tmp_path / "set.npz", arr_0=pixels)
    results = [measure(tmp_path / name) for name in ("classes", "flat", "set.npz")]
    assert len({distance(result) for result in results}) == 1
    assert all(result["reference"]["preprocessing"] == "centre crop, resized to 32x32" for result in results)


def test_statistics_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "adm.npz", arr_0=draw_images(0, 2), mu=np.zeros(2048), sigma=np.eye(2048))
    images, statistics = open_reference_content(str(tmp_path / "adm.npz"), (32, 32))
    assert len(images) == 2 and statistics is not None
    with pytest.raises(InputError, match=r"statistics of 32x32 images, and the samples are 64x64"):
        open_reference_content(str(tmp_path / "adm.npz"), 64)


def test_sets_are_called_by_their_folders_and_read_from_any_path(measure, tmp_path, monkeypatch):
    for name in ("lr=1e-4/smp", "smp-cfg1.0", "smp-cfg1.5"):
        write_folder(tmp_path / name, draw_images(6, 8))
    bitmaps(tmp_path / "12:30", draw_images(5, 8))
    monkeypatch.chdir(tmp_path)
    result = measure("12:30", samples=["lr=1e-4/smp", "smp-cfg1.0", "smp-cfg1.5"])
    assert [each["name"] for each in result["sets"]] == ["smp", "smp-cfg1.0", "smp-cfg1.5"]
    assert result["reference"]["images"] == 8 and (tmp_path / "out/samples_smp-cfg1.5.png").is_file()


def test_names_that_are_no_text_end_in_whole_results(tmp_path, tiny_autoencoder, capsys):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/imag\xe9s")
    for index, pixels in enumerate(draw_images(7, 8)):
        folder = os.fsencode(root) + (b"/caf\xe9", b"/tea")[index % 2]
        os.makedirs(folder, exist_ok=True)
        Image.fromarray(pixels).save(os.fsdecode(folder + f"/{index}.png".encode()))
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    output = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sults"))
    shared = ["--device", "cpu", "--output", str(output)]
    assert main(["reconstruction", "--autoencoder", str(tmp_path / "vae"), "--data", root, *shared]) == 0
    assert main(["generation", "--samples", root, "--reference", root, "--no_feature_cache", *shared]) == 0
    assert main(["report", "--results", str(output), "--output", str(output / "report.html")]) == 0
    printed = capsys.readouterr().out
    assert "imag\\xe9s: gFD" in printed and "r\\udce9sults/report.html" in printed
    assert "caf\\xe9" in (output / "per_image.csv").read_text(encoding="utf-8")
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "caf\\xe9" in html and "imag\\udce9s" in html


def test_content_is_known_through_links_and_in_circles(tmp_path):
    images = write_folder(tmp_path / "set", draw_images(0, 4))
    before = folder_content(images)
    os.utime(images / "circles/0000.png", ns=(0, 0))
    os.symlink("..", images / "circles/back")
    assert folder_content(images) == before
    os.symlink(write_folder(tmp_path / "elsewhere", draw_images(1, 2)), images / "linked")
    linked = folder_content(images)
    write_folder(tmp_path / "elsewhere", draw_images(2, 2))
    assert len({before, linked, folder_content(images)}) == 3


def test_content_of_sets_is_that_of_the_paths_and_not_of_their_names(tmp_path):
    write_folder(tmp_path / "lr=1", draw_images(0, 4))
    contents = {sample_sets_content([f"{name}{tmp_path / 'lr=1'}"]) for name in ("", "a=", "b=c=")}
    assert len(contents) == 1


def test_linked_results_and_runs_are_found(measure, tmp_path):
    measure(bitmaps(tmp_path / "set", draw_images(5, 8)))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    (tmp_path / "linked").mkdir()
    for name in ("elsewhere", "run"):
        os.symlink(tmp_path / name, tmp_path / "linked" / name)
    os.symlink("..", tmp_path / "elsewhere" / "back")
    with SummaryWriter(tmp_path / "run" / "logs") as writer:
        writer.add_scalar("train/loss", 1.0, 0)
    assert [result.kind for result in collect_results([tmp_path / "linked"])] == ["generation"]
    assert list(read_scalars(tmp_path / "linked")) == ["train/loss"]
