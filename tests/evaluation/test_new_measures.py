"""A new measure is one class and one registration: it is in the results, has its floor, and stands in the report."""

import csv
import json
from typing import ClassVar

import numpy as np
import pytest

from tcae_diffusers.metrics.figure import Estimate
from tcae_diffusers.metrics.image_measures import IMAGE_MEASURES, ImageMeasure
from tcae_diffusers.metrics.set_measures import SET_MEASURES, SetMeasure

from .conftest import evaluate


class LargestError(ImageMeasure):
    better: ClassVar = {"largest_error": "lower"}

    def __call__(self, originals, outputs):
        return {"largest_error": (originals.float() - outputs.float()).abs().amax(dim=(1, 2, 3))}

    def figure_name(self, column, height, width):
        return f"largest error of {height}x{width}"


class MeanGap(SetMeasure):
    better: ClassVar = {"mean gap": "lower"}

    def between(self, samples, reference):
        return {"mean gap": Estimate(value=float(np.linalg.norm(samples.mean(0) - reference.mean(0))))}


@pytest.fixture
def registered():
    IMAGE_MEASURES.append(LargestError)
    SET_MEASURES.append(MeanGap())
    yield
    IMAGE_MEASURES.pop()
    SET_MEASURES.pop()


def test_new_measures_reach_results_and_report(registered, tiny_autoencoder, image_folder, other_folder, tmp_path):
    tiny_autoencoder.save_pretrained(tmp_path / "vae")
    common = ["--device", "cpu", "--output", str(tmp_path / "out")]
    reconstruction = ["--autoencoder", str(tmp_path / "vae"), "--data", str(image_folder), "--extractor", "none"]
    assert evaluate("reconstruction", *reconstruction, *common) == 0
    samples = ["--samples", str(image_folder), "--reference", str(other_folder), "--no_feature_cache"]
    assert evaluate("generation", *samples, *common) == 0

    results = {
        kind: json.loads((tmp_path / "out" / f"{kind}.json").read_text()) for kind in ("reconstruction", "generation")
    }
    error = results["reconstruction"]["figures"][-1]
    assert (error["name"], error["better"], error["samples"]) == ("largest error of 32x32", "lower", 30)
    rows = list(csv.DictReader((tmp_path / "out" / "per_image.csv").open()))
    assert error["value"] == pytest.approx(np.mean([float(row["largest_error"]) for row in rows]))
    assert error["interval"] > 0
    gap = results["generation"]["sets"][0]["figures"][-1]
    assert gap["name"] == "mean gap-efficientnet-lite0"
    assert gap["value"] > 0 and gap["floor"]["value"] > 0

    assert evaluate("report", "--results", str(tmp_path / "out"), "--output", str(tmp_path / "report.html")) == 0
    table = (tmp_path / "report.html").read_text().split("All figures")[1]
    assert "largest error of 32x32 ↓" in table
    assert "mean gap-efficientnet-lite0 ↓" in table
