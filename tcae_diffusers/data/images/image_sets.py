"""Sets of images to evaluate: a folder, an ADM `.npz`, or a data source, as uint8 arrays of one size."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from ...errors import InputError
from ...files import sha256_of_json
from ..numpy_archive import open_npz
from .center_crop import center_crop, height_and_width
from .content_fingerprint import content_digests, content_fingerprint
from .decoding import load_rgb_image
from .folder import IMAGE_EXTENSIONS, are_loose, image_names, printable_name, refuse_splits
from .sample_manifest import recorded_classes, recorded_labels
from .sources import ImageSource, build_image_source, drawing_resolution, scheme_of

logger = logging.get_logger(__name__)

# Enough for ImageNet-21k several times over; what is larger is no index of a class.
_MOST_CLASSES = 100_000


class ImageSet(Protocol):
    """`images[i]` -> uint8 `(H, W, 3)`; `labels` and `classes` where known; `fingerprint` of the content.

    Images are as they are, and all of one size, or cropped and resized to one size by [`center_crop`]. Which of the
    two is part of the fingerprint.
    """

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


class SourceImages:
    """A data source of [`tcae_diffusers.data`], cropped and resized to `size` (side, or height and width)."""

    classes: list[str] | None = None
    labels: list[int] | None = None

    def __init__(self, source: ImageSource, size: int | tuple[int, int], name: str):
        self._source, self.size, self.name, self.attribution = source, size, name, source.attribution

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint}-{_cropped(self.size)}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return np.asarray(center_crop(self._source.image(index), self.size))
        except OSError as error:
            raise InputError(f"{self.name}: {error}") from error


class LabelledImages(SourceImages):
    """[`SourceImages`] with a class each.

    Raises:
        InputError: If the labels of the source cannot be used.
    """

    classes: list[str]
    labels: list[int]

    def __init__(self, source: ImageSource, size: int | tuple[int, int], name: str):
        super().__init__(source, size, name)
        self.classes, self.labels = list(source.classes), source.labels.tolist()

    @property
    def class_counts(self) -> list[int]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()


class FolderImages:
    """Images below a folder, see [`~data.images.folder.image_names`]; sub-folders, if any, are classes.

    Where `evaluation generate` drew the images, classes and labels are those that it noted, see [`recorded_labels`].

    Args:
        root: The folder.
        size: Side, or height and width, to which real images are cropped and resized. `None` leaves images as they
            are, which samples are judged by: all must have the size of the first.

    Raises:
        InputError: No such folder, no images in it, images both beside and in class folders, parts of a data set (see
            [`refuse_splits`]), or, from `images[i]`, an image of another size.
        BrokenImageError: From `images[i]`, for a file that cannot be decoded.
    """

    attribution = None

    def __init__(self, root: str | Path, size: int | tuple[int, int] | None = None):
        self.root, self.name, self.size = Path(root), str(root), size
        if not self.root.is_dir():
            raise InputError(f"image folder {root} {'is a file' if self.root.exists() else 'does not exist'}")
        self.files = image_names(self.root)
        if not self.files:
            raise InputError(f"no images in {root}; expected {', '.join(IMAGE_EXTENSIONS)} files")
        recorded = recorded_labels(self.root, self.files)
        self._is_recorded = recorded is not None
        self.classes: list[str] | None
        self.labels: list[int] | None
        self.classes, self.labels = recorded or self._labels_by_folder()
        self._shape: tuple[int, ...] = self._read(0).shape if size is None else ()

    def _labels_by_folder(self) -> tuple[list[str], list[int]] | tuple[None, None]:
        if are_loose(self.root, self.files):
            return None, None
        refuse_splits(self.root, self.files)
        folders = [file.partition("/")[0] for file in self.files]
        # Folders come in the order of their names, and images folder by folder.
        label_of = {name: label for label, name in enumerate(dict.fromkeys(folders))}
        return [printable_name(name) for name in label_of], [label_of[folder] for folder in folders]

    @property
    def fingerprint(self) -> str:
        labels = f"-{sha256_of_json([self.classes, self.labels])[:16]}" if self._is_recorded else ""
        return f"{content_fingerprint(self.root, self.files)}{labels}-{_cropped(self.size)}"

    def _read(self, index: int) -> np.ndarray:
        return np.asarray(load_rgb_image(self.root / self.files[index]))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        pixels = self._read(index)
        if self.size is not None:
            return np.asarray(center_crop(Image.fromarray(pixels), self.size))
        if pixels.shape != self._shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, self._shape)]
            raise InputError(
                f"{self.root / self.files[index]} is {sizes[0]} pixels, expected {sizes[1]} like the rest of the set; "
                "samples are not resized silently"
            )
        return pixels


class NpzImages:
    """Images of an ADM-style `.npz`: `arr_0` uint8 `(N, H, W, 3)`, optionally class indices `(N,)` in `arr_1`.

    Uncompressed files (what ADM and `numpy.savez` write) are memory-mapped, so 50,000 images cost no memory.

    Args:
        path: The archive.
        size: As in [`FolderImages`].

    Raises:
        InputError: The archive cannot be read, or holds other images or labels than these; the message says which.
    """

    attribution = None

    def __init__(self, path: str | Path, size: int | tuple[int, int] | None = None):
        self.path, self.name, self.size = Path(path), str(path), size
        if not self.path.is_file():
            raise InputError(f"image archive {path} does not exist")
        with open_npz(self.path, "image archive") as archive:
            if "arr_0" not in archive.files:
                raise InputError(f"{path} has arrays {archive.files}, expected arr_0 with uint8 images (N, H, W, 3)")
            labels = archive["arr_1"] if "arr_1" in archive.files else None
            self._images = _memory_map_member(self.path, "arr_0.npy")
        if self._images.dtype != np.uint8 or self._images.ndim != 4 or self._images.shape[-1] != 3:
            raise InputError(
                f"{path}: arr_0 is {self._images.dtype} {self._images.shape}, expected uint8 (N, H, W, 3)"
            )
        if len(self._images) == 0:
            raise InputError(f"{path} contains no images")
        self.classes: list[str] | None = None
        self.labels: list[int] | None = None
        self._recorded_classes: list[str] | None = None
        if labels is not None:
            self.labels = _class_indices(labels, len(self._images), f"{path}: arr_1")
            self._recorded_classes = recorded_classes(self.path, self.labels)
            self.classes = self._recorded_classes or [str(label) for label in range(max(self.labels) + 1)]

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the images in the file."""
        return tuple(self._images.shape[1:3])

    @property
    def fingerprint(self) -> str:
        (digest,) = content_digests([self.path])
        names = f"-{sha256_of_json(self._recorded_classes)[:16]}" if self._recorded_classes else ""
        return f"{digest.hex()}{names}-{_cropped(self.size)}"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        pixels = np.array(self._images[index])
        return pixels if self.size is None else np.asarray(center_crop(Image.fromarray(pixels), self.size))


