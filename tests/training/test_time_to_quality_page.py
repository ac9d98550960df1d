"""The page of records is what its script makes of the entries, and the script refuses what it cannot compare."""

import importlib.util
import json
from pathlib import Path

import pytest

from tcae_diffusers.training.time_to_quality.records import format_record

SCRIPT = Path(__file__).parents[2] / "docs" / "studies" / "time_to_quality.py"


@pytest.fixture
def page_script():
    spec = importlib.util.spec_from_file_location("time_to_quality_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def empty_page(page_script, monkeypatch, tmp_path):
    """The script with a page and a folder of entries of its own."""
    page = tmp_path / "page.md"
    text = page_script.PAGE.read_text()
    for name in page_script.TABLES:
        begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        text = text.partition(begin)[0] + begin + end + text.partition(end)[2]
    page.write_text(text)
    monkeypatch.setattr(page_script, "PAGE", page)
    monkeypatch.setattr(page_script, "ENTRIES", tmp_path / "entries")
    return page


def write_record(folder, recipe, seed, minutes, heldout="416 images", commit="abc1234"):
    folder.mkdir(exist_ok=True)
    crossings = {"20 dB": {"step": 1, "cpu_s": 60 * minutes, "wall_s": 90 * minutes}, "22.4 dB": None}
    record = {
        "recipe": recipe,
        "seed": seed,
        "commit": commit,
        "crossings": crossings,
        "measures": {"psnr": heldout},
        "checks": {"psnr": [{"step": 0, "cpu_s": 0, "wall_s": 0, "value": 21.25}]},
        "settings": {},
        "date": "2026-11-26T07:49:08+00:00",
        "machine": {"processor": "one"},
    }
    (folder / f"{recipe}-seed{seed}.json").write_text(format_record(record))


def test_the_page_is_what_the_script_writes(page_script):
    text = page_script.PAGE.read_text()
    assert page_script.filled(text) == text, "run python docs/studies/time_to_quality.py"


def test_entries_become_rows_in_the_table_of_their_verdict(page_script, empty_page, tmp_path):
    records = tmp_path / "records"
    for seed in (0, 1):
        write_record(records, "before", seed, 8.0)
        write_record(records, "after", seed, 2.0 + 2.0 * seed, commit=f"commit{seed}")
    common = ["--records", str(records), "--change"]
    page_script.main(["add", "--recipe", "before", "--verdict", "reference", *common, "first"])
    page_script.main(["add", "--recipe", "after", "--baseline", "before", "--verdict", "kept", *common, "second"])
    kept = empty_page.read_text()
    assert "| date | change | commit | minutes to 20 dB | sooner to 20 dB | minutes to 22.4 dB |" in kept
    row = next(line for line in kept.splitlines() if "| second |" in line)
    assert "| 2026-11-26 | second | commit0, commit1 | 3.00 (2.00-4.00) | 2.83 (2.00-4.00)x |" in row
    assert "reached by 0 of 2; best 21.25 dB" in row and row.endswith("| - | 0 1 | kept |")
    assert "No entry yet." in kept.partition("## What did not help")[2]
    stored = json.loads((tmp_path / "entries" / "2026-11-26-after.json").read_text())
    assert [record["recipe"] for record in stored["baseline"] + stored["records"]] == ["before"] * 2 + ["after"] * 2
    page_script.main(
        ["add", "--recipe", "after", "--baseline", "before", "--verdict", "did not help", *common, "second"]
    )
    records_table, _, no_help = empty_page.read_text().partition("## What did not help")
    assert "| second |" not in records_table and "| second |" in no_help
    # Written again, nothing changes.
    written = empty_page.read_text()
    page_script.main([])
    assert empty_page.read_text() == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "missing", "--verdict", "reference"], "has no record of the recipe 'missing'"),
        (["--recipe", "after", "--verdict", "kept"], "--baseline goes with all verdicts but reference"),
        (["--recipe", "after", "--baseline", "before", "--verdict", "reference"], "all verdicts but reference"),
        (["--recipe", "after", "--baseline", "other", "--verdict", "kept"], "differ in measures"),
        (["--recipe", "broken", "--verdict", "reference"], "is no record of time_to_quality"),
    ],
)
def test_what_is_no_comparison_is_refused(page_script, empty_page, tmp_path, options, message, capsys):
    records = tmp_path / "records"
    write_record(records, "after", 0, 1.0)
    write_record(records, "other", 0, 1.0, heldout="8 images")
    (records / "broken-seed0.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        page_script.main(["add", "--records", str(records), "--change", "x", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "entries").exists()
