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
from .content_fingerprint import content_digests

SETTINGS = "settings.json"
MANIFEST = "manifest.json"
# Either may lie in a folder of images for reasons of somebody else's.
KIND = "samples"
# Where the note beside an `.npz` says which archive it is about.
ARCHIVE_SHA256 = "archive_sha256"


def read_note(path: Path) -> dict[str, Any] | None:
    """
    The content of a file of ours; `None` if there is no such file or it is somebody else's.

    Raises:
        InputError: It says that it is ours, and does not hold what we write.
    """
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    needs_files = path.name == MANIFEST
    if problem := _problem(content, needs_files):
        raise InputError(f"{path} is damaged: {problem}; generate the samples again, or remove the file")
    return content


def _problem(note: dict[str, Any], needs_files: bool) -> str | None:
    classes, files = note.get("classes"), note.get("files", None if needs_files else [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "it has no list of class names"
    if not isinstance(files, list):
        return "it has no list of files"
    for entry in files:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            return f"it lists {entry!r} instead of a file and its label"
        label = entry.get("label")
        if not isinstance(label, int) or not 0 <= label < len(classes):
            return f"the label of {entry['file']} is {label!r}, but there are {len(classes)} classes"
    return None


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


def recorded_seed(place: str | Path) -> int | None:
    """Seed that samples in a folder or an `.npz` were drawn with; `None` where it is not noted of this content."""
    path = Path(place)
    note = read_note(path / MANIFEST if path.is_dir() else path.with_suffix(".json"))
    if note is None or (path.is_file() and not is_noted(path, note)):
        return None
    return note.get("seed")


def refuse_drawn_set(folder: Path, remedy: str) -> None:
    """
    Raises:
        InputError: `folder` is a set of drawn samples, finished or not.
    """
    if is_drawn_set(folder):
        raise InputError(f"{folder} holds generated samples, whose labels are not those of its folders; {remedy}")


def is_drawn_set(folder: Path) -> bool:
    """Whether a folder is a set of drawn samples, finished or not. Raises as [`read_note`] does."""
    return any((folder / name).is_file() and read_note(folder / name) for name in (SETTINGS, MANIFEST))


def recorded_classes(archive: Path, labels: Sequence[int]) -> list[str] | None:
    """Class names of a drawn `.npz`, from the `.json` beside it; `None` if that is not about this very archive."""
    note = read_note(archive.with_suffix(".json"))
    if note is None or not is_noted(archive, note) or max(labels) >= len(note["classes"]):
        return None
    return note["classes"]


def is_noted(archive: Path, note: dict[str, Any]) -> bool:
    """Whether the content of an `.npz` is what it was when `note` was written: another may have taken its place."""
    (digest,) = content_digests([archive])
    return note.get(ARCHIVE_SHA256) == digest.hex()
