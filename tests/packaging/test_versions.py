"""The range of versions that README.md states is the one that setup.cfg allows and `make test-versions` tries."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tcae_diffusers.registration import TESTED_DIFFUSERS

from .lowest_versions import LIBRARIES, SETUP, lowest_versions

README = Path(__file__).parents[2] / "README.md"


def stated_ranges() -> dict[str, tuple[str, str]]:
    (row,) = (line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| Versions |"))
    found = re.findall(r"(\w+) ([\d.]*\d)(?: to ([\d.]*\d))?", row.split("(")[0])
    return {name: (first, last or first) for name, first, last in found}


def test_readme_states_the_lower_bounds_of_setup_cfg():
    stated = stated_ranges()
    assert stated.keys() == set(LIBRARIES) - {"torchvision"}
    lowest = lowest_versions()
    assert lowest.keys() == set(LIBRARIES)
    assert {name: Version(first) for name, (first, _) in stated.items()} == {
        name: Version(lowest[name]) for name in stated
    }
    assert all(Version(first) <= Version(last) for first, last in stated.values())


def test_the_remedy_names_the_newest_diffusers_that_was_tested():
    assert Version(stated_ranges()["diffusers"][1]) == Version(TESTED_DIFFUSERS)


def test_no_upper_bound_keeps_the_next_release_out():
    for line in SETUP.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith(tuple(f"{name}>=" for name in LIBRARIES)):
            assert {clause.operator for clause in Requirement(line.strip()).specifier} == {">="}, line
