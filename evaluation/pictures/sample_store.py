"""Where drawn samples are kept: PNG files, each written whole or not at all, so that an interrupted run goes on.

| layout | files |
|---|---|
| `folder` | `<class name>/000123.png`, which every data loader here reads with its labels |
| `flat` | `000123.png`, labels in `manifest.json` |
| `npz` | one ADM-style archive, `arr_0` uint8 `(N, H, W, 3)` and `arr_1` int64 labels; PNG parts until it is complete
|

`settings.json` is written first and compared on a second run; `manifest.json` (or the archive) is written last and
means that the set is complete.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json

from .contact_sheet import png_bytes

LAYOUTS = ("folder", "flat", "npz")


class SampleStore:
    """A set of samples on disk that is being drawn.

    Args:
        output: Folder, or the archive's path for layout `npz`.
        layout: One of [`LAYOUTS`].
        labels: Class index of each image.
        class_names: Names of the classes, used as folder names.

    Raises:
        InputError: If the output cannot be written or holds samples drawn with other settings.
    """

    def __init__(self, output: str | Path, layout: str, labels: list[int], class_names: list[str]):
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
        self.output, self.layout = Path(output), layout
        if layout == "npz" and self.output.suffix != ".npz":
            raise InputError(f"layout npz writes one file: --output {output} must end in .npz")
        if layout != "npz" and self.output.suffix == ".npz":
            raise InputError(
                f"--output {output} is a file name, but layout {layout} writes a folder; pass --layout npz"
            )
        self.labels, self.class_names = labels, class_names
        self.folder = self.output.with_suffix(".parts") if layout == "npz" else self.output

    def begin(self, settings: dict[str, Any], is_main_process: bool = True) -> None:
        """Creates the folder and notes the settings, or checks that it was begun with the same ones."""
        path = self.folder / "settings.json"
        wanted = json.loads(json.dumps(settings, default=str))
        try:
            has_images = self.folder.is_dir() and any(self.folder.rglob("*.png"))
            if has_images and not path.is_file():
                raise InputError(
                    f"{self.folder} holds images that were not drawn by this command; choose another --output"
                )
            if has_images:
                self._compare_settings(json.loads(path.read_text()), wanted)
            elif is_main_process:
                write_json(path, wanted)
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"cannot write samples to {self.folder}: {error}") from error

    def _compare_settings(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if changed:
            details = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in changed)
            raise InputError(
                f"{self.folder} holds samples drawn with other settings ({details}). "
                "Choose another --output or delete it."
            )

    @property
    def is_complete(self) -> bool:
        """Whether every image is there and the last file was written."""
        return self.output.is_file() if self.layout == "npz" else (self.folder / "manifest.json").is_file()

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        file = f"{index:06d}.png"
        if self.layout != "folder":
            return self.folder / file
        return self.folder / self.class_names[self.labels[index]].replace("/", "-") / file

    def missing(self, indices: range) -> list[int]:
        """Those of `indices` that are not drawn yet."""
        return [index for index in indices if not self.path(index).is_file()]

    def write(self, index: int, pixels: np.ndarray) -> None:
        """Stores uint8 `(H, W, 3)` as image `index`."""
        write_atomically(self.path(index), png_bytes(Image.fromarray(pixels)))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Checks that every image is there and writes the last file; removes the parts of an archive."""
        missing = self.missing(range(len(self.labels)))
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(self.labels)} samples are missing, first {self.path(missing[0])}"
            )
        manifest = {**manifest, "images": len(self.labels), "classes": self.class_names}
        if self.layout == "npz":
            self._write_archive()
            write_json(self.output.with_suffix(".json"), manifest)
            shutil.rmtree(self.folder)
        else:
            entries = [
                {"file": str(self.path(index).relative_to(self.folder)), "label": label}
                for index, label in enumerate(self.labels)
            ]
            write_json(self.folder / "manifest.json", {**manifest, "files": entries})

    def _write_archive(self) -> None:
        """Streams the PNG parts into one uncompressed archive, in constant memory."""
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
        partial.replace(self.output)
