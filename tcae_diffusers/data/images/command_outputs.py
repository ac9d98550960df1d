"""What commands wrote among images: their pictures would be taken for images, and their folders for classes."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import InputError
from ..latents.format import FORMAT
from .sample_manifest import KIND, MANIFEST, SETTINGS, is_drawn_set, refuse_drawn_set

# How our notes begin: of other people's JSON, which may be large, no more is read.
_BEGINNING = re.compile(rb'\{\s*"(?:kind|format)": "([a-z_-]+)"')
# What else a result holds.
_RESULT_KEYS = {"command", "date", "settings", "versions", "machine"}
# A training run has both.
_RUN = ("run.json", "arguments.yaml")
_NAMES = (_RUN[0], SETTINGS, MANIFEST)


def refuse_outputs(root: Path, images: Sequence[str], notes: Iterable[str]) -> None:
    """
    Args:
        root: A folder of images.
        images, notes: The images and the JSON files at any depth below it, by their paths relative to it.

    Raises:
        InputError: A folder of generated samples, of a training run, of latents or of results lies somewhere below
            `root`, or results lie in `root` itself beside images that it does not list as samples.
    """
    # The data of an image in a file of its own, as many data sets have it, are no note of ours.
    stems = {os.path.splitext(image)[0] for image in images}
    for name in notes:
        note = root / name
        is_beside_images = note.parent == root and any("/" not in image for image in images) and not is_drawn_set(root)
        is_below = note.parent != root
        if (is_below or is_beside_images) and (note.name in _NAMES or os.path.splitext(name)[0] not in stems):
            _refuse(root, note)


def _refuse(root: Path, note: Path) -> None:
    folder, kind = note.parent, _kind(note)
    if kind == KIND:
        refuse_drawn_set(folder, "name one set instead")
    elif kind is not None or (note.name == _RUN[0] and (folder / _RUN[1]).is_file()):
        what = "cached latents" if kind == FORMAT else f"what a command wrote ({note.name})"
        raise InputError(
            f"{folder} holds {what} and none of the images of {root}; move it out of there, and choose another folder "
            "for what commands write"
        )


def _kind(note: Path) -> str | None:
    """Which of our notes a file is, if any."""
    try:
        with open(note, "rb") as stream:
            beginning = _BEGINNING.match(stream.read(64))
        kind = None if beginning is None else beginning[1].decode()
        if kind in (None, KIND, FORMAT):
            return kind
        return kind if json.loads(note.read_text()).keys() >= _RESULT_KEYS else None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
