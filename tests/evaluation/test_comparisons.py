"""Side by side: which differences count, how many steps a curve needs, sweeps and whole comparisons that resume."""

import csv
import json
import re

import numpy as np
import pytest
import torch
import yaml

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.arguments.guidance_sweep import sweep_points
from tcae_diffusers.evaluation.commands.compare import equal_budgets
from tcae_diffusers.evaluation.commands.convergence import curve_folder
from tcae_diffusers.evaluation.results.figure_differences import comparison_table
from tcae_diffusers.evaluation.results.kinds.generation import GenerationResult
from tcae_diffusers.evaluation.results.kinds.reconstruction import ReconstructionResult
from tcae_diffusers.evaluation.results.reading import collect_results, read_result
from tcae_diffusers.evaluation.results.speed_up import compare_curves, describe_speed_up, speed_up, steps_to_reach
from tcae_diffusers.files import write_json

from ..latent_commands import FOREIGN
from .conftest import TINY_AUTOENCODER, evaluate

SMALL = ["--num_images", "24", "--num_inference_steps", "2", "--device", "cpu"]


def curve(*pairs, interval=None):
    points = [{"steps": steps, "value": value} for steps, value in pairs]
    return points if interval is None else [{**point, "interval": interval} for point in points]


def test_steps_are_interpolated_on_a_logarithmic_axis():
    assert steps_to_reach([100, 10_000], [40.0, 20.0], 30.0) == (pytest.approx(1000), True)
    assert steps_to_reach([100, 1000], [40.0, 20.0], 20.0) == (1000, True)
    assert steps_to_reach([100, 1000], [40.0, 20.0], 50.0) == (100, False)
    assert steps_to_reach([100, 1000], [40.0, 20.0], 19.0) == (None, False)
    # A curve that rises again has still reached the level where it first did.
    assert steps_to_reach([1, 10, 100], [40.0, 20.0, 30.0], 20.0) == (10, True)


def test_speed_up_is_the_ratio_of_steps_at_equal_quality_or_says_that_there_is_none():
    slow, fast = curve((1000, 50.0), (10_000, 30.0)), curve((1000, 30.0), (10_000, 10.0))
    levels = compare_curves({"slow": slow, "fast": fast}, "slow")
    assert [entry["level"] for entry in levels] == [50.0, 30.0]
    assert levels[-1]["curves"]["fast"]["factor"] == pytest.approx(10.0)
    assert levels[0]["curves"]["fast"] == pytest.approx(
        {"reached": True, "steps": 1000, "factor": 1, "at_least": True}
    )
    assert compare_curves({"slow": slow, "fast": fast}, "fast")[-1]["curves"]["slow"] == {
        "reached": False,
        "lowest": 30.0,
    }
    uncertain = speed_up(curve((1000, 32.0), (10_000, 29.0), interval=2.0), 30.0, 10_000)
    assert uncertain["factor_range"][0] is None
    assert uncertain["factor_range"][1] > uncertain["factor"]
    # The lower end is below the level at the first point already.
    bound = speed_up(curve((1000, 32.0), (10_000, 29.0), interval=3.0), 30.0, 10_000)
    assert "not reached and at least 10.00x" in describe_speed_up("a", bound, 30.0)