def _class_indices(labels: np.ndarray, count: int, name: str) -> list[int]:
    """`labels` as a list, if they are one class index per image."""
    expected = f"expected one class index per image: non-negative integers of shape ({count},)"
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,) or count == 0:
        raise InputError(f"{name} holds {labels.dtype} {labels.shape} labels for {count} images; {expected}")
    wrong = (labels < 0) | (labels >= _MOST_CLASSES)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise InputError(f"{name}: the label of image {index} is {labels[index]}; {expected}")
    return labels.tolist()


def _cropped(size: int | tuple[int, int] | None) -> str:
    """What is done to the images of a set, for its fingerprint."""
    if size is None:
        return "as-they-are"
    return "center-crop-{}x{}".format(*height_and_width(size))


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


def open_image_set(spec: str | Path, size: int | tuple[int, int] | None = None) -> ImageSet:
    """Opens what a command line names.

    Args:
        spec: An `.npz`, a folder (flat, or one sub-folder per class), or a data source such as `openmoji:heldout`. A
            path that exists is taken as one, whatever its name.
        size: Side, or height and width, to which real images are cropped and resized, wherever they come from. `None`
            leaves folders and archives as they are; data sources get the shorter side of their first image.

    Raises:
        InputError: If there is nothing usable at `spec`; the message names what is wrong.
    """
    text = os.fspath(spec)
    if is_archive(text):
        return NpzImages(text, size)
    return FolderImages(text, size) if scheme_of(text) is None else open_data_source(text, size)


def is_archive(spec: str) -> bool:
    """Whether `spec` names an `.npz`; a folder may be called so too."""
    return spec.endswith(".npz") and not os.path.isdir(spec)


def open_data_source(spec: str | Path, size: int | tuple[int, int] | None = None) -> SourceImages:
    """Opens `openmoji:heldout`, `datasets:...` or a folder of `root/class/img.png`, cropped and resized to `size`.

    Labels that cannot be used are left out, and the log says why.
    """
    source = _open_source(spec, size)
    try:
        return LabelledImages(*source)
    except InputError as error:
        logger.warning(f"classes are omitted: {error}")
        return SourceImages(*source)


def open_labelled_source(spec: str | Path, size: int | tuple[int, int] | None = None) -> LabelledImages:
    """[`open_data_source`] of a source that must have labels."""
    return LabelledImages(*_open_source(spec, size))


def _open_source(
    spec: str | Path, size: int | tuple[int, int] | None
) -> tuple[ImageSource, int | tuple[int, int], str]:
    try:
        side = max(size) if isinstance(size, tuple) else size
        source = build_image_source(spec, resolution=side and drawing_resolution(side))
        size = size or min(source.image(0).size)
    except (ValueError, OSError, ImportError) as error:
        raise InputError(str(error)) from error
    return source, size, str(spec)


def uint8_batches(
    images: ImageSet, batch_size: int, indices: range | list[int] | None = None
) -> Iterator[torch.Tensor]:
    """Batches of a set as uint8 `(B, 3, H, W)`, in order; only one batch is in memory."""
    indices = range(len(images)) if indices is None else indices
    for start in range(0, len(indices), batch_size):
        arrays = [images[index] for index in indices[start : start + batch_size]]
        yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
