"""Storage of generated samples: PNG files, each written completely or not at all, so that an interrupted run can
resume.

| layout | files |
|---|---|
| `folder` | `<class>/000123.png`, see [`class_folders`] for how folders are called |
| `flat` | `000123.png` |
| `npz` | one ADM-style archive, `arr_0` uint8 `(N, H, W, 3)`, `arr_1` int64 labels; PNG parts until it is complete |

Beside them lie the notes of [`~data.images.sample_manifest`], by which every reader here finds the labels.
`settings.json` is written first and compared on a second run; `manifest.json` (or the archive, with its `.json`) is
written last and means that the set is complete.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcae_diffusers.data.images.folder import image_names
from tcae_diffusers.data.images.sample_manifest import (
    ARCHIVE_SHA256,
    KIND,
    MANIFEST,
    SETTINGS,
    is_noted,
    read_note,
)
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import file_names, sha256_of_file, write_atomically, write_json

from .class_folders import class_folders
from .contact_sheet import png_bytes

LAYOUTS = ("folder", "flat", "npz")


class SampleStore:
    """A set of samples on disk that is being drawn.

    Args:
        output: Folder, or the archive's path for layout `npz`.
        layout: One of [`LAYOUTS`].
        labels: Class index of each image.
        class_names: Names of the classes; any text.
        settings: Everything else that the pixels depend on.

    Raises:
        InputError: If the output cannot be of this layout.
    """

    def __init__(
        self, output: str | Path, layout: str, labels: list[int], class_names: list[str], settings: dict[str, Any]
    ):
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
        self.output, self.layout = Path(output), layout
        if layout == "npz" and self.output.suffix != ".npz":
            raise InputError(f"layout npz writes one file: --output {output} must end in .npz")
        if layout != "npz" and self.output.suffix == ".npz":
            raise InputError(
                f"--output {output} is a file name, but layout {layout} writes a folder; pass --layout npz"
            )
        self.labels = labels
        self.folder = self.output.with_suffix(".parts") if layout == "npz" else self.output
        self._class_folders = class_folders(class_names)
        noted = {
            "kind": KIND,
            **settings,
            "layout": layout,
            "images": len(labels),
            # These say which label every image has: labels are drawn in proportion and in a fixed order.
            "classes": class_names,
            "images_per_class": np.bincount(labels, minlength=len(class_names)).tolist(),
        }
        # As it will be read again: tuples are lists there, and paths are text.
        self._settings = json.loads(json.dumps(noted, default=str))

    def begin(self, is_main_process: bool = True) -> None:
        """Creates the folder and notes the settings.

        Raises:
            InputError: If there is a set that was drawn with other settings, or anything that is not of this set.
        """
        try:
            if self.layout == "npz" and self.output.exists():
                note = read_note(self.output.with_suffix(".json"))
                self._compare_settings(self.output, note if note and is_noted(self.output, note) else None)
                return
            found = set(image_names(self.folder)) if self.folder.is_dir() else set()
            # Also without an image yet: the command that noted them may be running.
            if found or read_note(self.folder / SETTINGS) is not None:
                self._compare_settings(self.folder, read_note(self.folder / SETTINGS))
            elif is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._check_notes()
                write_json(self.folder / SETTINGS, self._settings)
            own = {self.path(index).relative_to(self.folder).as_posix() for index in range(len(self.labels))}
            if found - own:
                raise InputError(
                    f"{self.folder} holds {len(found - own)} images that do not belong to this set, such as "
                    f"{min(found - own)}; move them elsewhere or choose another --output"
                )
            if is_main_process and own - found:
                (self.folder / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot write samples to {self.folder}: {error}") from error

    def _check_notes(self) -> None:
        paths = [self.folder / SETTINGS, self.folder / MANIFEST]
        if self.layout == "npz":
            paths = [self.folder / SETTINGS, self.output.with_suffix(".json")]
            # The whole folder of parts is removed in the end.
            if others := [name for name in file_names(self.folder) if name != SETTINGS]:
                raise InputError(
                    f"{self.folder} holds {others[0]}, but this command needs that folder and removes it when it is "
                    "done; choose another --output"
                )
        for path in paths:
            if path.exists() and read_note(path) is None:
                raise InputError(
                    f"{path} was not written by this command, which needs that name; choose another --output"
                )

    def _compare_settings(self, place: Path, found: dict[str, Any] | None) -> None:
        if found is None:
            raise InputError(f"{place} holds images that were not generated by this command; choose another --output")
        changed = [
            _change(key, found.get(key), self._settings[key])
            for key in self._settings
            if found.get(key) != self._settings[key]
        ]
        if changed:
            raise InputError(
                f"{place} holds samples generated with other settings ({'; '.join(changed)}). Choose another "
                "--output or delete it."
            )

    @property
    def is_complete(self) -> bool:
        """Whether every image is there and the last file was written."""
        return self.output.is_file() if self.layout == "npz" else (self.folder / MANIFEST).is_file()

    def path(self, index: int) -> Path:
        """Path of image `index`."""
        file = f"{index:06d}.png"
        return self.folder / (self._class_folders[self.labels[index]] if self.layout == "folder" else "") / file

    def missing(self, indices: range) -> list[int]:
        """Those of `indices` that are not generated yet."""
        return [index for index in indices if not self.path(index).is_file()]

    def write(self, index: int, pixels: np.ndarray) -> None:
        """Stores uint8 `(H, W, 3)` as image `index`."""
        write_atomically(self.path(index), png_bytes(Image.fromarray(pixels)))

    def finish(self, provenance: dict[str, Any]) -> None:
        """
        Checks that every image is there and writes the last file; removes the parts of an archive.

        Raises:
            InputError: Images of this set are damaged, or another command has drawn into the same folder.
        """
        self._compare_settings(self.folder, read_note(self.folder / SETTINGS))
        missing = self.missing(range(len(self.labels)))
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(self.labels)} samples are missing, the first is {self.path(missing[0])}"
            )
        self._check_sizes()
        manifest = {**self._settings, **provenance}
        if self.layout == "npz":
            partial = self._write_archive()
            write_json(self.output.with_suffix(".json"), {**manifest, ARCHIVE_SHA256: sha256_of_file(partial)})
            partial.replace(self.output)
            shutil.rmtree(self.folder)
        else:
            entries = [
                {"file": self.path(index).relative_to(self.folder).as_posix(), "label": label}
                for index, label in enumerate(self.labels)
            ]
            write_json(self.folder / MANIFEST, {**manifest, "files": entries})

    def _check_sizes(self) -> None:
        # What was there before this run may have been damaged, and the last file says that all is well.
        sizes: dict[tuple[int, int], Path] = {}
        for path in map(self.path, range(len(self.labels))):
            try:
                with Image.open(path) as image:
                    sizes[image.size] = path
            except OSError as error:
                raise InputError(f"{path} is damaged ({error}); remove it and run the command again") from error
        if len(sizes) > 1:
            (first, path), (second, other) = [*sizes.items()][:2]
            raise InputError(f"{path} has size {first} and {other} {second}; remove what is not of this set")

    def _write_archive(self) -> Path:
        """Streams the PNG parts into one uncompressed archive, in constant memory, under a name of its own."""
        partial = self.output.with_name(f".{self.output.name}.partial")
        with Image.open(self.path(0)) as first:
            shape = (len(self.labels), first.height, first.width, 3)
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for index in range(len(self.labels)):
                    with Image.open(self.path(index)) as image:
                        member.write(np.asarray(image.convert("RGB")).tobytes())
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(self.labels, dtype=np.int64))
        return partial


@contextmanager
def withdrawn_if_empty(stores: Sequence[SampleStore]) -> Iterator[None]:
    """Where nothing could be drawn at all, take back what was noted, so that another set may take the place."""
    try:
        yield
    except BaseException:
        for store in stores:
            if not any(store.folder.rglob("*.png")):
                (store.folder / SETTINGS).unlink(missing_ok=True)
        raise


def _change(key: str, before: Any, now: Any) -> str:
    """What is different, in a few words also where it is one class name of a thousand."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        place = next(place for place, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        return _change(f"{key}[{place}]", before[place], now[place])
    if isinstance(before, list) and isinstance(now, list):
        return f"{len(before)} {key} before, {len(now)} now"
    return f"{key}: {before!r} before, {now!r} now"
