"""Images in class folders: `root/class/image.png`."""

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from diffusers.utils import logging
from PIL import Image

from ...errors import InputError
from ...files import file_names
from .command_outputs import refuse_outputs
from .content_fingerprint import content_fingerprint
from .decoding import load_rgb_image, read_image_size
from .sample_manifest import MANIFEST, recorded_labels

logger = logging.get_logger(__name__)

# The names of the formats that Pillow always decodes to pixels.
IMAGE_EXTENSIONS = (
    *(
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
    ),
    *(
        ".jpx",
        ".mpo",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".qoi",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ),
)

# Those that it does not, and that photographers and artists keep beside the others.
_UNREADABLE = (
    ".arw",
    ".cr2",
    ".dng",
    ".exr",
    ".hdr",
    ".heic",
    ".heif",
    ".jxl",
    ".nef",
    ".pfm",
    ".psd",
    ".svg",
    ".xcf",
)
# What the parts of a data set are called. That all classes of one are is unheard of.
SPLIT_NAMES = {
    "dev",
    "eval",
    "heldout",
    "held_out",
    "test",
    "testing",
    "train",
    "training",
    "val",
    "valid",
    "validation",
}


class ImageFolderSource:
    """Map-style image source over `root/class/image.png`.

    Classes are the sub-folders of `root` in sorted order; images are those below a class folder, see [`image_names`].
    File names are held in one byte buffer rather than a list,
    so that a million of them neither cost a million Python objects nor are copied into each DataLoader worker.
    Where `evaluation generate` drew the images, classes and labels are those that it noted, see [`recorded_labels`].
    A folder of images without class folders is one class, `image`, as a data set without a label column is.

    Args:
        root (`str` or `os.PathLike`): The folder.

    Raises:
        FileNotFoundError: `root` does not exist or is not a folder.
        ValueError: `root` holds no images, or some beside and some in class folders; a class folder holds none (the
            message names it); it holds parts of a data set, see [`refuse_splits`]; or a drawn set is unfinished.
        BrokenImageError: From `source[i]`, for a file that cannot be decoded.
    """

    attribution: str | None = None

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            state = "is a file" if self.root.exists() else "does not exist"
            raise FileNotFoundError(f"image folder {self.root} {state}; expected a folder of root/class/image.png")
        names = image_names(self.root)
        recorded = recorded_labels(self.root, names)
        self._notes = [] if recorded is None else [MANIFEST]
        if recorded is not None:
            self.classes, labels = recorded
        elif are_loose(self.root, names):
            self.classes, labels = ["image"], [0] * len(names)
        else:
            self.classes, labels = self._labels_by_folder(names)
        encoded = [os.fsencode(name) for name in names]
        self.labels = np.asarray(labels, dtype=np.int64)
        self._name_ends = np.cumsum([len(name) for name in encoded])
        self._name_bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def _labels_by_folder(self, names: list[str]) -> tuple[list[str], list[int]]:
        refuse_splits(self.root, names)
        classes = sorted(
            entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")
        )
        if not classes:
            raise InputError(f"image folder {self.root} contains no images ({', '.join(IMAGE_EXTENSIONS)})")

        label_of = {class_name: label for label, class_name in enumerate(classes)}
        labels = [label_of[name.partition("/")[0]] for name in names]
        empty = label_of.keys() - {classes[label] for label in set(labels)}
        if empty:
            raise ValueError(
                f"class folder {self.root / min(empty)} contains no images ({', '.join(IMAGE_EXTENSIONS)}); add "
                "images or remove the folder"
            )
        return [printable_name(name) for name in classes], labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of image `index` relative to `root`."""
        index = range(len(self))[index]
        start = self._name_ends[index - 1] if index else 0
        return os.fsdecode(self._name_bytes[start : self._name_ends[index]].tobytes())

    def image(self, index: int) -> Image.Image:
        return load_rgb_image(self.root / self.name(index))

    def image_size(self, index: int) -> tuple[int, int]:
        return read_image_size(self.root / self.name(index))

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """Of all relative names and of the content of the files, see [`content_fingerprint`], and of noted labels."""
        return content_fingerprint(self.root, chain(map(self.name, range(len(self))), self._notes))


def image_names(root: str | os.PathLike[str]) -> list[str]:
    """The images among [`file_names`]. Those in formats that cannot be read are left out, and the log says so.

    Raises:
        InputError: A link leads nowhere, so what it held would be left out; or pictures that commands wrote are among
            them, see [`refuse_outputs`].
    """
    _warn_of_hidden_images(root)
    names, unreadable, notes = [], [], []
    for name in file_names(root):
        if name.lower().endswith(IMAGE_EXTENSIONS):
            names.append(name)
        elif not os.path.exists(os.path.join(root, name)):
            raise InputError(f"{os.path.join(root, name)} is a link to something that does not exist; remove it")
        elif name.lower().endswith(_UNREADABLE):
            unreadable.append(name)
        elif name.endswith(".json"):
            notes.append(name)
    refuse_outputs(Path(root), names, notes)
    if unreadable:
        logger.warning(
            f"{len(unreadable)} files of {printable_name(os.fspath(root))} are left out because their format cannot "
            f"be read, such as {printable_name(unreadable[0])}; convert them to PNG or JPEG"
        )
    return names


def _warn_of_hidden_images(root: str | os.PathLike[str]) -> None:
    with os.scandir(root) as entries:
        hidden = [entry.path for entry in entries if entry.name.startswith(".") and entry.is_dir()]
    for folder in hidden:
        try:
            names = os.listdir(folder)
        except OSError:
            # Nothing of it is read, such as the wastebasket of a disk's owner.
            continue
        if any(name.lower().endswith(IMAGE_EXTENSIONS) for name in names):
            logger.warning(f"{printable_name(folder)} is hidden, so its images are left out")


def are_loose(root: Path, names: Sequence[str]) -> bool:
    """
    Whether images (paths relative to `root`) lie in no class folders.

    Raises:
        InputError: Some do and some do not: to leave out either kind would be a guess.
    """
    loose, nested = ([name for name in names if ("/" in name) == in_folder] for in_folder in (False, True))
    if loose and nested:
        raise InputError(
            f"{root} has images both inside and outside class folders ({nested[0]} and {loose[0]}); move one kind "
            "elsewhere"
        )
    return bool(loose)


def refuse_splits(root: Path, names: Sequence[str]) -> None:
    """
    Raises:
        InputError: All folders in `root` are called as the parts of a data set are: they are no classes, and nobody
            wants to train on all parts.
    """
    folders = dict.fromkeys(name.partition("/")[0] for name in names)
    if folders and SPLIT_NAMES.issuperset(map(str.lower, folders)):
        raise InputError(
            f"{root} holds the parts of a data set ({', '.join(folders)}) and not its classes; name one part, such as "
            f"{root / next(iter(folders))}"
        )


def printable_name(name: str) -> str:
    """A name from the file system as text; bytes that are not UTF-8 are written out, as `\\xff`."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")
