"""The results page of a study: verdicts against scipy, on records of known effects; what is missing, refused, kept."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.kinds.study_unit import MeasuredPart, StudyUnitResult
from tcae_diffusers.training.study.__main__ import main
from tcae_diffusers.training.study.claims import judge_claims
from tcae_diffusers.training.study.page import PAGE, claims_table, render_page, write_page
from tcae_diffusers.training.study.plan import read_study_plan
from tcae_diffusers.training.study.records import read_records
from tcae_diffusers.training.study.unit import Unit

from .test_study import tiny_plan, write_plan

SEEDS = [0, 1, 2, 3, 4]
GFD, RFD, A1 = "gFD-efficientnet-lite0", "rFD-efficientnet-lite0", "linear probe, tokens"
STUDIES = Path(__file__).parents[2] / "docs" / "studies"
# Seeds differ by far more than arms do: only pairing sees the arms.
SHARED = np.array([0.0, 300.0, -200.0, 120.0, 40.0])
# Values of each arm by seed.
VALUES: dict[tuple[str, int | None], dict[str, np.ndarray]] = {
    (GFD, 2): {
        "plain": 1000 + SHARED,
        "STC": 900 + SHARED + [3, -2, 4, 0, 1],
        "SSL": 990 + SHARED + [80, -70, 60, -50, 20],
    },
    (GFD, 4): {
        "plain": 800 + SHARED,
        "STC": 780 + SHARED + [4, -3, 1, 0, -5],
        "SSL": 795 + SHARED + [40, -60, 50, -20, 10],
    },
    (RFD, None): {
        "plain": 115 + SHARED / 10,
        "STC": 165 + SHARED / 10 + [1, 0, -2, 1, 0],
        "SSL": 118 + SHARED / 10 + [2, -5, 3, 1, -4],
    },
    (A1, None): {
        "plain": 0.7 + SHARED / 1e4,
        "STC": 0.71 + SHARED / 1e4 + np.array([1, -2, 2, 0, 1]) / 100,
        "SSL": 0.73 + SHARED / 1e4 + np.array([0, 6, -2, 4, 1]) / 100,
    },
}
CLAIMS = {
    "STC lowers gFD": {"arm": "STC", "than": "plain", "measure": GFD, "after": 2, "direction": "lower"},
    "STC lowers rFD": {"arm": "STC", "than": "plain", "measure": RFD, "direction": "lower"},
    "SSL lowers gFD": {"arm": "SSL", "than": "plain", "measure": GFD, "after": 2, "direction": "lower"},
    "SSL raises A1": {"arm": "SSL", "than": "plain", "measure": A1, "direction": "higher"},
    "late lowers gFD": {"arm": "late", "than": "plain", "measure": GFD, "after": 4, "direction": "lower"},
    "plain has the higher gFD": {"arm": "plain", "than": "STC", "measure": GFD, "after": 4, "direction": "higher"},
}
OUTCOMES = ["supported", "contradicted", "undecided", "undecided", "undecided", "supported"]


def study_plan(folder: Path, **changes: Any) -> Path:
    """A plan of four arms, with claims that hold, do not, and cannot be told."""
    content = {
        **tiny_plan(),
        "seeds": SEEDS,
        "claims": {name: {"paper": "1 to 2", **it} for name, it in CLAIMS.items()},
    }
    arms = {
        name: {"tokenizer": {"ssl_weight": weight}} for name, weight in (("STC", 1.5), ("SSL", 2.0), ("late", 3.0))
    }
    return write_plan(folder, {**content, "arms": {"plain": None, **arms}, **changes})


def figure(name: str, value: float) -> dict[str, Any]:
    better = "lower" if "FD" in name else "higher"
    return {"name": name, "value": float(value), "samples": 5000, "better": better, "floor": {"value": 54.0}}


def save_record(plan_path: Path, arm: str, seed: int) -> Path:
    plan = read_study_plan(plan_path)
    unit = Unit(plan, arm, seed, plan_path.parent / "results", plan_path.parent / "work")
    data = {"spec": "images", "fingerprint": "x"}
    parts = [
        MeasuredPart(
            measure="reconstruction" if steps is None else "generation",
            figures=[figure(name, values[arm][seed])],  # type: ignore[list-item]
            data=data,
            dit_steps=steps,
        )
        for (name, steps), values in VALUES.items()
    ]
    StudyUnitResult(
        study=plan.title,
        arm=arm,
        seed=seed,
        commit="abc1234",
        parts=parts,
        cost={
            "tokenizer": {"cpu_s": 600.0 + seed, "steps": 2, "macs": 3e12},
            "dit": {"cpu_s": 60.0, "steps": 4, "macs": 1e12},
        },
        curves={"heldout/psnr": [[0.0, 1.0, 2.0], [10.0, 18.0 + seed / 10, 20.0 + len(arm)]]},
        settings={**unit.options(), "content": {"train": "one", "test": "two"}},
        machine={"processor": "a machine"},
    ).save(unit.record)
    return unit.record


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a study with all records but those of one arm."""
    plan = study_plan(tmp_path_factory.mktemp("studies") / "study")
    for arm in ("plain", "STC", "SSL"):
        for seed in SEEDS:
            save_record(plan, arm, seed)
    return plan


