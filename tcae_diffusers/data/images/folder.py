"""Images in class folders: `root/class/image.png`."""

import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .decoding import load_rgb_image

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolderSource:
    """Map-style image source over `root/class/image.png`.

    Classes are the sub-folders of `root` in sorted order; images are those below a class folder, at any depth, in
    sorted order. Hidden files and folders are passed over. File names are held in one byte buffer rather than a list,
    so that a million of them neither cost a million Python objects nor are copied into each DataLoader worker.

    Args:
        root (`str` or `os.PathLike`): The folder.

    Raises:
        FileNotFoundError: `root` does not exist or is not a folder.
        ValueError: `root` has no class folder, or a class folder holds no image (the message names it).
        BrokenImageError: From `source[i]`, for a file that cannot be decoded.
    """

    attribution: str | None = None

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            state = "is a file" if self.root.exists() else "does not exist"
            raise FileNotFoundError(f"image folder {self.root} {state}; expected a folder of root/class/image.png")
        self.classes = sorted(
            entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise ValueError(f"image folder {self.root} has no class folder; expected root/class/image.png")

        names, labels = [], []
        for label, class_name in enumerate(self.classes):
            found = sorted(_images_below(self.root / class_name, class_name))
            if not found:
                raise ValueError(
                    f"class folder {self.root / class_name} holds no image ({', '.join(IMAGE_EXTENSIONS)}); "
                    "add images or remove the folder"
                )
            names.extend(map(os.fsencode, found))
            labels.extend([label] * len(found))
        self.labels = np.asarray(labels, dtype=np.int64)
        self._name_ends = np.cumsum([len(name) for name in names])
        self._name_bytes = np.frombuffer(b"".join(names), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of image `index` relative to `root`."""
        index = range(len(self))[index]
        start = self._name_ends[index - 1] if index else 0
        return os.fsdecode(self._name_bytes[start : self._name_ends[index]].tobytes())

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return load_rgb_image(self.root / self.name(index)), int(self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all relative names and file sizes: cheap at a million images, blind to edits of equal size."""
        digest = hashlib.sha256(b"image_folder\0")
        for index in range(len(self)):
            name = self.name(index)
            try:
                size = os.stat(self.root / name).st_size
            except FileNotFoundError:
                # A dangling link: reading it will name it as broken.
                size = -1
            digest.update(os.fsencode(name) + f"\0{size}\0".encode())
        return digest.hexdigest()


def _images_below(folder: Path, relative: str) -> list[str]:
    """Names, relative to the root, of every image below `folder`; links are followed."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        name = f"{relative}/{entry.name}"
        if entry.is_dir():
            found.extend(_images_below(folder / entry.name, name))
        elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
            found.append(name)
    return found
