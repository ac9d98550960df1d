"""The linear baseline of equal latent size beside an autoencoder: what it is fitted to, and where it is shown."""

import json
import re

import pytest
from PIL import Image

from tcae_diffusers.data.images.sources import training_split
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.arguments.reconstruction import ReconstructionArguments
from tcae_diffusers.evaluation.results.resumption import inputs_of

from .conftest import draw_images, evaluate


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_autoencoder, make_image_folder):
    root = tmp_path_factory.mktemp("linear")
    tiny_autoencoder.save_pretrained(root / "vae")
    make_image_folder(root / "train", 2, 130)
    make_image_folder(root / "heldout", 3, 20)
    return root


def measure(folders, output, *arguments):
    command = ["reconstruction", "--autoencoder", folders / "vae", "--data", folders / "heldout", "--device", "cpu"]
    assert evaluate(*command, "--output", output, *arguments) == 0
    return json.loads((output / "reconstruction.json").read_text())


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    """Folder of a result whose baseline was fitted to training images."""
    output = tmp_path_factory.mktemp("results") / "tiny"
    measure(folders, output, "--baseline_data", folders / "train")
    return output


def test_every_figure_is_stored_beside_that_of_the_baseline(measured, folders):
    result = json.loads((measured / "reconstruction.json").read_text())
    names = [figure["name"] for figure in result["figures"]]
    assert names == ["PSNR (dB)", "SSIM", "MS-SSIM (2 of 5 scales)", "patch grid", "rFD-efficientnet-lite0"]
    for figure in result["figures"]:
        assert figure["linear"]["name"] == "linear f8c4" and figure["linear"]["value"] > 0
        assert figure["linear"]["interval"] > 0
        assert ("difference_interval" in figure["linear"]) == ("per_image" in figure)
    # Four components of real blocks are far above a model with random weights.
    assert result["figures"][0]["linear"]["value"] > result["figures"][0]["value"] + 3
    baseline = result["linear_baseline"]
    assert (baseline["block"], baseline["components"], baseline["basis"]) == (8, 4, "shared")
    assert baseline["data"]["spec"] == str(folders / "train") and baseline["data"]["images"] == 130
    assert baseline["same_source"] is False and "linear baseline" not in result["not_measured"]
    with Image.open(measured / "reconstruction_linear.png") as picture:
        assert picture.size == Image.open(measured / "reconstruction_grid.png").size


def test_the_report_says_which_is_better_and_by_how_much(measured, tmp_path, folders):
    assert evaluate("report", "--results", measured, "--output", tmp_path / "report.html") == 0
    html = re.sub(r"\s+", " ", (tmp_path / "report.html").read_text())
    figures = json.loads((measured / "reconstruction.json").read_text())["figures"]
    section = html.partition("Against a linear autoencoder")[2].partition("</section>")[0]
    for figure in figures:
        row = next(row for row in section.split("<tr>") if figure["name"] in row)
        for value in (figure["value"], figure["linear"]["value"]):
            assert f">{value:.4g}<" in row
    assert f"{figures[0]['value'] - figures[0]['linear']['value']:+.3g}" in section
    assert "<b>linear f8c4</b> is better" in section and section.count("<img ") == 1
    assert f"one basis for all positions, fitted to 130 images of {folders / 'train'}." in section
    # In the table of all figures and in the card too.
    assert f"; {figures[0]['linear']['value']:.4g} (linear f8c4)" in html
    assert f"the linear baseline of the same latent size reaches {figures[0]['linear']['value']:.1f} dB" in html


def test_without_training_images_it_is_fitted_to_the_measured_source_and_says_so(folders, tmp_path, capsys):
    result = measure(folders, tmp_path, "--extractor", "none", "--data", folders / "train", "--max_images", "30")
    assert result["data"]["images"] == 30 and result["linear_baseline"]["data"]["images"] == 130
    assert result["linear_baseline"]["same_source"] is True
    assert "the source of the measured images too, which favours it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--baseline_data", "none"], "left out by --baseline_data none"),
        ([], "20 images of .* have 320 blocks of 8x8 pixels; at least 1,920 are needed"),
        (["--baseline_data", "{train}", "--baseline_images", "50"], "50 images of .* have 800 blocks"),
        (
            ["--baseline_data", "{train}", "--baseline_basis", "per_position"],
            "130 images of .* have 130 blocks .* at each",
        ),
    ],
)
def test_where_there_is_none_the_result_and_the_report_say_why(folders, tmp_path, capsys, options, reason):
    options = [option.format(train=folders / "train") for option in options]
    result = measure(folders, tmp_path, "--extractor", "none", *options)
    assert re.search(reason, result["not_measured"]["linear baseline"])
    assert not any("linear" in figure for figure in result["figures"]) and result["linear_baseline"] == {}
    assert re.search(f"linear baseline: {reason}", capsys.readouterr().out)
    assert evaluate("report", "--results", tmp_path, "--output", tmp_path / "report.html") == 0
    assert re.search(f"No linear baseline: {reason}", (tmp_path / "report.html").read_text())


