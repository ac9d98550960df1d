"""Sets of images to evaluate: a folder of samples, an ADM `.npz`, or a data source, as uint8 arrays of one size."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ...errors import InputError
from ...files import sha256_of_file
from .sample_manifest import recorded_classes, recorded_labels
from .sources import ImageSource

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageSet(Protocol):
    """`images[i]` -> uint8 `(H, W, 3)`; `labels` and `classes` where known; `fingerprint` of the content."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> list[int] | None: ...

    @property
    def classes(self) -> list[str] | None: ...

    @property
    def attribution(self) -> str | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


def center_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """Shorter side to `resolution`, centre square: ADM's ImageNet preprocessing (box halving, then bicubic).

    An image that already has the size is returned untouched.
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    if min(image.size) != resolution:
        scale = resolution / min(image.size)
        width, height = (max(resolution, round(side * scale)) for side in image.size)
        image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - resolution) // 2, (pixels.shape[1] - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]


class SourceImages:
    """A data source of [`tcae_diffusers.data`], cropped to one size."""

    def __init__(self, source: ImageSource, resolution: int, name: str):
        self._source, self.resolution, self.name = source, resolution, name
        self.classes = list(source.classes)
        self.attribution = source.attribution
        labels = getattr(source, "labels", None)
        self.labels = None if labels is None else [int(label) for label in labels]

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint}-{self.resolution}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.labelled(index)[0]

    def labelled(self, index: int) -> tuple[np.ndarray, int]:
        """Image and label, for sources that know a label only once the image is read."""
        try:
            image, label = self._source[index]
        except OSError as error:
            raise InputError(f"{self.name}: {error}") from error
        return center_crop(image, self.resolution), int(label)

    def class_counts(self) -> list[int]:
        """Number of images per class."""
        labels = self.labels if self.labels is not None else [self._source[index][1] for index in range(len(self))]
        return np.bincount(labels, minlength=len(self.classes)).tolist()


class FolderImages:
    """Images of a folder of samples, sorted by path; sub-folders, if any, are classes. All must have one size.

    Args:
        root: The folder. resolution: Expected side; `None` takes the size of the first image (no resizing is done:
            samples are judged as they are).
    """

    attribution = None

    def __init__(self, root: str | Path, resolution: int | None = None):
        self.root, self.name = Path(root), str(root)
        if not self.root.is_dir():
            raise InputError(f"image folder {root} does not exist")
        files = (file for file in self.root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        self.files = sorted(
            file for file in files if not any(part.startswith(".") for part in file.relative_to(self.root).parts)
        )
        if not self.files:
            raise InputError(f"no images in {root}; expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
        self.classes: list[str] | None = None
        self.labels: list[int] | None = None
        if all(file.parent != self.root for file in self.files):
            parents = [file.relative_to(self.root).parts[0] for file in self.files]
            self.classes = sorted(set(parents))
            self.labels = [self.classes.index(parent) for parent in parents]
        recorded = recorded_labels(self.root, [file.relative_to(self.root).as_posix() for file in self.files])
        if recorded is not None:
            self.classes, self.labels = recorded
        self._shape = (resolution, resolution, 3) if resolution else self._read(self.files[0]).shape

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"folder\0")
        for file in self.files:
            digest.update(sha256_of_file(file).encode())
        return digest.hexdigest()

    @staticmethod
    def _read(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise InputError(f"cannot read image {file}: {error}") from error

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        pixels = self._read(self.files[index])
        if pixels.shape != self._shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, self._shape)]
            raise InputError(
                f"{self.files[index]} is {sizes[0]} pixels, expected {sizes[1]} like the rest of the set; samples "
                "are not resized silently"
            )
        return pixels


class NpzImages:
    """Images of an ADM-style `.npz`: `arr_0` uint8 `(N, H, W, 3)`, optionally labels in `arr_1`.

    Uncompressed files (what ADM and `numpy.savez` write) are memory-mapped, so 50,000 images cost no memory.
    """

    attribution = None

    def __init__(self, path: str | Path):
        self.path, self.name = Path(path), str(path)
        if not self.path.is_file():
            raise InputError(f"image archive {path} does not exist")
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                if "arr_0" not in archive.files:
                    raise InputError(
                        f"{path} has arrays {archive.files}, expected arr_0 with uint8 images (N, H, W, 3)"
                    )
                labels = archive["arr_1"].tolist() if "arr_1" in archive.files else None
            self._images = _memory_map_member(self.path, "arr_0.npy")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read image archive {path}: {error}") from error
        if self._images.dtype != np.uint8 or self._images.ndim != 4 or self._images.shape[-1] != 3:
            raise InputError(
                f"{path}: arr_0 is {self._images.dtype} {self._images.shape}, expected uint8 (N, H, W, 3)"
            )
        self.labels = labels
        self.classes: list[str] | None = None
        if labels:
            self.classes = recorded_classes(self.path, labels) or [str(label) for label in range(max(labels) + 1)]

    @property
    def fingerprint(self) -> str:
        return sha256_of_file(self.path)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self._images[index])


class EvenlySpacedImages:
    """`count` evenly spaced images of a set."""

    def __init__(self, images: ImageSet, count: int):
        self._images = images
        self._indices = [index * len(images) // count for index in range(count)]
        self.name, self.classes, self.attribution = images.name, images.classes, images.attribution
        self.labels = None if images.labels is None else [images.labels[index] for index in self._indices]

    @property
    def fingerprint(self) -> str:
        return f"{self._images.fingerprint}-{len(self._indices)}-evenly-spaced"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[self._indices[index]]


def _memory_map_member(path: Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            with np.load(path, allow_pickle=False) as loaded:
                return loaded[member.removesuffix(".npy")]
    with open(path, "rb") as handle:
        # The local header repeats name and extra field with lengths of its own; the array starts after them.
        handle.seek(info.header_offset + 26)
        name_length, extra_length = np.frombuffer(handle.read(4), dtype="<u2")
        handle.seek(int(name_length) + int(extra_length), 1)
        version = np.lib.format.read_magic(handle)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(handle)
        offset = handle.tell()
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")


def open_image_set(spec: str | Path, resolution: int | None = None) -> ImageSet:
    """Opens what a command line names.

    Args:
        spec: An `.npz`, a folder of samples (flat, or one sub-folder per class), or a data source such as
        `openmoji:heldout`. resolution: Side in pixels. Data sources are cropped and resized to it; samples must have
        it already.

    Raises:
        InputError: If there is nothing usable at `spec`; the message names what is wrong.
    """
    text = str(spec)
    if text.endswith(".npz"):
        return NpzImages(text)
    if ":" not in text:
        return FolderImages(text, resolution)
    return open_data_source(text, resolution)


def open_data_source(spec: str | Path, resolution: int | None = None) -> SourceImages:
    """Opens `openmoji:heldout`, `datasets:...` or a folder of `root/class/img.png`, resized to `resolution`."""
    from tcae_diffusers.data.images.sources import build_image_source

    try:
        source = build_image_source(str(spec), resolution=resolution)
        resolution = resolution or min(source[0][0].size)
    except (ValueError, OSError, ImportError) as error:
        raise InputError(str(error)) from error
    return SourceImages(source, resolution, str(spec))


def uint8_batches(
    images: ImageSet, batch_size: int, indices: range | list[int] | None = None
) -> Iterator[torch.Tensor]:
    """Batches of a set as uint8 `(B, 3, H, W)`, in order; only one batch is in memory."""
    indices = range(len(images)) if indices is None else indices
    for start in range(0, len(indices), batch_size):
        arrays = [images[index] for index in indices[start : start + batch_size]]
        yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """The uint8 rule of every figure here: `[-1, 1]` to `round(clamp((x + 1) / 2 * 255, 0, 255))`."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_signed_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1]: `x / 127.5 - 1`, the inverse of [`to_uint8`]."""
    return images.float() / 127.5 - 1.0
