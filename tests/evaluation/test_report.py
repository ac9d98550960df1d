"""The report: one file, everything in it, what licences and honesty ask for visible."""

import itertools
import json
import re

import pytest
from torch.utils.tensorboard import SummaryWriter

from tcae_diffusers.evaluation.results.provenance import provenance
from tcae_diffusers.files import write_json

from .conftest import evaluate

CREDIT = "All emojis designed by OpenMoji. License: CC BY-SA 4.0"


@pytest.fixture(scope="module")
def results(tmp_path_factory, image_folder):
    """Results as the commands write them, with made-up figures."""
    folder = tmp_path_factory.mktemp("results")
    picture = next(image_folder.rglob("*.png")).read_bytes()
    for name in (
        "reconstruction_grid",
        "reconstruction_best",
        "reconstruction_worst",
        "samples_trained",
        "samples_noise",
    ):
        (folder / f"{name}.png").write_bytes(picture)
    psnr = {"name": "PSNR (dB)", "value": 20.25, "samples": 416, "better": "higher", "interval": 0.2}
    psnr["baseline"] = {"name": "the mean image for every image", "value": 12.3}
    data = {"spec": "openmoji:heldout", "height": 32, "width": 32, "attribution": CREDIT}
    autoencoder = {"class": "AutoencoderTC", "latent_shape": [32, 4, 4], "values_per_latent_value": 6.0}
    common = provenance(seed=7)
    reconstruction = {"kind": "reconstruction", "figures": [psnr], "autoencoder": autoencoder, "data": data}
    write_json(folder / "reconstruction.json", reconstruction | common)

    def entry(name, value):
        figure = {"name": "gFD-efficientnet-lite0", "value": value, "samples": 800, "reference_images": 800}
        figure |= {"better": "lower", "floor": {"value": 115.0}, "extractor": {"name": "efficientnet-lite0"}}
        return {
            "name": name,
            "images": 800,
            "figures": [figure],
            "grid": f"samples_{name}.png",
            "grid_rows": ["Flags"],
            "classes": [f"class {index}" for index in range(99)],
        }

    sets = [entry("trained", 300.0), entry("noise", 900.0)]
    write_json(folder / "generation.json", {"kind": "generation", "sets": sets, "reference": data} | common)
    return folder


@pytest.fixture(scope="module")
def html(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with SummaryWriter(folder / "run" / "logs") as writer:
        for step in range(60):
            writer.add_scalar("train/loss", 2.0 / (step + 1), step)
            writer.add_scalar("odd/<tag>", float("nan") if step < 30 else 1.0, step)
    (folder / "commands.txt").write_text("python training/train_tcae.py --seed 3\n")
    arguments = ["report", "--results", str(results), "--runs", f"tokenizer={folder / 'run'}", "--title", "A <title>"]
    arguments += ["--commands", str(folder / "commands.txt"), "--output", str(folder / "report.html")]
    assert evaluate(*arguments) == 0
    return (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "content",
    [
        CREDIT,
        "20.2 dB",
        "gFD-efficientnet-lite0",
        "3.0×",
        "real against real",
        "the mean image for every image",
        "What is minimised.",
        "train_tcae.py --seed 3",
        "seed = 7",
        "What these figures cannot say",
        "A &lt;title&gt;",
        "odd/&lt;tag&gt;",
        "1 of 99 classes",
        "Flags",
    ],
)
def test_the_report_shows(html, content):
    assert content in html


def test_the_report_loads_nothing_from_elsewhere(html):
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in html
    assert "@import" not in html


def test_the_report_can_be_read_without_seeing_it(html):
    assert all(re.search(r'alt="\w+', picture) for picture in re.findall("<img[^>]*>", html))
    assert html.count("<svg ") >= 3
    assert all(re.search(r'role="img" aria-label="[^"]{10,}"', chart) for chart in re.findall("<svg [^>]*>", html))
    assert all("scope=" in head for head in re.findall("<th\\b[^>]*>", html))
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_results_are_json_that_others_can_read(results):
    result = json.loads((results / "generation.json").read_text())
    assert {"kind", "sets", "reference", "command", "date", "settings", "versions", "machine"} <= set(result)