@pytest.fixture
def partial(tmp_path: Path) -> Callable[..., Path]:
    """Makes a plan with the records of some arms and seeds."""

    def make(*units: tuple[str, int], **changes: Any) -> Path:
        plan = study_plan(tmp_path / "study", **changes)
        for unit in units:
            save_record(plan, *unit)
        return plan

    return make


def change(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def drawn(picture: bytes) -> str:
    return Image.open(io.BytesIO(picture)).info["Description"]


def outdated(plan_path: Path) -> list[str]:
    """Files beside the plan that the command would write otherwise; of pictures, by the numbers drawn."""
    wrong = []
    for path, content in render_page(read_records(plan_path), plan_path).items():
        if isinstance(content, str):
            same = path.exists() and path.read_text(encoding="utf-8") == content
        else:
            same = path.exists() and drawn(path.read_bytes()) == drawn(content)
        if not same:
            wrong.append(path.name)
    return wrong


def test_every_verdict_is_that_of_scipy(complete: Path) -> None:
    verdicts = judge_claims(read_records(complete))
    assert [verdict.outcome for verdict in verdicts] == OUTCOMES
    tested = [verdict for verdict in verdicts if verdict.difference is not None]
    assert len(tested) == 5
    p_values = []
    for verdict in tested:
        claim = verdict.claim
        first, second = (VALUES[claim.measure, claim.after][arm] for arm in (claim.arm, claim.than))
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval(0.95)
        assert verdict.difference and verdict.effect == pytest.approx(float(np.mean(first - second)))
        assert verdict.effect - verdict.difference.interval == pytest.approx(float(low))
        assert verdict.effect + verdict.difference.interval == pytest.approx(float(high))
        p_values.append(float(test.pvalue))
        # Power at the strictest level of the family, both sides counted.
        count = len(SEEDS)
        critical = stats.t.ppf(1 - 0.05 / 5 / 2, count - 1)
        shift = (verdict.smallest_detectable or 0) * np.sqrt(count) / np.std(first - second, ddof=1)
        assert stats.nct.sf(critical, count - 1, shift) == pytest.approx(0.8, abs=1e-6)
    ranked = np.argsort(p_values)
    expected = np.minimum(1, np.maximum.accumulate(np.sort(p_values) * np.arange(5, 0, -1)))
    assert [tested[index].p_holm for index in ranked] == pytest.approx(list(expected))
    # Alone it would be significant; the family decides.
    raises = next(verdict for verdict in tested if verdict.statement == "SSL raises A1")
    assert raises.difference and raises.difference.p_value < 0.05 < (raises.p_holm or 0)


def test_what_is_judged_twice_is_judged_at_half_the_level(tmp_path: Path, complete: Path) -> None:
    p_values = [verdict.p_holm for verdict in judge_claims(read_records(complete)) if verdict.p_holm is not None]
    # As many looks as leave one decided claim undecided.
    looks = int(0.05 / max(value for value in p_values if value < 0.05)) + 1
    plan = shutil.copytree(complete.parent, tmp_path / "study") / "plan.yaml"
    plan.write_text(plan.read_text() + f"looks: {looks}\n")
    verdicts = judge_claims(read_records(plan))
    decided = [verdict.p_holm < 0.05 / looks for verdict in verdicts if verdict.p_holm is not None]
    assert [verdict.outcome != "undecided" for verdict in verdicts if verdict.p_holm is not None] == decided
    assert 0 < sum(decided) < sum(value < 0.05 for value in p_values)
    main([str(plan), "--page"])
    assert f"judged {looks} times, at {0.05 / looks:.3g} each" in " ".join((plan.parent / PAGE).read_text().split())


def test_linear_baselines_of_latents_of_different_sizes_stand_apart(tmp_path: Path) -> None:
    path = study_plan(tmp_path / "study")
    for arm, size, value in (("plain", "f8c4", 21.0), ("STC", "f8c8", 24.0)):
        record = save_record(path, arm, 0)
        content = json.loads(record.read_text())
        for part in content["parts"]:
            for entry in part["figures"]:
                entry["linear"] = {"value": value, "name": f"linear {size}"}
        record.write_text(json.dumps(content))
    text = str(render_page(read_records(path), path)[path.parent / PAGE])
    assert "21 (linear f8c4); 24 (linear f8c8)" in text.partition("## Every figure")[0]
    assert "22.5" not in text.partition("## Every figure")[0]


def test_the_page_says_what_was_found(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(complete), "--page"])
    said = capsys.readouterr().out
    assert "15 of 20 units" in said and "Missing: late, seeds 0, 1, 2, 3, 4." in said and PAGE in said
    page = (complete.parent / PAGE).read_text()
    cells: dict[str, list[str]] = {}
    for line in page.splitlines():
        # Later tables have rows of the same names.
        cells.setdefault(line.split(" | ")[0].strip("| "), line.split(" | "))
    expected = f"STC lower than plain: {GFD} after 2 DiT steps"
    assert cells["STC lowers gFD"][1:4] == ["**supported**", "1 to 2", expected]
    first, second = VALUES[GFD, 2]["STC"], VALUES[GFD, 2]["plain"]
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert cells["STC lowers gFD"][4:7] == ["-98.8", f"{low:.4g} to {high:.4g}", "0, 1, 2, 3, 4"]
    assert cells["late lowers gFD"][1] == "undecided" and cells["late lowers gFD"][4] == "not measured"
    # Mean and spread by arm, with what it cost.
    spread = np.std(VALUES[RFD, None]["STC"], ddof=1)
    row = cells[f"{RFD} ↓ (5,000 images)"]
    assert row[2] == f"{np.mean(VALUES[RFD, None]['STC']):.4g} ± {spread:.2g}"
    assert cells[f"A1: {A1} ↑ (5,000 images)"][1].startswith("0.7052 ± ")
    assert cells["CPU minutes, tokenizer"][1] == "10.03 ± 0.026" and cells["CPU minutes, everything"][1][:5] == "11.03"
    assert row[4] == "54" and cells["steps of the tokenizer"][1] == "2"
    assert "Not measured: PSNR, A2, structure loss, KID, MIND, FDr, CAS." in page
    sooner, started = page.split("How many times fewer DiT steps")[1].split("How many times as many DiT steps")
    factors = {line.split(" | ")[0].strip("| "): line.strip(" |").split(" | ")[1:] for line in sooner.splitlines()}
    # 903 after 2 steps and 784 after 4: at the 800 of plain on the way.
    assert factors["STC"][0] == f"{4 / 2 ** (1 + (903 - 800) / (903 - 784)):.2f}x"
    factors = {line.split(" | ")[0].strip("| "): line.strip(" |").split(" | ")[1:] for line in started.splitlines()}
    # Plain has 1,000 and 800, and with seed 0 less than SSL from the start.
    assert factors["STC"][0] == f"{2 ** ((1000 - 903) / 200):.2f}x"
    assert factors["SSL"][0] == "at most 1.00x"
    for name in re.findall(r"\((results-\w+\.png)\)", page):
        assert Image.open(complete.parent / name).size[0] > 1000
    curves = json.loads(drawn((complete.parent / "results-curves.png").read_bytes()))
    assert curves[GFD]["STC"]["1"] == [[2.0, 4.0], [VALUES[GFD, 2]["STC"][1], VALUES[GFD, 4]["STC"][1]]]
    assert curves["held-out PSNR (dB)"]["SSL"]["2"] == [[0.0, 1.0, 2.0], [10.0, 18.2, 23.0]]
    distances = json.loads(drawn((complete.parent / "results-distances.png").read_bytes()))
    assert distances[f"{GFD} after 4 DiT steps"]["SSL"]["3"] == [
        [VALUES[RFD, None]["SSL"][3]],
        [VALUES[GFD, 4]["SSL"][3]],
    ]


