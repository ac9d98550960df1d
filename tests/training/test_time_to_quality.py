"""Time to quality: recipes, crossings, records, tables, and the whole benchmark on a tiny tokenizer."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.errors import InputError
from tcae_diffusers.training import bench
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.benchmarks import time_to_quality
from tcae_diffusers.training.markdown_tables import markdown_table
from tcae_diffusers.training.time_to_quality import unit
from tcae_diffusers.training.time_to_quality.recipes import Recipe, parse_recipes
from tcae_diffusers.training.time_to_quality.records import first_crossing
from tcae_diffusers.training.time_to_quality.table import table

from ..latent_commands import home, reset_accelerate
from ..tokenizer_commands import OPTIONS, TINY


def checks(*values):
    return [{"step": 10 * i, "cpu_s": 60.0 * i, "wall_s": 120.0 * i, "value": value} for i, value in enumerate(values)]


def test_the_first_crossing_is_interpolated_between_its_two_checks():
    rising = checks(10.0, 18.0, 22.0, 19.0, 25.0)
    assert first_crossing(rising, 20.0, rising=True) == {"step": 15.0, "cpu_s": 90.0, "wall_s": 180.0}
    assert first_crossing(rising, 22.0, rising=True) == {"step": 20.0, "cpu_s": 120.0, "wall_s": 240.0}
    assert first_crossing(checks(700.0, 500.0, 300.0), 450.0, rising=False)["step"] == 12.5
    assert first_crossing(rising, 10.0, rising=True)["step"] == 0
    assert first_crossing(rising, 26.0, rising=True) is None
    assert first_crossing([], 1.0, rising=True) is None


def test_the_clock_stands_while_something_untimed_runs(monkeypatch):
    now = {"cpu": 0.0, "wall": 0.0}
    monkeypatch.setattr(unit.time, "process_time", lambda: now["cpu"])
    monkeypatch.setattr(unit.time, "perf_counter", lambda: now["wall"])

    def work(cpu, wall):
        now["cpu"] += cpu
        now["wall"] += wall

    clock = unit.Clock()
    work(5, 5)
    clock.resume()
    work(1, 2)
    clock.untimed(work)(100, 200)
    work(3, 4)
    assert clock.read() == (4, 6)
    clock.pause()
    work(9, 9)
    assert clock.read() == (4, 6)


def test_a_recipe_is_a_preset_with_changes():
    text = 'a=openmoji32,learning_rate=1e-3,autoencoder_overrides={"patch_size": 4,"hidden_size": 96},dit.num_layers=2'
    recipe = Recipe.parse(text)
    assert recipe.text() == text
    assert recipe.tokenizer_options() == [
        *("--config", "openmoji32", "--learning_rate", "1e-3"),
        *("--autoencoder_overrides", '{"patch_size": 4,"hidden_size": 96}'),
    ]
    assert recipe.dit_options("openmoji32_dit") == ["--config", "openmoji32_dit", "--num_layers", "2"]
    coarse = Recipe.parse('a=openmoji32,first.ssl=none,autoencoder_overrides={"patch_size": 2},first.seed_=1')
    assert coarse.tokenizer_options(first=True) == ["--config", "openmoji32", "--ssl", "none", "--seed_", "1"]
    assert coarse.tokenizer_options() == ["--config", "openmoji32", "--autoencoder_overrides", '{"patch_size": 2}']
    assert Recipe.parse(coarse.text()) == coarse
    several = Recipe.parse("a=openmoji32,discriminator_diff_augment=color translation")
    assert several.tokenizer_options()[-3:] == ["--discriminator_diff_augment", "color", "translation"]


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (["openmoji32"], r"openmoji32: expected NAME=CONFIG"),
        (["a/b=openmoji32"], r"a/b=openmoji32: expected NAME=CONFIG"),
        (["a=openmoji32,seed=1"], r"seed is decided by the benchmark"),
        (["a=openmoji32,dit.gfd_steps=1"], r"gfd_steps is decided by the benchmark"),
        (["a=openmoji32,first.seed=1"], r"seed is decided by the benchmark"),
        (["a=openmoji32,first.ssl=none,autoencoder=b"], r"starts from the model of the first run; omit autoencoder"),
        (
            ["b=openmoji32,first.heldout_data=openmoji:train"],
            r"first.heldout_data is openmoji:train, and heldout_data o",
        ),
        (
            ["b=openmoji32,first.train_data=openmoji:all"],
            r"first.train_data is openmoji:all, and train_data openmoji:tr",
        ),
        (["a=openmoji32", "a=openmoji64"], r"a is given twice"),
        (["a=openmoji32", "b=openmoji32,heldout_data=openmoji:train"], r"a: openmoji:heldout, b: openmoji:train"),
        (["a=tc_ae_f32c128_imagenet256,heldout_data=", "b=openmoji32"], r"same heldout_data only"),
    ],
)
def test_recipes_that_cannot_be_compared_are_refused(recipes, message):
    with pytest.raises(InputError, match=message):
        parse_recipes(BenchArguments(recipe=recipes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "a=no_such_preset"], "no such preset"),
        (["--recipe", "a=openmoji32,learning_rat=1"], "did you mean --learning_rate"),
        (["--recipe", "a=openmoji32,dit.num_layer=1", "--gfd", "300"], "did you mean --num_layers"),
        (["--seeds", "1", "1"], "--seeds [1, 1] must be all different"),
        (["--check_steps", "0"], "--check_steps 0 must be at least 1"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--gfd", "-1"], "--gfd -1.0 must be positive"),
        (["--gfd", "100", "--gfd_samples", "4"], "--gfd_samples 4 must be at least 8"),
        (["--seconds", "-1"], "--seconds -1.0 must be 0 or more"),
    ],
)
def test_bad_options_end_in_one_line(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        bench.main(["time_to_quality", "--records", str(tmp_path), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def record(recipe, seed, minutes, processor="one", heldout="16 images", content="abc"):
    """As if 20 dB was reached after so many CPU minutes, at half the speed of the wall; `None` if never."""
    crossing = None if minutes is None else {"step": 1.0, "cpu_s": 60 * minutes, "wall_s": 120 * minutes}
    return {
        "recipe": recipe,
        "seed": seed,
        "crossings": {"20 dB": crossing},
        "measures": {"psnr": heldout},
        "settings": {"content": {"heldout_data": content, "train_data": recipe}},
        "machine": {"processor": processor},
        "checks": {"psnr": checks(10.0, 19.5 if minutes is None else 21.0)},
    }


def test_the_table_compares_seed_by_seed():
    rows = table(
        {
            "before": [record("before", 0, 4.0), record("before", 1, 8.0)],
            "after": [record("after", 0, 1.0), record("after", 1, 8.0)],
            "never": [record("never", 0, 2.0), record("never", 1, None)],
        },
        ["20 dB"],
    )
    assert rows["before"] == {
        "seeds": "0 1",
        "CPU min to 20 dB": "6.00 (4.00-8.00)",
        "wall min to 20 dB": "12.00 (8.00-16.00)",
    }
    assert rows["after"]["sooner to 20 dB, CPU"] == "2.00 (1.00-4.00)x"
    assert rows["never"]["CPU min to 20 dB"] == "reached by 1 of 2; best 21.00 dB"
    assert rows["never"]["sooner to 20 dB, CPU"] == "-"
    # The other way round, one had not reached it at its end, after one minute: the other took five.
    bounds = table({"never": [record("never", 1, None)], "after": [record("after", 1, 5.0)]}, ["20 dB"])
    assert bounds["after"]["sooner to 20 dB, CPU"] == bounds["after"]["sooner to 20 dB, wall"] == "over 0.20x"
    other_seed = table({"never": [record("never", 1, None)], "after": [record("after", 0, 8.0)]}, ["20 dB"])
    assert other_seed["after"]["sooner to 20 dB, CPU"] == "-"
    # From 10 to 21 dB in one minute: a level that was not asked for counts all the same.
    unasked = table({"before": [record("before", 0, 4.0)], "after": [record("after", 0, 1.0)]}, ["18.8 dB", "22 dB"])
    assert unasked["after"]["CPU min to 18.8 dB"] == "0.80" and unasked["after"]["sooner to 18.8 dB, CPU"] == "1.00x"
    assert unasked["after"]["CPU min to 22 dB"] == "reached by 0 of 1; best 21.00 dB"
    printed = markdown_table(rows)
    assert printed.splitlines()[0] == (
        "| | seeds | CPU min to 20 dB | wall min to 20 dB | sooner to 20 dB, CPU | sooner to 20 dB, wall |"
    )
    assert len({line.count("|") for line in printed.splitlines()}) == 1


def test_records_of_other_machines_or_images_are_not_compared():
    for other in ({"processor": "two"}, {"heldout": "8 images"}, {"content": "abd"}):
        with pytest.raises(InputError, match="a and b differ in"):
            table({"a": [record("a", 0, 1.0)], "b": [record("b", 0, 1.0, **other)]}, ["20 dB"])


def test_the_parent_starts_each_unit_with_all_of_its_options():
    """What `command_of_unit` leaves out, a child would take from the defaults."""
    given = BenchArguments(
        names=["time_to_quality"],
        recipe=["a=openmoji32,seed_of=1"],
        seeds=[3],
        psnr=[10.0, 11.0],
        gfd=300.0,
        dit_config="openmoji32_tc_dit",
        gfd_samples=16,
        gfd_reference="openmoji:heldout",
        check_steps=7,
        records="elsewhere",
        rerun=True,
    )
    argv = time_to_quality.command_of_unit(given, Recipe.parse(given.recipe[0]), 3)
    read = parse_arguments(BenchArguments, argv[3:])
    assert vars(read) == {**vars(given), "records": read.records} and str(read.records) == "elsewhere"


def test_who_begins_changes_with_the_seed(tmp_path):
    recipes = [Recipe("a", "x"), Recipe("b", "x")]
    units = time_to_quality.units_without_record(BenchArguments(records=tmp_path), recipes)
    assert [(recipe.name, seed) for recipe, seed in units] == [
        *(("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2))
    ]


@pytest.fixture
def study(tmp_path):
    """Options of a study of tiny tokenizers on a folder of images."""
    values = {**OPTIONS, "autoencoder_overrides": TINY, "train_data": str(home() / "images")}
    values["heldout_data"] = values["train_data"]
    decided = ("heldout_steps", "heldout_images", "report_to", "checkpointing_steps")
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({name: value for name, value in values.items() if name not in decided}))
    yield config, ["time_to_quality", "--check_steps", "2", "--records", str(tmp_path / "records")]
    reset_accelerate()


def read(folder, name):
    return json.loads((folder / "records" / f"{name}.json").read_text())


def test_two_recipes_train_in_processes_until_their_last_level(study, tmp_path, capsys):
    config, options = study
    recipes = [f"quick={config},learning_rate=1e-3", f"slow={config},learning_rate=1e-9,final_learning_rate=1e-9"]
    options = [*options, "--recipe", *recipes, "--seeds", "0", "--psnr", "1", "13.25"]
    assert bench.main(options) == 0
    printed = capsys.readouterr().out
    assert "| quick | 0 |" in printed and "CPU min to 13.25 dB" in printed
    quick, slow = read(tmp_path, "quick-seed0"), read(tmp_path, "slow-seed0")
    # Noise on noise has 13.24 dB before any training.
    assert quick["crossings"]["1 dB"]["step"] == slow["crossings"]["1 dB"]["step"] == 0
    assert [check["step"] for check in slow["checks"]["psnr"]] == [0, 2, 4, 6]
    assert slow["crossings"]["13.25 dB"] is None
    assert 0 < quick["crossings"]["13.25 dB"]["step"] <= quick["checks"]["psnr"][-1]["step"] < 6
    assert quick["settings"]["tokenizer"]["learning_rate"] == 1e-3
    assert "22 images" in quick["measures"]["psnr"] and "16x16" in quick["measures"]["psnr"]
    assert quick["commit"] and quick["machine"]["torch_threads"] == 1
    times = [check["cpu_s"] for check in slow["checks"]["psnr"]]
    assert times[0] == 0 and times == sorted(times) and times[-1] > 0
    # What is there is not trained again, and only stands for what it was measured with.
    (tmp_path / "records" / "quick-seed0.log").unlink()
    assert bench.main(options) == 0
    assert not (tmp_path / "records" / "quick-seed0.log").exists()
    with pytest.raises(SystemExit):
        bench.main([*options, "--check_steps", "3"])
    assert "was measured with tokenizer.heldout_steps 2, now it is 3" in capsys.readouterr().err


def test_a_record_stands_for_the_images_that_it_was_measured_on(study, tmp_path, capsys):
    config, options = study
    images = shutil.copytree(home() / "images", tmp_path / "images")
    options = [*options, "--recipe", f"a={config},heldout_data={images}", "--seeds", "0", "--psnr", "1"]
    assert bench.main(options) == 0
    first = next(images.rglob("*.png"))
    shutil.copy(next(file for file in images.rglob("*.png") if file != first), first)
    with pytest.raises(SystemExit):
        bench.main(options)
    assert "was measured with content.heldout_data" in capsys.readouterr().err


def test_a_record_stands_for_the_weights_that_it_began_with(study, tmp_path, capsys):
    config, options = study
    weights = shutil.copytree(home() / "tokenizer", tmp_path / "weights")
    named = f"a={config},autoencoder={weights},autoencoder_overrides={{}}"
    options = [*options, "--recipe", named, "--seeds", "0", "--psnr", "1"]
    assert bench.main(options) == 0
    file = weights / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(SystemExit):
        bench.main(options)
    assert "was measured with content.tokenizer.autoencoder" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_named_before_anything_is_trained(study, tmp_path, monkeypatch, capsys):
    config, options = study
    monkeypatch.setattr(unit, "_train_tokenizer", lambda *arguments: pytest.fail("trained"))
    for recipe, reference, message in (
        (f"a={config}", str(tmp_path / "nowhere"), "nowhere does not exist"),
        (f"a={config},train_data=stream:{home() / 'images'}", str(home() / "images"), "is a stream, which only"),
    ):
        with pytest.raises(SystemExit):
            bench.main([*options, "--recipe", recipe, "--seeds", "0", "--gfd", "1", "--gfd_reference", reference])
        assert message in capsys.readouterr().err


def test_the_clock_goes_on_through_latents_and_transformer(study, tmp_path, monkeypatch):
    config, options = study
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "sample_num_inference_steps": 2}
    small |= {"repa_weight": 0.5, "repa_projector_width": 8}
    dit = ",".join(f"dit.{key}={value}" for key, value in {**small, "max_train_steps": 3}.items())
    options += ["--recipe", f"tiny={config},{dit}", "--seeds", "4", "--psnr", "1", "--gfd", "1"]
    options += ["--gfd_samples", "8", "--gfd_reference", str(home() / "images")]
    cached, run = [], unit.cache_latents.run
    monkeypatch.setattr(unit.cache_latents, "run", lambda arguments: cached.append(arguments) or run(arguments))
    assert bench.main(options) == 0
    measured = read(tmp_path, "tiny-seed4")
    # The model that a recipe starts from may bring statistics of other latents, or need a scale.
    assert [arguments.write_statistics for arguments in cached] == [True]
    # The tokenizer goes to its end although 1 dB was reached at once, and nothing reaches a distance of 1.
    assert [check["step"] for check in measured["checks"]["psnr"]] == [0, 2, 4, 6]
    assert [check["step"] for check in measured["checks"]["gfd"]] == [0, 2, 3]
    assert measured["checks"]["gfd"][0]["cpu_s"] > measured["checks"]["psnr"][-1]["cpu_s"]
    assert measured["crossings"]["gFD 1"] is None
    assert measured["measures"]["gfd"].startswith("gFD-efficientnet-lite0")


def test_a_recipe_of_two_runs_goes_on_with_the_model_of_the_first(study, tmp_path):
    config, options = study
    finer = 'autoencoder_overrides={"patch_size":2}'
    coarse = f'first.autoencoder_overrides={{"patch_size":4}},first.learning_rate=1e-9,first.max_train_steps=4,{finer}'
    slow = "learning_rate=1e-9,final_learning_rate=1e-9"
    recipe = f"twice={config},{coarse},first.final_learning_rate=1e-9,{slow}"
    assert bench.main([*options, "--recipe", recipe, "--seeds", "0", "--psnr", "90"]) == 0
    measured = read(tmp_path, "twice-seed0")
    followed = measured["checks"]["psnr"]
    assert [check["step"] for check in followed] == [0, 2, 4, 4, 6, 8, 10]
    times = [check["cpu_s"] for check in followed]
    assert times == sorted(times) and 0 < times[3] < times[-1]
    assert measured["settings"]["first"]["max_train_steps"] == 4
    assert measured["settings"]["tokenizer"]["output_dir"] == measured["settings"]["first"]["output_dir"] == ""
    overrides = [measured["settings"][run]["autoencoder_overrides"] for run in ("first", "tokenizer")]
    assert [value["patch_size"] for value in overrides] == [4, 2]
    assert measured["settings"]["tokenizer"]["autoencoder"] == "/first/model"
    # What is reached in the first run needs no second.
    quick = f"quick={config},{coarse},first.final_learning_rate=1e-9"
    assert bench.main([*options, "--recipe", quick, "--seeds", "0", "--psnr", "1"]) == 0
    assert [check["step"] for check in read(tmp_path, "quick-seed0")["checks"]["psnr"]] == [0, 2]


def test_an_interrupted_unit_leaves_no_record(study, tmp_path, monkeypatch):
    """A signal of the user at the first check, before the level was reached."""
    config, options = study
    follow = unit.Curve.follow

    def interrupted(self, log):
        def log_and_stop(*args):
            if args[-1]:
                unit.signal.raise_signal(unit.signal.SIGTERM)
            return log(*args)

        return follow(self, log_and_stop)

    monkeypatch.setattr(unit.Curve, "follow", interrupted)
    with pytest.raises(SystemExit, match="interrupted; run the same command again"):
        bench.main([*options, "--recipe", f"tiny={config}", "--seeds", "0", "--psnr", "90"])
    assert not list((tmp_path / "records").glob("*.json"))
