"""A study: its plan, equal compute, and tiny units through the real commands, side by side and resumed."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.kinds.study_unit import StudyUnitResult
from tcae_diffusers.evaluation.results.reading import read_result
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder
from tcae_diffusers.training.stages import Stage, run_stages
from tcae_diffusers.training.study.__main__ import chosen_units, main
from tcae_diffusers.training.study.plan import read_study_plan
from tcae_diffusers.training.study.unit import Unit, tokenizer_macs
from tcae_diffusers.training.study_arguments import StudyArguments

from ..latent_commands import SMALL_DIT, home
from ..tiny_segmenter import save_tiny_segmenter
from ..tokenizer_commands import OPTIONS, TINY, trained_tokenizer

DECIDED = ("heldout_steps", "heldout_images", "report_to", "checkpointing_steps", "autoencoder_overrides")

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
CLAIM = {
    **{"paper": "0.92 to 0.69", "arm": "SSL + STC", "than": "plain"},
    **{"measure": "structure loss 1 - A2/A1", "direction": "lower"},
}


@functools.cache
def unseen_images() -> str:
    """The images that the tokenizers of tests train on, upside down."""
    for file in (home() / "images").rglob("*.png"):
        place = home() / "unseen" / file.relative_to(home() / "images")
        place.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.flip(Image.open(file)).save(place)
    return str(home() / "unseen")


def tiny_plan() -> dict:
    tokenizer = {name: value for name, value in OPTIONS.items() if name not in DECIDED}
    tokenizer |= {"autoencoder_overrides": TINY, "max_train_steps": 2, "log_steps": 1, "heldout_steps": 1}
    plain = {"autoencoder_overrides": {**TINY, "staged_compression": False}, "ssl": "none", "ssl_drop_path": 0.0}
    return {
        "title": "tiny",
        "train": str(home() / "images"),
        "test": unseen_images(),
        "seeds": [3],
        "measured_after": [2, 4],
        "tokenizer": tokenizer,
        "latents": {"flip": False},
        "dit": {name: value for name, value in SMALL_DIT.items() if name != "max_train_steps"},
        "measures": {"num_images": 16, "num_inference_steps": 1, "epochs": 1, "device": "cpu"},
        "arms": {"plain": {"tokenizer": plain}, "SSL + STC": {"equal_macs_to": "plain"}},
    }


def write_plan(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "plan.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {}}, "arms and seeds must be one or more"),
        ({"seeds": [1, 1]}, r"all different; got \[1, 1\]"),
        ({"measured_after": [4, 2]}, r"measured_after \[4, 2\] must be rising steps"),
        ({"steps": 3}, "unknown key steps"),
        ({"arms": {"a": {"tokeniser": {}}}}, "arm 'a': unknown key tokeniser"),
        ({"arms": {"a": {"like": "b"}}}, "like 'b' is no other arm"),
        ({"arms": {"a": {"like": "b"}, "b": {"like": "a"}}}, "arm 'a' is like itself: a -> b -> a"),
        ({"arms": {"a": None, "b": {"equal_macs_to": "a"}, "c": {"equal_macs_to": "b"}}}, "'b', which has it too"),
        ({"arms": {"a": {"equal_macs_to": "b"}, "b": {"like": "c"}, "c": {"like": "b"}}}, "arm 'b' is like itself"),
        ({"arms": {"a": {"tokenizer": {"seed": 1}}}}, "tokenizer: seed is decided by the study"),
        ({"dit": {"max_train_steps": 1}}, "dit: max_train_steps is decided by the study"),
        ({"claims": {"c": {**CLAIM, "arm": "STC"}}}, "claim 'c': arm 'STC' is no arm; expected one of plain, SSL"),
        ({"claims": {"c": {**CLAIM, "than": "SSL + STC"}}}, "is compared with itself"),
        ({"claims": {"c": {**CLAIM, "after": 3}}}, r"after 3 is not measured; expected one of \[2, 4\]"),
        ({"claims": {"c": {**CLAIM, "direction": "better"}}}, "'better' is unknown; expected one of lower, higher"),
        ({"looks": 0}, "looks 0 must be 1 or more"),
        (
            {"arms": {"a": None, "b": {"equal_macs_to": "a"}, "c": {"like": "b"}, "d": {"equal_macs_to": "c"}}},
            "equal_macs_to 'c', which has it too",
        ),
        ({"arms": {"a b": None, "a-b": None}}, "two arms would share a folder"),
        (
            {"arms": {"a": None, "b": {"equal_macs_to": "a", "tokenizer": {"max_train_steps": 3}}}},
            "max_train_steps and equal_macs_to",
        ),
    ],
)
def test_a_bad_plan_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_study_plan(write_plan(tmp_path / "study", {**tiny_plan(), **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extends": "../gone/plan.yaml"}, "cannot read plan .*gone/plan.yaml"),
        ({"extends": "../study/plan.yaml"}, "extends itself: .*study/plan.yaml -> .*study/plan.yaml"),
        ({"measured_after": [2]}, "omit measured_after, or let arms change it; expected extends, title, arms"),
        ({"arms": {"SSL": {"shared": True}}}, "arm 'SSL' is no arm of .*base/plan.yaml; expected one of plain, SSL"),
        ({"arms": {"b": {"equal_macs_to": "SSL"}, "SSL": {"shared": True}}}, "arm 'SSL' is no arm of .*base"),
        (
            {"arms": {"b": {"equal_macs_to": "SSL + STC"}, "SSL + STC": {"shared": True}}},
            r"arm 'b': equal_macs_to 'SSL \+ STC', which has it too",
        ),
        (
            {
                "arms": {
                    "b": {"equal_macs_to": "plain", "like": "longer"},
                    "plain": {"shared": True},
                    "longer": {"equal_macs_to": "plain", "tokenizer": {"max_train_steps": 3}},
                }
            },
            "arm 'longer' has max_train_steps and equal_macs_to",
        ),
        ({"arms": {"plain": {"shared": True, "dit": {"num_layers": 1}}}}, "omit its other keys, or shared"),
        ({"arms": {"plain": {"shared": True}}, "seeds": [3, 4]}, "base/plan.yaml has no seed 4; add it there"),
        ({"extends": None, **tiny_plan(), "arms": {"plain": {"shared": True}}}, "is shared with no plan; name one"),
    ],
)
def test_a_bad_plan_that_extends_another_is_named(tmp_path, change, message):
    write_plan(tmp_path / "base", tiny_plan())
    content = {"extends": "../base/plan.yaml", "title": "more", "arms": {"wide": None}, **change}
    with pytest.raises(InputError, match=message):
        read_study_plan(write_plan(tmp_path / "study", content))


def test_a_plan_has_the_terms_of_the_one_that_it_extends_and_shares_its_arms(tmp_path):
    base = read_study_plan(write_plan(tmp_path / "base", tiny_plan()))
    arms = {
        "plain": {"shared": True},
        "wide": {"like": "plain", "dit": {"num_layers": 2}},
        "more": {"equal_macs_to": "plain", "tokenizer": {"ssl_weight": 2.0}},
    }
    content = {"extends": "../base/plan.yaml", "title": "more", "arms": arms}
    extended = write_plan(tmp_path / "study", content)
    # Another that shares an arm which is shared itself.
    again = {"extends": "../study/plan.yaml", "title": "again", "arms": {"plain": {"shared": True}}}
    for path in (extended, write_plan(tmp_path / "again", again)):
        unit = chosen_units(StudyArguments(plan=path))[0]
        assert unit.record == base.records / "plain-seed3.json" and unit.plan.path.samefile(base.path)
    plain, wide, more = chosen_units(StudyArguments(plan=extended, work=tmp_path / "work"))
    assert wide.record == extended.parent / "results" / "wide-seed3.json" and wide.plan.measured_after == [2, 4]
    assert wide.dit == replace(plain.dit, num_layers=2) and wide.tokenizer == plain.tokenizer
    assert tokenizer_macs(more.tokenizer) <= tokenizer_macs(plain.tokenizer) and more.tokenizer.max_train_steps == 1


def test_an_arm_has_what_the_one_has_that_it_is_like(tmp_path):
    arms = {"a": {"tokenizer": {"ssl": "mae", "ssl_weight": 2.0}}, "b": {"like": "a"}}
    arms["b"]["tokenizer"] = {"ssl_weight": 3.0}
    arms |= {"as costly": {"equal_macs_to": "a"}, "too": {"like": "as costly"}}
    arms["longer"] = {"like": "as costly", "tokenizer": {"max_train_steps": 3}}
    plan = read_study_plan(write_plan(tmp_path / "study", {**tiny_plan(), "arms": arms}))
    arms["as costly as longer"] = {"like": "longer", "equal_macs_to": "a"}
    plan = read_study_plan(write_plan(tmp_path / "study", {**tiny_plan(), "arms": arms}))
    names = ("too", "longer", "as costly as longer")
    assert [plan.arm(name).equal_macs_to for name in names] == ["a", None, "a"]
    # An arm of another plan is equal to one of that plan, whatever is called so here.
    shared = {"arms": {"as costly": {"shared": True}, "wide": {"like": "as costly", "dit": {"num_layers": 2}}}}
    other = read_study_plan(write_plan(tmp_path / "other", {"extends": "../study/plan.yaml", "title": "x", **shared}))
    assert other.arm("wide").equal_macs_to is None
    assert plan.arm("b").tokenizer == {"ssl": "mae", "ssl_weight": 3.0}


def test_equal_compute_is_as_many_steps_as_cost_as_much(tmp_path):
    content = tiny_plan()
    content["tokenizer"]["max_train_steps"] = 200
    content["arms"]["STC"] = {"tokenizer": {"ssl": "none", "ssl_drop_path": 0.0}, "equal_macs_to": "plain"}
    plan = read_study_plan(write_plan(tmp_path / "study", content))
    plain, both, staged = (Unit(plan, arm, 3, tmp_path, tmp_path / "work").tokenizer for arm in content["arms"])
    assert plain.max_train_steps == 200 and both.max_train_steps < 200 < staged.max_train_steps
    for other in (both, staged):
        per_step = tokenizer_macs(other) / other.max_train_steps
        assert abs(tokenizer_macs(other) - tokenizer_macs(plain)) <= per_step / 2
    seeds = {Unit(plan, "SSL + STC", seed, tmp_path, tmp_path / "work").tokenizer.max_train_steps for seed in range(3)}
    assert len(seeds) == 1


def test_a_tokenizer_without_a_size_is_used_at_the_one_it_was_trained_at(tmp_path):
    content = tiny_plan()
    content["arms"]["larger"] = {"tokenizer": {**content["arms"]["plain"]["tokenizer"], "resolution": 64}}
    plan = read_study_plan(write_plan(tmp_path / "study", content))
    plain, larger = (Unit(plan, arm, 3, tmp_path, tmp_path / "work") for arm in ("plain", "larger"))
    assert [unit.latents.resolution for unit in (plain, larger)] == [None, 64]
    compared = [yaml.safe_load(unit.write_comparison().read_text()) for unit in (plain, larger)]
    assert "resolution" not in compared[0] and compared[1]["resolution"] == 64


def test_stages_note_what_they_cost_and_go_on_where_they_stopped(tmp_path, capsys):
    def fake(outcomes):
        def run(stage):
            ran.append(stage.title)
            outcome = outcomes.pop(0)
            if outcome == 0:
                stage.result.touch()
            # Something that costs CPU seconds.
            subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
            return max(outcome, 0)

        return run

    stages = [Stage(name, "nothing", [name], tmp_path / name) for name in ("first", "second")]
    ran = []
    with pytest.raises(SystemExit) as stop:
        run_stages(stages, tmp_path / "notes", "it", fake([0, -1]))
    assert stop.value.code == 130 and "stopped in step 2" in capsys.readouterr().out
    interrupted = json.loads((tmp_path / "notes" / "2").read_text())["cpu_s"]
    seconds = run_stages(stages, tmp_path / "notes", "it", fake([0]))
    assert ran == ["first", "second", "second"]
    assert seconds["first"] > 0 and seconds["second"] > interrupted > 0
    # What comes after a stage that runs again runs again too, and its clock starts anew.
    (tmp_path / "first").unlink()
    again = run_stages(stages, tmp_path / "notes", "it", fake([0, 0]))
    assert ran[3:] == ["first", "second"] and again["second"] < seconds["second"]


@pytest.mark.parametrize("name", ["tokenizers", "transformers"])
def test_plans_of_openmoji_differ_in_what_they_name_alone(tmp_path, name):
    plan = read_study_plan(STUDIES / name / "plan.yaml")
    options = {arm: Unit(plan, arm, 0, tmp_path, tmp_path / "work").options() for arm in plan.arms}
    first = next(iter(options.values()))
    differing = {
        (command, option)
        for each in options.values()
        for command in ("tokenizer", "latents", "dit")
        for option in each[command].keys() | first[command].keys()
        if each[command].get(option) != first[command].get(option)
    }
    expected = {"tokenizers": {("tokenizer", "ssl"), ("tokenizer", "autoencoder")}}
    assert differing == expected.get(name, {("dit", "transformer")})
    if name == "tokenizers":
        for arm, each in options.items():
            assert (each["tokenizer"].get("ssl") != "none") == ("SSL" in arm)
            assert each["tokenizer"]["autoencoder"].endswith("-nostc") == ("STC" not in arm)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/plan.yaml")), ids=lambda path: path.parent.name)
def test_every_plan_is_accepted_and_its_autoencoders_can_be_built(tmp_path, monkeypatch, path):
    monkeypatch.chdir(STUDIES.parents[1])
    steps = {}
    for unit in chosen_units(StudyArguments(plan=path, seeds=[0], work=tmp_path)):
        steps[unit.arm] = unit.tokenizer.max_train_steps
        assert unit.options() and unit.dit.max_train_steps == unit.plan.measured_after[-1]
        if path.parent.name.startswith("fashion"):
            # Shoes point to the left, and DiTs of one width take latents of 2x2 positions.
            assert not unit.tokenizer.horizontal_flip and not unit.latents.flip
            assert encoded_shape(unit.tokenizer) == (64 if "64 channels" in unit.arm else 32, 2, 2)
    if path.parent.name == "fashion_mnist":
        assert steps["STC, equal compute"] > steps["plain"] == steps["STC"] > steps["SSL, equal compute"]


def encoded_shape(arguments):
    autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
    return tuple(adapt(autoencoder).encode(torch.zeros(1, 3, 32, 32)).shape[1:])


def test_units_run_side_by_side_and_leave_records_that_stand_for_their_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TCAE_CACHE", str(tmp_path / "cache"))
    claims = {"STC keeps structure": CLAIM}
    content = {**tiny_plan(), "claims": claims}
    plan = write_plan(tmp_path / "study", content)
    options = [str(plan), "--work", str(tmp_path / "work")]
    main(options)
    assert "0 of 2 done" in capsys.readouterr().out
    results = {path.stem: read_result(path, StudyUnitResult) for path in (tmp_path / "study" / "results").iterdir()}
    # Records are committed: a path of the machine has no place in them.
    assert all(str(tmp_path) not in result.command for result in results.values())
    assert set(results) == {"plain-seed3", "SSL-STC-seed3"}
    plain = results["plain-seed3"]
    assert (plain.arm, plain.seed, plain.study) == ("plain", 3, "tiny")
    measured = {(part.measure, part.dit_steps) for part in plain.parts}
    assert measured == {
        *(("reconstruction", None), ("latents", None), ("probing", None)),
        *(("generation", 2), ("generation", 4)),
    }
    names = {figure.name for part in plain.parts for figure in part.figures}
    assert {"PSNR (dB)", "rFD-efficientnet-lite0", "gFD-efficientnet-lite0", "linear probe, latent"} <= names
    assert plain.cost["tokenizer"]["steps"] == 2 and plain.cost["dit"]["steps"] == 4
    assert all(plain.cost[stage]["cpu_s"] > 0 for stage in ("tokenizer", "latents", "dit", "measures"))
    ours, theirs = (results[name].cost["tokenizer"] for name in ("SSL-STC-seed3", "plain-seed3"))
    assert ours["macs"] <= theirs["macs"] and ours["steps"] == 1
    assert plain.curves["heldout/psnr"][0][-1] == 2
    teachers = [tag for tag in results["SSL-STC-seed3"].curves if tag.startswith("ssl/teacher_")]
    assert "ssl/teacher_patch_mean_entropy" in teachers and not set(teachers) & set(plain.curves)
    # Nothing large is left, and what is done is not run again.
    assert not (tmp_path / "work" / "plain-seed3" / "latents").exists()
    main(options)
    assert "2 of 2 done" in capsys.readouterr().out
    # What a plan claims changes no record, and the figures that the plan of Fashion-MNIST claims about are measured.
    fashion = read_study_plan(STUDIES / "fashion_mnist" / "plan.yaml")
    assert {claim.measure for claim in fashion.claims.values()} <= names
    write_plan(tmp_path / "study", {**content, "claims": {**claims, "again": CLAIM}})
    main([str(plan), "--page"])
    assert "2 of 2 units" in capsys.readouterr().out
    page = (tmp_path / "study" / "results.md").read_text()
    assert "| again | undecided |" in page and "Not measured: FDr, CAS." in page
    # A record stands for its settings: neither other options nor other images are taken for the same.
    write_plan(tmp_path / "study", {**content, "measured_after": [2]})
    with pytest.raises(SystemExit):
        main(options)
    assert "was measured with dit.max_train_steps 4, now it is 2" in capsys.readouterr().err
    shutil.copytree(home() / "images", tmp_path / "images")
    next((tmp_path / "images").rglob("*.png")).unlink()
    write_plan(tmp_path / "study", {**content, "train": str(tmp_path / "images")})
    with pytest.raises(SystemExit):
        main(options)
    assert "was measured with content.measures.train" in capsys.readouterr().err
    # So does the folder of a unit that has been begun.
    (tmp_path / "study" / "results" / "plain-seed3.json").unlink()
    with pytest.raises(SystemExit):
        main([*options, "--only", "plain"])
    assert "plain-seed3 was measured with content.measures.train" in capsys.readouterr().err


def test_weights_and_archives_count_by_their_content(tmp_path):
    np.savez(tmp_path / "reference.npz", arr_0=np.zeros((4, 16, 16, 3), np.uint8))
    shutil.copytree(trained_tokenizer(), tmp_path / "start")
    content = tiny_plan()
    content["measures"]["reference"] = str(tmp_path / "reference.npz")
    content["tokenizer"]["autoencoder"] = str(tmp_path / "start")
    content["measures"]["object_finder"] = str(save_tiny_segmenter(tmp_path / "segmenter"))
    plan = read_study_plan(write_plan(tmp_path / "study", content))

    def found():
        return Unit(plan, "plain", 3, tmp_path, tmp_path / "work").settings()["content"]

    first = found()
    changing = {"measures.reference", "tokenizer.autoencoder", "measures.object_finder"}
    assert {"train"} | changing <= set(first)
    np.savez(tmp_path / "reference.npz", arr_0=np.ones((4, 16, 16, 3), np.uint8))
    (tmp_path / "start" / "config.json").write_text((tmp_path / "start" / "config.json").read_text() + " ")
    (tmp_path / "segmenter" / "another.txt").touch()
    second = found()
    assert {name for name in first if first[name] != second[name]} == changing


def test_arms_and_seeds_are_chosen_by_name(tmp_path, capsys):
    plan = write_plan(tmp_path / "study", {**tiny_plan(), "seeds": [0, 1]})
    units = chosen_units(StudyArguments(plan=plan))
    names = ["plain-seed0", "SSL-STC-seed0", "plain-seed1", "SSL-STC-seed1"]
    assert [unit.name for unit in units] == names
    assert [unit.name for unit in chosen_units(StudyArguments(plan=plan, only=["plain"], seeds=[1]))] == names[2:3]
    for options, message in ((["--only", "STC"], "--only STC is not in"), (["--seeds", "2"], "--seeds 2 is not in")):
        with pytest.raises(SystemExit):
            main([str(plan), *options])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "reference", "heldout"])
def test_what_is_measured_on_is_looked_at_before_anything_is_trained(tmp_path, name):
    plan = tiny_plan()
    plan["measures"][name] = str(tmp_path / "gone")
    arguments = StudyArguments(plan=write_plan(tmp_path / "study", plan), work=tmp_path / "work")
    with pytest.raises(InputError, match="gone"):
        chosen_units(arguments)[0].settings()


@pytest.mark.parametrize("section", ["tokenizer", "latents"])
def test_images_of_several_sizes_are_refused_before_anything_is_trained(tmp_path, section):
    plan = tiny_plan()
    plan[section]["extra_resolutions"] = [48]
    arguments = StudyArguments(plan=write_plan(tmp_path / "study", plan), work=tmp_path / "work")
    with pytest.raises(InputError, match="omit extra_resolutions and aspect_ratio_buckets"):
        chosen_units(arguments)[0].settings()


def test_a_study_without_curves_is_refused_before_anything_is_trained(tmp_path):
    plan = tiny_plan()
    plan["tokenizer"]["report_to"] = "none"
    arguments = StudyArguments(plan=write_plan(tmp_path / "study", plan), work=tmp_path / "work")
    with pytest.raises(InputError, match="report_to 'none' must be 'tensorboard'"):
        chosen_units(arguments)[0].settings()