def test_a_head_start_longer_than_the_curve_says_so(partial: Callable[..., Path]) -> None:
    plan = partial(("plain", 0), ("STC", 0))
    write_page(plan)
    # Below the 800 of plain after 4 steps, from the first measured point on.
    record = plan.parent / "results" / "STC-seed0.json"
    change(record, lambda content: content["parts"][0]["figures"][0].update(value=700.0))
    write_page(plan)
    started = (plan.parent / PAGE).read_text().split("How many times as many DiT steps")[1]
    assert re.search(r"^\| STC \| over 2\.00x \|", started, re.MULTILINE)


def test_the_claims_of_all_studies_stand_on_one_page(
    complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "guide" / "all.md"
    arguments = [str(complete), "--page", "--claims_page", str(page)]
    for content, message in (
        (None, "all.md cannot be read: No such file"),
        ("# All\n", "all.md lacks <!-- table: claims"),
    ):
        if content is not None:
            page.parent.mkdir()
            page.write_text(content)
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    page.write_text("# All\n\n<!-- table: claims -->\n<!-- end: claims -->\n\nRead on.\n")
    main(arguments)
    text = page.read_text()
    assert (
        text.startswith("# All\n") and text.endswith("\nRead on.\n") and capsys.readouterr().out.endswith("all.md\n")
    )
    statements = re.findall(r"^\| \[(.+?)\]\((.+?)#claims-of-the-paper\) \| .+? \| \**(\w+)", text, re.MULTILINE)
    assert [(name, outcome) for name, _, outcome in statements] == list(zip(CLAIMS, OUTCOMES, strict=True))
    assert {(page.parent / link).resolve() for _, link, _ in statements} == {(complete.parent / PAGE).resolve()}
    with pytest.raises(SystemExit):
        main([str(complete), "--claims_page", str(page)])
    assert "--claims_page" in capsys.readouterr().err


def test_the_table_of_all_claims_is_what_the_records_give() -> None:
    guide = STUDIES.parent / "studies.md"
    assert claims_table(guide, STUDIES) in guide.read_text(), "run the study command with --page and --claims_page"


def test_what_is_written_around_the_tables_is_kept_and_an_old_page_is_told(
    partial: Callable[..., Path],
) -> None:
    plan = partial(("plain", 0), ("STC", 0))
    assert outdated(plan) == [PAGE, "results-distances.png", "results-curves.png"]
    write_page(plan)
    page = plan.parent / PAGE
    page.write_text(page.read_text().replace("## Arms\n", "## Arms\n\nRead this first.\n"))
    assert outdated(plan) == []
    record = plan.parent / "results" / "STC-seed0.json"
    change(record, lambda content: content["parts"][2]["figures"][0].update(value=170.0))
    assert outdated(plan) == [PAGE, "results-distances.png"]
    write_page(plan)
    assert outdated(plan) == [] and "Read this first." in page.read_text() and "170" in page.read_text()
    page.write_text(page.read_text().replace("<!-- end: claims -->", ""))
    with pytest.raises(InputError, match=r"lacks .*end: claims"):
        write_page(plan)


def test_one_seed_gives_effects_and_decides_nothing(partial: Callable[..., Path]) -> None:
    plan = partial(("plain", 0), ("STC", 0), ("SSL", 1))
    verdicts = {verdict.statement: verdict for verdict in judge_claims(read_records(plan))}
    assert {verdict.outcome for verdict in verdicts.values()} == {"undecided"}
    assert verdicts["STC lowers gFD"].effect == pytest.approx(-97.0)
    # Of different seeds, nothing is subtracted.
    assert verdicts["SSL lowers gFD"].effect is None
    (said, *_) = write_page(plan)
    assert said.startswith("3 of 20 units") and "SSL, seeds 0, 2, 3, 4" in said and "plain, seeds 1, 2, 3, 4" in said
    page = (plan.parent / PAGE).read_text()
    assert "With fewer than two seeds nothing is decided" in page and "power" not in page
    assert "| 0 |  |  |" in next(line for line in page.splitlines() if line.startswith("| STC lowers gFD"))


def test_machines_are_told_apart_and_cpu_minutes_from_the_time_of_a_gpu(partial: Callable[..., Path]) -> None:
    plan = partial(("plain", 0), ("STC", 0), ("STC", 1))
    (said, *_) = write_page(plan)
    assert said.endswith("on a machine.") and "GPU" not in (plan.parent / PAGE).read_text()
    machine = {"processor": "a machine", "accelerators": ["H200", "H200"]}
    change(plan.parent / "results" / "STC-seed1.json", lambda it: it.update(machine=machine))
    change(plan.parent / "results" / "STC-seed0.json", lambda it: it["machine"].update(accelerators=["none"]))
    (said, *_) = write_page(plan)
    assert said.endswith("on a machine (2); a machine and H200 (1).")
    assert "without the time of GPUs, which units of these arms had: STC." in (plan.parent / PAGE).read_text()


def rename(path: Path) -> None:
    path.rename(path.with_name("other.json"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda path: path.unlink(), "has no record of a study; run .*plan.yaml first"),
        (lambda path: change(path, lambda it: it.update(seed=9)), "arm 'STC' with seed 9, which is not in"),
        (rename, "other.json is of arm 'STC' with seed 0; call it .*/STC-seed0.json"),
        (
            lambda path: change(path, lambda it: it["settings"]["tokenizer"].update(ssl_weight=7.0)),
            "was measured with tokenizer.ssl_weight 7.0, now it is 1.5",
        ),
    ],
)
def test_what_is_no_record_of_the_plan_is_refused(
    partial: Callable[..., Path], edit: Callable[[Path], None], message: str
) -> None:
    plan = partial(("STC", 0))
    edit(plan.parent / "results" / "STC-seed0.json")
    with pytest.raises(InputError, match=message):
        write_page(plan)
    assert not (plan.parent / PAGE).exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it["settings"]["content"].update(test="3"), "are of different images; delete one"),
        (lambda it: it["parts"][0]["figures"][0].update(samples=500), "of STC with {'images': 500}"),
        (lambda it: it["parts"][0]["data"].update(fingerprint="y"), "{'fingerprint': 'y'}"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(
    partial: Callable[..., Path], edit: Callable[[dict], None], message: str
) -> None:
    plan = partial(("plain", 0), ("STC", 0))
    change(plan.parent / "results" / "STC-seed0.json", edit)
    with pytest.raises(InputError, match=re.escape(message)):
        write_page(plan)


def test_arms_may_start_from_different_weights(partial: Callable[..., Path]) -> None:
    plan = partial(("plain", 0), ("STC", 0))
    record = plan.parent / "results" / "STC-seed0.json"
    change(record, lambda it: it["settings"]["content"].update({"tokenizer.autoencoder": "3"}))
    assert set(read_records(plan).units) == {"plain", "STC"}


def test_records_of_a_shared_arm_are_those_of_the_plan_that_runs_it(partial: Callable[..., Path]) -> None:
    base = partial(("plain", 0), ("plain", 1), ("SSL", 0))
    arms = {"plain": {"shared": True}, "STC": {"tokenizer": {"ssl_weight": 1.5}}}
    content = {"extends": "../study/plan.yaml", "title": "more", "arms": arms}
    plan = write_plan(base.parent.parent / "more", content)
    assert {arm: list(units) for arm, units in read_records(plan).units.items()} == {"plain": [0, 1]}
    save_record(plan, "STC", 1)
    write_page(plan)
    page = (plan.parent / PAGE).read_text()
    assert f"3 of {2 * len(SEEDS)} units" in page and "| seeds | 0, 1 | 1 |" in page
    # One that lies here as well would be another run of it.
    shutil.copy(base.parent / "results" / "SSL-seed0.json", plan.parent / "results" / "plain-seed0.json")
    change(plan.parent / "results" / "plain-seed0.json", lambda it: it.update(arm="plain"))
    with pytest.raises(
        InputError, match=r"more/results/plain-seed0\.json is of arm 'plain' .* call it .*study/results"
    ):
        write_page(plan)


def test_a_claim_about_what_no_record_has_is_refused(partial: Callable[..., Path]) -> None:
    claim = {"paper": "", "arm": "STC", "than": "plain", "measure": "gFD", "direction": "lower"}
    plan = partial(("plain", 0), claims={"a": claim})
    with pytest.raises(InputError, match=rf"claim 'a': no record has 'gFD' .* '{GFD}' \(after: 2\)"):
        write_page(plan)


def test_what_has_no_effect_with_page_is_refused(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--only", "plain"], ["--seeds", "1"], ["--work", "x"], ["--processes", "1"]):
        with pytest.raises(SystemExit):
            main([str(complete), "--page", *options])
        assert "must be omitted with --page" in capsys.readouterr().err


@pytest.mark.parametrize("plan_path", sorted(STUDIES.glob("*/plan.yaml")), ids=lambda path: path.parent.name)
def test_the_page_of_each_study_is_what_its_records_give(plan_path: Path) -> None:
    if any((plan_path.parent / "results").glob("*.json")):
        assert outdated(plan_path) == [], f"run the study command with --page on {plan_path}"
    else:
        assert not (plan_path.parent / PAGE).exists()
