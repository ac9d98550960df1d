"""The site of `make docs` has every page of docs/; whether its links work is checked when it is built."""

import pkgutil
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
GENERATED = {"index.md", "contributing.md"}


def pages(entry):
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def test_every_page_is_in_the_navigation():
    navigation = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert sorted(navigation) == sorted(written | GENERATED)


def test_the_reference_names_what_exists():
    for page in ROOT.glob("docs/api/*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("::: "):
                assert pkgutil.resolve_name(line.removeprefix("::: ")), line
