"""Rooms import downwards only: what a file may import is what stands before its room in `ROOMS`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# From the ground up. A room imports from itself and from rooms that stand before it.
ROOMS = (
    "errors",
    "existing_paths",
    "arguments",
    "command",
    "files",
    "version",
    "charts",
    "models",
    "data",
    "objectives",
    "self_supervision",
    "metrics",
    "trainer",
    "pipelines",
    "evaluation",
    "training",
)
# These make the package known to diffusers and to users, so they know every class that is to be known.
DOORS = ("__init__", "registration")


def package_files() -> dict[str, Path]:
    """`{dotted name below tcae_diffusers: file}` of everything that a wheel installs."""
    folders = {"": ROOT / "tcae_diffusers", **{name: ROOT / name for name in ("pipelines", "evaluation", "training")}}
    return {
        ".".join([*filter(None, [prefix]), *file.relative_to(folder).with_suffix("").parts]): file
        for prefix, folder in folders.items()
        for file in folder.rglob("*.py")
    }


def imported_names(name: str, file: Path) -> list[str]:
    """Dotted names below tcae_diffusers that the file imports anywhere, inside functions and type checks too."""
    package = ["tcae_diffusers", *name.split(".")][:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from .. import models` names a room too.
            found += [f"{module}.{alias.name}" for alias in node.names]
    return [each.removeprefix("tcae_diffusers.") for each in found if each.startswith("tcae_diffusers.")]


def arrows_back(files: dict[str, Path]) -> list[str]:
    wrong = []
    for name, file in files.items():
        room = name.split(".")[0]
        if room in DOORS:
            continue
        for imported in imported_names(name, file):
            target = imported.split(".")[0]
            # `from tcae_diffusers import AutoencoderTC` goes through the front door, which opens onto every room.
            rank = ROOMS.index(target) if target in ROOMS else ROOMS.index("pipelines")
            if target != room and rank >= ROOMS.index(room):
                wrong.append(f"{name} imports {imported}")
    return wrong


def test_every_file_stands_in_a_room():
    assert {name.split(".")[0] for name in package_files()} == {*ROOMS, *DOORS}


def test_no_import_goes_back():
    assert arrows_back(package_files()) == []


def test_an_arrow_back_is_found(tmp_path):
    file = tmp_path / "schedules.py"
    for line in ("from ..trainer import run", "import tcae_diffusers.evaluation", "from tcae_diffusers import x"):
        file.write_text(f"def late():\n    {line}\n")
        assert len(arrows_back({"objectives.schedules": file})) == 1
    file.write_text("from ..models import discriminator\nfrom .reconstruction import x\nimport torch\n")
    assert arrows_back({"objectives.schedules": file}) == []
