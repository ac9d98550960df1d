"""What `evaluation generate` notes beside the images that it draws, and how a reader finds their labels by it.

| file | written | holds |
|---|---|---|
| `settings.json` | first | how the samples are drawn, and their classes; alone, it means an unfinished set |
| `manifest.json` | last | the same, and the file and the label of every image |

A class may have any name, and a folder may not, so labels are read from here and not from folders.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError

SETTINGS = "settings.json"
MANIFEST = "manifest.json"
# Either may lie in a folder of images for reasons of somebody else's.
KIND = "samples"


def read_note(path: Path) -> dict[str, Any] | None:
    """The content of a file of ours; `None` if there is no such file or it is somebody else's."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == KIND else None


def recorded_labels(root: Path, files: Sequence[str]) -> tuple[list[str], list[int]] | None:
    """
    Class names, and the label of each of `files` (paths relative to `root`), as they were drawn; `None` for a folder
    that holds something else than drawn samples.

    Raises:
        InputError: The set is unfinished, or `files` are not the images that it consists of.
    """
    manifest = read_note(root / MANIFEST)
    if manifest is None:
        if read_note(root / SETTINGS) is None:
            return None
        raise InputError(
            f"{root} holds an incomplete set of samples ({MANIFEST} is missing); run the command that generates it "
            "again"
        )
    label_of = {entry["file"]: entry["label"] for entry in manifest["files"]}
    beside, lost = [file for file in files if file not in label_of], sorted(label_of.keys() - set(files))
    for problem, names, remedy in (
        ("also holds other images", beside, "move them elsewhere"),
        ("lacks some of them", lost, "run the command that generates them again"),
    ):
        if names:
            raise InputError(
                f"{root} should hold {len(label_of)} samples according to its {MANIFEST}, but {problem} "
                f"({len(names)}, the first is {names[0]!r}); {remedy}"
            )
    return manifest["classes"], [label_of[file] for file in files]


def recorded_classes(archive: Path, labels: Sequence[int]) -> list[str] | None:
    """Class names of a drawn `.npz`, from the `.json` beside it; `None` if that is not about these labels."""
    note = read_note(archive.with_suffix(".json"))
    if note is None or note["images"] != len(labels) or max(labels) >= len(note["classes"]):
        return None
    return note["classes"]