def result(folder, subject, figures, per_image=None, spec="openmoji:heldout"):
    folder.mkdir(exist_ok=True)
    if per_image is not None:
        with open(folder / "per_image.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["index", "psnr"])
            writer.writerows(enumerate(per_image))
    data = {"spec": spec, "fingerprint": "x", "images": 50}
    path = folder / "reconstruction.json"
    return ReconstructionResult(figures=figures, autoencoder={}, data=data, subject=subject, path=path)


def figure(value, interval=None, name="PSNR (dB)", better="higher", samples=50):
    entry = {"name": name, "value": value, "samples": samples, "better": better, "per_image": "psnr"}
    return entry if interval is None else {**entry, "interval": interval}


def test_a_difference_counts_if_it_is_larger_than_its_interval(tmp_path):
    def pair(first, second):
        results = [result(tmp_path / name, name, [entry]) for name, entry in (("a", first), ("b", second))]
        (row,) = comparison_table(results)
        return row["differences"][0]

    assert pair(figure(20.0, 0.3), figure(20.6, 0.4))["better"] == "b"
    close = pair(figure(20.0, 0.3), figure(20.4, 0.4))
    assert (close["larger"], close["better"], close["interval"]) == (False, None, pytest.approx(0.5))
    assert pair(figure(3.0, 0.1, "rFD-x", "lower"), figure(4.0, 0.1, "rFD-x", "lower"))["better"] == "a"
    assert pair(figure(20.0), figure(25.0, 0.1))["larger"] is None


def test_the_same_images_are_compared_one_by_one(tmp_path):
    generator = np.random.default_rng(0)
    first = generator.normal(20, 4, 50)
    second = first + generator.normal(0.3, 0.2, 50)
    wide = 1.96 * 4 / np.sqrt(50)
    results = [
        result(tmp_path / name, name, [figure(values.mean(), wide)], per_image=values)
        for name, values in (("a", first), ("b", second))
    ]
    (row,) = comparison_table(results)
    (pair,) = row["differences"]
    assert pair["better"] == "b"
    assert pair["interval"] == pytest.approx(1.96 * (first - second).std(ddof=1) / np.sqrt(50), rel=1e-6)
    assert pair["interval"] < wide / 5


def test_figures_under_other_conditions_are_never_subtracted(tmp_path):
    results = [
        result(tmp_path / "a", "a", [figure(20.0, 0.1)]),
        result(tmp_path / "b", "b", [figure(25.0, 0.1, samples=60)]),
        result(tmp_path / "c", "c", [figure(25.0, 0.1)], spec="openmoji:train"),
    ]
    assert [row["differences"] for row in comparison_table(results)] == [[], [], []]


def test_two_results_of_one_subject_are_named_and_not_chosen_from(tmp_path):
    results = [result(tmp_path / name, "a", [figure(20.0, 0.1)]) for name in ("first", "second")]
    with pytest.raises(InputError, match=r"a has two results for PSNR .*first and .*second; pass only one of them"):
        comparison_table([*results, result(tmp_path / "b", "b", [figure(25.0, 0.1)])])


def test_generators_are_compared_at_the_most_steps_that_all_have():
    assert equal_budgets({"a": {1: "", 2: "", 4: ""}, "b": {2: "", 3: ""}}) == {"a": 2, "b": 2}
    assert equal_budgets({"a": {1: "", 4: ""}, "b": {3: ""}}) == {"a": 4, "b": 3}
    assert equal_budgets({}) == {}


def test_a_sweep_draws_each_point_once_and_resumes(pipeline_folder, image_folder, tmp_path, capsys):
    assert sweep_points([2.0, 1.0], [(0.0, 1.0), (0.1, 0.8)]) == [
        (1.0, (0.0, 1.0)),
        (2.0, (0.0, 1.0)),
        (2.0, (0.1, 0.8)),
    ]
    output = tmp_path / "sweep"
    command = ["guidance_sweep", "--pipeline", str(pipeline_folder), "--scales", "1", "2", "--intervals", "0.1:0.8"]
    command += ["--reference", str(image_folder), "--feature_cache", str(tmp_path / "cache"), *SMALL]
    assert evaluate(*command, "--output", str(output)) == 0
    result = json.loads((output / "guidance_sweep.json").read_text())
    settings = [(point["guidance_scale"], point["guidance_interval"]) for point in result["points"]]
    assert settings == [(1.0, [0.0, 1.0]), (2.0, [0.1, 0.8])]
    assert "guidance scale" in (output / "guidance_sweep.html").read_text()
    files = [output / point["folder"] / "results" / "generation.json" for point in result["points"]]
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    assert evaluate(*command, "--output", str(output)) == 0
    assert files[0].stat().st_mtime_ns == times[0]
    assert json.loads((output / "guidance_sweep.json").read_text())["points"] == result["points"]
    reversed_interval = [word.replace("0.1:0.8", "0.8:0.1") for word in command]
    assert evaluate(*reversed_interval, "--output", str(output)) == 2
    assert "'0.8:0.1'" in capsys.readouterr().err


def test_a_whole_comparison_runs_from_yaml_and_skips_what_is_done(
    pipeline_folder, image_folder, other_folder, tmp_path, capsys
):
    plan = {
        "tokenizers": {
            "first/one": {
                "autoencoder": str(pipeline_folder),
                "pipelines": {100: str(pipeline_folder), 200: str(pipeline_folder)},
            },
            "second": {"autoencoder": str(pipeline_folder), "pipelines": {100: str(pipeline_folder)}},
        },
        "train": str(other_folder),
        "test": str(image_folder),
        "feature_cache": str(tmp_path / "cache"),
        "epochs": 1,
        "max_images": 12,
        "num_images": 24,
        "num_inference_steps": 1,
        "device": "cpu",
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = ["compare", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    assert evaluate(*command) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows = {row["name"]: row for row in comparison["rows"]}
    assert {"PSNR (dB)", "gFD-efficientnet-lite0", "linear probe, latent", "isotropy of the latent"} <= set(rows)
    # One model twice: no difference of anything may be found.
    assert not any(pair["larger"] for row in comparison["rows"] for pair in row["differences"])
    assert rows["PSNR (dB)"]["differences"][0]["method"] == "paired, image by image"
    # 100 steps, which both have: a difference at unequal budgets would be none of the tokenizers'.
    assert rows["gFD-efficientnet-lite0"]["conditions"]["DiT steps"] == 100
    convergence = json.loads((tmp_path / "out" / "convergence.json").read_text())
    assert [point["steps"] for point in convergence["curves"]["first/one"]] == [100, 200]
    assert convergence["levels"][0]["curves"]["second"]["factor"] == pytest.approx(1.0)
    html = (tmp_path / "out" / "comparison.html").read_text()
    # An accuracy means little without that of a constant answer.
    majority = rows["linear probe, latent"]["baseline"]
    assert majority["name"] == "the largest class for every image" and 0 < majority["value"] < 1
    for content in (
        "Side by side",
        "(the largest class for every image: 0.5)",
        "Reconstruction: first/one",
        "How fast a generator learns",
        "Generated images",
    ):
        assert content in html

    for stored in collect_results([tmp_path / "out"]):
        assert stored.to_json() == json.loads(stored.path.read_text())

    measured = tmp_path / "out" / "first-one" / "probing" / "probing.json"
    before = measured.stat().st_mtime_ns
    (tmp_path / "out" / "second" / "latents" / "latents.json").unlink()
    assert evaluate(*command) == 0
    assert measured.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "second" / "latents" / "latents.json").is_file()

    folders = {"x": tmp_path / "out" / "first-one", "y": tmp_path / "out" / "second"}
    merged = [f"{name}={folder / 'reconstruction'}" for name, folder in folders.items()]
    assert evaluate("compare", "--results", *merged, "--output", str(tmp_path / "merged")) == 0
    assert "paired" in (tmp_path / "merged" / "comparison.json").read_text()

    capsys.readouterr()
    # The first one has samples after 100 and after 200 steps: which are meant is not for us to choose.
    merged = [f"{name}={folder}" for name, folder in folders.items()]
    assert evaluate("compare", "--results", *merged, "--output", str(tmp_path / "ambiguous")) == 2
    assert "x has two results for gFD" in capsys.readouterr().err

    generated = tmp_path / "out" / "second" / "generation" / "100" / "results" / "generation.json"
    curves = ["--curve", "a", f"100={generated}", "--curve", "b", f"50={generated.parent}", f"100={generated}"]
    assert evaluate("convergence", *curves, "--output", str(tmp_path / "curves")) == 0
    assert "b reaches" in (output := capsys.readouterr().out) and "after 50 steps: 2.00x" in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tokenizers: {a: {autoencoder: x}}\nnumimages: 3", "unknown key numimages"),
        ("train: x", "tokenizers is missing"),
        ("tokenizers: {a: {pipelines: {}}}", "tokenizer 'a': autoencoder is missing"),
        ("tokenizers: {a: {autoencoder: x, pipelines: {final: y}}}", "'DiT steps: folder'"),
        ("tokenizers: {a: {autoencoder: x, pipelines: {5: null}}}", "'DiT steps: folder', got {5: None}"),
        ("tokenizers: {a: {autoencoder: 3}}", "plan.yaml: tokenizer 'a': autoencoder: 3 is a int, expected str"),
        ("tokenizers: {a: {autoencoder: x}}\nnum_images: 2e3", "plan.yaml: num_images: '2e3' is a str, expected int"),
        ("tokenizers: {a: {autoencoder: x}}\nbatch_size: '8'", "batch_size: '8' is a str, expected int"),
        ("tokenizers: {a: {autoencoder: x}}\ntrain: null", "train: None is a NoneType, expected str"),
        (
            "tokenizers: {a: {autoencoder: x}}\nguidance_interval: [0.1]",
            "guidance_interval: [0.1] is a list, expected a list of 2",
        ),
        (
            "tokenizers: {a: {autoencoder: x}}\nguidance_interval: [0.1, 0.8]",
            "plan.yaml: --guidance_interval (0.1, 0.8) must be omitted unless --guidance_scale is above 1",
        ),
        ("tokenizers: {a: {autoencoder: x}}\nmeasures: latents", "measures: 'latents' is a str, expected a list"),
        ("tokenizers: {a: {autoencoder: x}}\nmeasures: [fid]", "unknown measure fid"),
        (
            "tokenizers: {a: {autoencoder: x}}\nfdr_networks: [dinov2]",
            "plan.yaml: fdr_networks ['dinov2'] have no effect without heldout; name both",
        ),
        (
            "tokenizers: {a: {autoencoder: x}}\nobject_points: 5",
            "plan.yaml: object_points 5 have no effect without object_finder; name both",
        ),
        (
            "tokenizers: {a: {autoencoder: x}}\nobject_finder: y\nmeasures: [latents]",
            "plan.yaml: object_finder y has no effect without the measure probing",
        ),
        (
            "tokenizers: {a: {autoencoder: x}}\nobject_finder: /nowhere/y",
            "plan.yaml: cannot load a segmentation model from /nowhere/y",
        ),
        (
            "tokenizers: {a: {autoencoder: x}}\nheldout: y\nfdr_networks: [vgg]",
            "plan.yaml: --fdr_networks ['vgg'] must be some of inception, efficientnet-lite0",
        ),
        ("tokenizers: {a: {autoencoder: x, pipelines: {true: y}}}", "'DiT steps: folder', got {True: 'y'}"),
        ("tokenizers: {a: {autoencoder: x}}\nmeasures: []", "plan.yaml: measures is empty; expected one of"),
        ("tokenizers: {a: {autoencoder: x}}\nepochs: 0", "plan.yaml: --epochs 0 must be at least 1"),
        ("tokenizers: {a: {autoencoder: x}}\nmax_images: 1", "plan.yaml: --max_images 1 must be at least 2"),
        ("tokenizers: {a: {autoencoder: x}}\ndevice: foo", "plan.yaml: --device foo cannot be used here"),
        ("tokenizers: {a: {autoencoder: x}}\nextractor: vgg", "plan.yaml: extractor 'vgg' is unknown; expected one"),
        ("tokenizers: {a: {autoencoder: x}}\nextractor_weights: gone", "extractor_weights gone does not exist"),
        ("tokenizers: {a: {autoencoder: x}}\nseed: 1\nseed: 2", "key 'seed' is given twice"),
        ("tokenizers: {a/b: {autoencoder: x}, 'a b': {autoencoder: x}}", "would share a folder"),
        ("a: [", "cannot read comparison"),
        ("- 1", "expected keys and values"),
    ],
)
def test_a_bad_comparison_file_is_named(tmp_path, capsys, content, message):
    (tmp_path / "plan.yaml").write_text(content)
    assert evaluate("compare", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_another_encoder_is_not_measured_under_its_name(pipeline_folder, image_folder, tmp_path, capsys):
    FOREIGN["AutoencoderKL"]().save_pretrained(tmp_path / "kl")
    entry = {"autoencoder": str(tmp_path / "kl"), "pipelines": {5: str(pipeline_folder)}}
    plan = {"tokenizers": {"KL": entry}, "train": str(image_folder), "test": str(image_folder), "device": "cpu"}
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump({**plan, "measures": ["generation"], "num_images": 8, "num_inference_steps": 1})
    )
    assert evaluate("compare", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"tokenizer 'KL': the pipeline {pipeline_folder} was not trained on latents of {tmp_path / 'kl'}" in error
    assert not (tmp_path / "out").exists()


def test_points_that_cannot_share_a_curve_are_refused(tmp_path, capsys):
    def generation(name, samples, sets=("one",)):
        entries = [figure(100.0, 5.0, "gFD-x", "lower", samples), figure(0.5, 0.1, "precision-x", "higher", samples)]
        for place, entry in enumerate(entries):
            entry["value"] += place + samples
        drawn = [{"name": each, "figures": entries, "images": samples, "grid": "samples.png"} for each in sets]
        for place, entry in enumerate(drawn):
            entry["figures"] = [{**each, "value": each["value"] + 10 * place} for each in entries]
        write_json(tmp_path / f"{name}.json", {"kind": "generation", "reference": {"spec": "r"}, "sets": drawn})
        return tmp_path / f"{name}.json"

    first, second = generation("few", 500), generation("many", 800)
    command = ["convergence", "--output", str(tmp_path / "out"), "--curve", "a"]
    assert evaluate(*command, f"10={first}", f"20={second}") == 2
    assert "samples 800 and 500" in capsys.readouterr().err
    for points, message in (
        (["10"], "not STEPS=PATH"),
        ([f"10={first}", f"10={first}"], "two points at 10"),
        ([f"10={tmp_path}"], "neither a generation.json nor a pipeline"),
        ([], "has no points"),
    ):
        assert evaluate(*command, *points) == 2
        assert message in capsys.readouterr().err
    assert evaluate(*command, f"10={first}", "--figure", "precision-x") == 2
    assert "--figure precision-x is better when higher" in capsys.readouterr().err
    # Of several sets a curve is the one of its name, and no other.
    both = generation("both", 500, sets=("b", "a"))
    assert evaluate(*command, f"10={both}") == 0
    values = {entry["name"]: entry["figures"][0]["value"] for entry in json.loads(both.read_text())["sets"]}
    (point,) = json.loads((tmp_path / "out" / "convergence.json").read_text())["curves"]["a"]
    assert point["value"] == values["a"] != values["b"]
    assert evaluate("convergence", "--output", str(tmp_path / "out"), "--curve", "c", f"10={both}") == 2
    assert "several sets of samples (b, a), and none is called c" in capsys.readouterr().err


def test_results_of_one_folder_keep_their_tables_and_pictures_apart(pipeline_folder, image_folder, tmp_path):
    torch.manual_seed(3)
    AutoencoderTC(**TINY_AUTOENCODER).save_pretrained(tmp_path / "other")
    images = ["--data", image_folder, "--device", "cpu", "--extractor", "none", "--baseline_data", "none"]
    for place in ("together", "apart"):
        for name, autoencoder in {"a": pipeline_folder, "b": tmp_path / "other"}.items():
            output = tmp_path / place / (f"{name}.json" if place == "together" else name)
            assert evaluate("reconstruction", "--autoencoder", autoencoder, *images, "--output", output) == 0
        results = [f"{name}={tmp_path / place / name}{'.json' * (place == 'together')}" for name in "ab"]
        assert evaluate("compare", "--results", *results, "--output", tmp_path / place / "out") == 0
        shown = [result.split("=", 1)[1] for result in results]
        assert evaluate("report", "--results", *shown, "--output", tmp_path / place / "report.html") == 0
    together, apart = (
        json.loads((tmp_path / place / "out" / "comparison.json").read_text())["rows"]
        for place in ("together", "apart")
    )
    assert [row["differences"] for row in together] == [row["differences"] for row in apart]
    assert all(pair["interval"] > 0 for row in together for pair in row["differences"])
    # Each result's own pictures are in the report.
    pages = [(tmp_path / place / "report.html").read_text() for place in ("together", "apart")]
    pictures = [set(re.findall(r"data:image/png;base64,[^\"]+", page)) for page in pages]
    assert pictures[0] == pictures[1] and len(pictures[0]) > 2


def test_probes_that_were_fitted_otherwise_are_not_compared(
    pipeline_folder, image_folder, other_folder, make_image_folder, tmp_path, capsys
):
    more = make_image_folder(tmp_path / "more", 5, 20)
    common = ["probing", "--autoencoder", pipeline_folder, "--test", image_folder, "--device", "cpu"]
    runs = {"a": (other_folder, 1), "b": (more, 1), "c": (other_folder, 2), "d": (other_folder, 1)}
    for name, (train, epochs) in runs.items():
        assert evaluate(*common, "--train", train, "--epochs", epochs, "--output", tmp_path / name) == 0
    results = [f"{name}={tmp_path / name}" for name in runs]
    assert evaluate("compare", "--results", *results, "--output", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    found = [sorted(row["values"]) for row in rows if row["name"] == "linear probe, tokens"]
    assert sorted(found) == [["a", "d"], ["b"], ["c"]]
    capsys.readouterr()
    assert evaluate(*common, "--train", image_folder, "--output", tmp_path / "same") == 2
    assert "are the same images" in capsys.readouterr().err


def test_the_order_of_curves_is_no_setting(pipeline_folder, image_folder, tmp_path, capsys):
    command = ["convergence", "--reference", image_folder, *SMALL, "--output", tmp_path / "out", "--baseline", "a b"]
    curves = [["--curve", "a b", f"1={pipeline_folder}"], ["--curve", "a/b", f"1={pipeline_folder}"]]
    assert evaluate(*command, *curves[0], *curves[1]) == 0
    assert len({curve_folder(name) for name in ("a b", "a/b", "a-b", "", "\udcff")}) == 5
    first = json.loads((tmp_path / "out" / "convergence.json").read_text())["curves"]
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("generation.json")}
    assert len(times) == 2
    assert evaluate(*command, *curves[1], *curves[0]) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("generation.json")} == times
    assert json.loads((tmp_path / "out" / "convergence.json").read_text())["curves"] == first


def test_a_report_compares_distances_of_equally_many_samples_only(
    image_folder, other_folder, make_image_folder, tmp_path
):
    equal = make_image_folder(tmp_path / "equal", 7, 24)
    few = make_image_folder(tmp_path / "few", 8, 10)
    command = ["generation", "--samples", f"first={other_folder}", f"equal={equal}", f"few={few}", "--device", "cpu"]
    assert evaluate(*command, "--reference", image_folder, "--no_feature_cache", "--output", tmp_path / "out") == 0
    result = read_result(tmp_path / "out" / "generation.json", GenerationResult)
    # Images at no distance, as real ones are from themselves, are no number of times closer.
    perfect = next(entry for entry in result.sets if entry.name == "equal")
    distance = next(figure for figure in perfect.figures if figure.name.startswith("gFD"))
    value = distance.value
    for rounding in (0.0, -7e-15, 1.4e-14):
        distance.value = rounding
        assert len(result.cards()) == 1
    distance.value = value
    labels = [card.label for card in result.cards()]
    assert len(labels) == 2 and labels[1].endswith("real images than equal")
    chart = result.shown()["chart"]["svg"]
    assert ">equal<" in chart and ">few<" not in chart
