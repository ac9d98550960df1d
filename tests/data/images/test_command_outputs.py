"""Pictures and folders that commands wrote among images are refused, and no command writes among those it reads."""

import shutil

import pytest
from PIL import Image

from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.data.images.sources import build_image_source
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.__main__ import main as evaluation
from tcae_diffusers.evaluation.results.kinds.bench import BenchResult
from tcae_diffusers.evaluation.results.provenance import provenance
from tcae_diffusers.training import cache_latents, train_tcae

from ...latent_commands import calibrated


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(path)


@pytest.fixture(params=["classes", "flat"])
def images(tmp_path, request):
    root = tmp_path / "images"
    for name in ("a", "b", "c") if request.param == "flat" else ("cat/a", "cat/b", "dog/a"):
        picture(root / f"{name}.png")
    # As many data sets have it, also with keys that results have.
    for file in root.rglob("a.png"):
        file.with_suffix(".json").write_text('{"kind": "animal", "age": 3}\n')
    (root / "manifest.json").write_text('{"kind": "ours too"}')
    return root


def results(folder):
    BenchResult(benchmarks={}, **provenance()).save(folder)
    picture(folder / "sheet.png")


def run(folder):
    for name in ("run.json", "arguments.yaml"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    picture(folder / "pictures/step-00000002.png")


def latents(folder):
    shutil.copytree(calibrated()[1], folder)


@pytest.mark.parametrize("write", [results, run, latents])
@pytest.mark.parametrize("place", ["output", "cat/output", "cat/output/deep"])
def test_what_commands_wrote_below_images_is_no_class_and_no_image(images, write, place):
    before = len(open_image_set(images))
    assert len(ImageFolderSource(images)) == before == 3
    write(images / place)
    for opened in (open_image_set, ImageFolderSource):
        with pytest.raises(InputError, match=f"{images / place} holds .* and none of the images of {images}; move"):
            opened(images)
    if write is not latents:
        with pytest.raises(InputError, match=f"{images / place} holds"):
            len(build_image_source(f"datasets:{images}"))


def test_results_beside_flat_images_are_refused_and_beside_class_folders_harmless(images):
    BenchResult(benchmarks={}, **provenance()).save(images)
    if (images / "cat").exists():
        assert len(open_image_set(images)) == 3
        return
    with pytest.raises(InputError, match=r"bench\.json"):
        open_image_set(images)


@pytest.mark.parametrize(
    ("main", "options"),
    [
        (train_tcae.main, ["--config", "openmoji32_nossl", "--train_data", "datasets:IMAGES:train", "--output_dir"]),
        (train_tcae.main, ["--config", "openmoji32", "--heldout_data", "IMAGES", "--output_dir"]),
        (cache_latents.main, ["--tokenizer", "none", "--data", "IMAGES", "--output_dir"]),
        (evaluation, ["generation", "--samples", "none", "--reference", "IMAGES", "--output"]),
        (evaluation, ["reconstruction", "--autoencoder", "none", "--data", "IMAGES", "--output"]),
    ],
)
@pytest.mark.parametrize("inside", ["", "deep/run", "linked"])
def test_no_command_writes_among_the_images_that_it_reads(tmp_path, capsys, main, options, inside):
    images = tmp_path / "images"
    picture(images / "cat/a.png")
    if inside == "linked":
        (images / "real").mkdir()
        (tmp_path / "linked").symlink_to(images / "real")
    output = tmp_path / "linked" if inside == "linked" else images / inside
    with pytest.raises(SystemExit) as stop:
        main([*(word.replace("IMAGES", str(images)) for word in options), str(output)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{output} lies in {images}" in error and "choose a folder elsewhere" in error
    assert not (images / "deep").exists()