def test_a_basis_for_each_position_can_be_asked_for(folders, tmp_path, make_image_folder):
    many = make_image_folder(tmp_path / "many", 4, 1930)
    options = ["--baseline_data", many, "--extractor", "none", "--baseline_basis"]
    values = {}
    for basis in ("shared", "per_position"):
        result = measure(folders, tmp_path / basis, *options, basis)
        assert result["linear_baseline"]["basis"] == basis
        values[basis] = result["figures"][0]["linear"]["value"]
    # The squares are in the middle of the pictures: what a block shows depends on where it is.
    assert values["per_position"] > values["shared"] + 0.1


def test_a_source_that_does_not_exist_and_too_few_images_are_errors(folders, tmp_path, capsys):
    command = ["reconstruction", "--autoencoder", folders / "vae", "--data", folders / "heldout", "--device", "cpu"]
    command += ["--extractor", "none", "--output", tmp_path]
    assert evaluate(*command, "--baseline_data", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert evaluate(*command, "--baseline_images", 1) == 2
    assert "--baseline_images 1 must be at least 2" in capsys.readouterr().err


def test_a_result_is_measured_anew_when_the_images_of_the_baseline_change(folders, tmp_path, make_image_folder):
    def inputs(**options):
        return inputs_of(
            ReconstructionArguments(
                autoencoder=str(folders / "vae"), data=str(folders / "heldout"), output=tmp_path, **options
            )
        )

    train = make_image_folder(tmp_path / "train", 5, 4)
    before = inputs(baseline_data=str(train))
    Image.fromarray(draw_images(6, 1)[0]).save(next(train.rglob("*.png")))
    after = inputs(baseline_data=str(train))
    assert before["arguments"] == after["arguments"] and before["content"] != after["content"]
    content = inputs()["content"]
    assert content["baseline_source"] == content["data"]
    assert "baseline_source" not in inputs(baseline_data="none")["content"]
    assert inputs(baseline_images=5) != inputs() != inputs(baseline_basis="per_position")


def test_a_comparison_shows_a_shared_baseline_once_and_each_difference_from_it(measured, folders, tmp_path, capsys):
    other = tmp_path / "other"
    measure(folders, other, "--baseline_data", folders / "train", "--extractor", "none")
    command = ["compare", "--results", f"a={measured}", f"b={other}", "--output", tmp_path / "out"]
    assert evaluate(*command) == 0
    row = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"][0]
    assert row["name"] == "PSNR (dB)" and set(row["linear"]) == {"a", "b"}
    assert [(pair["first"], pair["second"]) for pair in row["differences"]] == [("a", "b")]
    pairs = row["differences_from_linear"]
    assert [(pair["first"], pair["second"], pair["better"]) for pair in pairs] == [
        (name, "linear f8c4", "linear f8c4") for name in ("a", "b")
    ]
    assert pairs[0]["difference"] == pytest.approx(row["values"]["a"]["value"] - row["linear"]["a"]["value"])
    assert pairs[0]["interval"] == row["linear"]["a"]["difference_interval"]
    assert pairs[0]["method"] == "paired, image by image"
    html = (tmp_path / "out" / "comparison.html").read_text()
    chart = re.search(r'aria-label="(Dots with intervals: a [^"]*)"', html)[1]
    assert chart.count("linear f8c4") == 1
    assert "a − linear f8c4" in html and "b − linear f8c4" in html
    assert "PSNR (dB): a - linear f8c4 = -" in capsys.readouterr().out


def test_baselines_of_one_size_that_were_fitted_to_other_images_stay_apart(measured, folders, tmp_path):
    other = tmp_path / "other"
    measure(folders, other, "--baseline_data", folders / "train", "--baseline_images", "125", "--extractor", "none")
    assert evaluate("compare", "--results", f"a={measured}", f"b={other}", "--output", tmp_path / "out") == 0
    assert "linear f8c4 of b" in (tmp_path / "out" / "comparison.html").read_text()


def test_the_training_images_that_belong_to_heldout_ones(tmp_path, monkeypatch, make_image_folder):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for split in ("train", "test"):
        make_image_folder(tmp_path / "data" / split, 0, 2)
    make_image_folder(tmp_path / "undivided", 0, 2)
    data, plain = f"datasets:{tmp_path / 'data'}", f"datasets:{tmp_path / 'undivided'}"
    assert training_split("openmoji:heldout") == "openmoji:train" and training_split("openmoji:train") is None
    assert training_split(f"{data}:test") == f"{data}:train"
    assert training_split(f"{data}:test[:50%]?image=image&label=") == f"{data}:train?image=image&label="
    for without in (data, f"{data}:train[:1]", f"{data}:train+test", f"{data}:all", f"{plain}:train", str(tmp_path)):
        assert training_split(without) is None
    with pytest.raises(InputError, match="nowhere"):
        training_split(f"datasets:{tmp_path / 'nowhere'}:test")
