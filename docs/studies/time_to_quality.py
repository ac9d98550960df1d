"""
The record table of docs/time_to_quality.md, from the JSON files in docs/studies/time_to_quality/.

    make bench BENCH_ARGS="time_to_quality --recipe before=openmoji32 after=openmoji32,adam_beta2=0.99"
    python docs/studies/time_to_quality.py add --recipe after --baseline before --verdict kept \
        --change "AdamW's second moment forgets more slowly"
    python docs/studies/time_to_quality.py

The first trains and writes a record for each recipe and seed. The second gathers the records of a recipe, and of what
it was compared with, into one file of docs/studies/time_to_quality/ and writes the page; the third only writes the
page. Nothing in its tables is typed by hand: what to change is in those files.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from tcae_diffusers.arguments import exit_with_error
from tcae_diffusers.errors import InputError
from tcae_diffusers.training.markdown_tables import markdown_table, with_table
from tcae_diffusers.training.time_to_quality.records import format_record, read_record
from tcae_diffusers.training.time_to_quality.table import minutes_text, require_comparable, speed_up_text

ENTRIES = Path(__file__).with_suffix("")
PAGE = Path(__file__).parents[1] / "time_to_quality.md"
# What an entry can be: where the table begins, a change that was kept, and one that did not help.
VERDICTS = ("reference", "kept", "did not help")
# The marks in the page between which a table stands, and the verdicts of its entries.
TABLES = {"records": ("reference", "kept"), "no-help": ("did not help",)}


def records_of(folder: Path, recipe: str) -> list[dict]:
    """
    Records of all seeds of a recipe.

    Raises:
        InputError: there is none.
    """
    paths = [path for path in folder.glob("*-seed*.json") if path.name.rpartition("-seed")[0] == recipe]
    if not paths:
        raise InputError(f"{folder} has no record of the recipe {recipe!r}; run the benchmark time_to_quality first")
    return sorted((read_record(path) for path in paths), key=lambda record: record["seed"])


def add(arguments: argparse.Namespace) -> Path:
    """
    Write the entry of a recipe.

    Raises:
        InputError: records are missing or not comparable, or a baseline is, unless the entry is a reference.
    """
    if (arguments.baseline is None) != (arguments.verdict == "reference"):
        raise InputError(
            f"--verdict {arguments.verdict}: --baseline goes with all verdicts but reference, not with it"
        )
    records = records_of(arguments.records, arguments.recipe)
    baseline = records_of(arguments.records, arguments.baseline) if arguments.baseline else []
    require_comparable([*records, *baseline])
    entry = {
        "change": arguments.change,
        "verdict": arguments.verdict,
        "baseline": baseline,
        "records": records,
    }
    path = ENTRIES / f"{records[0]['date'][:10]}-{arguments.recipe}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(format_record(entry))
    return path


def levels_of(entries: list[dict]) -> list[str]:
    """Names of all levels, PSNR before Fréchet distances."""
    names = {level for entry in entries for record in entry["records"] for level in record["crossings"]}
    return sorted(names, key=lambda name: (name.startswith("gFD"), float(re.findall(r"[\d.]+", name)[0])))


def row(entry: dict, levels: list[str]) -> dict[str, str]:
    records = entry["records"]
    cells = {
        "date": records[0]["date"][:10],
        "change": entry["change"],
        "commit": ", ".join(dict.fromkeys(record["commit"] for record in records)),
    }
    for level in levels:
        cells[f"minutes to {level}"] = minutes_text(records, level)
        cells[f"sooner to {level}"] = speed_up_text(records, entry["baseline"], level) if entry["baseline"] else ""
    return {**cells, "seeds": " ".join(str(record["seed"]) for record in records), "verdict": entry["verdict"]}


def tables() -> dict[str, str]:
    """Markdown of each table, oldest entry first."""
    entries = [json.loads(path.read_text()) for path in sorted(ENTRIES.glob("*.json"))]
    found = {}
    for name, verdicts in TABLES.items():
        chosen = [entry for entry in entries if entry["verdict"] in verdicts]
        rows = {str(number): row(entry, levels_of(chosen)) for number, entry in enumerate(chosen, start=1)}
        found[name] = markdown_table(rows) if rows else "No entry yet."
    return found


def filled(page: str) -> str:
    """
    The page with the tables as the entries have them.

    Raises:
        InputError: the page lacks the marks of a table.
    """
    for name, table in tables().items():
        page = with_table(PAGE, page, name, table)
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    adding = parser.add_subparsers(dest="command").add_parser("add", help="write an entry, then the page")
    adding.add_argument("--recipe", required=True, help="recipe whose records are the entry")
    adding.add_argument("--baseline", help="recipe of the same study that it is compared with")
    adding.add_argument("--change", required=True, help="what the recipe changes, in a few words")
    adding.add_argument("--verdict", required=True, choices=VERDICTS)
    adding.add_argument("--records", type=Path, default=Path("runs/time_to_quality"), help="folder of the study")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "add":
            print(add(arguments))
        PAGE.write_text(filled(PAGE.read_text()))
    except InputError as error:
        exit_with_error(str(error))


if __name__ == "__main__":
    sys.exit(main())
