"""Fashion-MNIST (arXiv 1708.07747): 70,000 pictures of clothes in ten classes of equal size, as a data set on disk."""

import gzip
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ...errors import InputError
from ...files import place_to_write
from .dataset_specs import DatasetSpec
from .hf_datasets import HuggingFaceDatasetSource

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 28
# Black, as the background is: LeNet's way to make 32 pixels of 28, which leaves every pixel as it is.
PADDING = 2


@dataclass(frozen=True)
class Split:
    """
    Args:
        prefix (`str`): What the names of its IDX files begin with.
        count (`int`): Images.
        sha256 (`str`): Of all pixels, followed by all labels, a byte each.
    """

    prefix: str
    count: int
    sha256: str


SPLITS = {
    "train": Split("train", 60_000, "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157"),
    "test": Split("t10k", 10_000, "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4"),
}


def prepare_fashion_mnist(source: str, output: Path) -> None:
    """
    Write what `datasets:OUTPUT:train` and `datasets:OUTPUT:test` read: 32x32 images (28x28 with two black pixels on
    each side) and the names of their classes. The fingerprint is the same on every machine, whatever the source.

    Args:
        source (`str`): Folder of the four IDX files, compressed or not, or a data set of `datasets` with the splits
            `train` and `test`, such as a Hub name.
        output (`Path`): Folder that does not exist yet; it appears once it is complete.

    Raises:
        InputError: There is something at `output`; or the source cannot be read or holds other images than
            Fashion-MNIST.
    """
    if output.exists():
        raise InputError(f"{output} exists; choose another folder, or delete it to write the data set again")
    splits = {}
    for name, split in SPLITS.items():
        images, labels = _read_split(source, name)
        _require_fashion_mnist(images, labels, split, f"{source} ({name})")
        columns = {"image": list(_encoded(images)), "label": labels.tolist()}
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        splits[name] = datasets.Dataset.from_dict(columns, datasets.Features(features))
    output.parent.mkdir(parents=True, exist_ok=True)
    building = place_to_write(output)
    try:
        datasets.DatasetDict(splits).save_to_disk(building)
        os.rename(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _read_split(source: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    prefix = SPLITS[name].prefix
    files = [_idx_file(Path(source), f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    if all(files):
        images, labels = (read_idx(file) for file in files if file is not None)
        return images, labels
    if Path(source).is_dir() and any(Path(source).glob("*-ubyte*")):
        raise InputError(f"{source} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte, or its .gz")
    dataset = HuggingFaceDatasetSource.from_spec(DatasetSpec.parse(source).text_of_split(name))
    if len(dataset.classes) != len(CLASSES):
        raise InputError(f"{source} ({name}) has {len(dataset.classes)} classes; expected {len(CLASSES)}")
    pixels = [np.asarray(dataset.image(index).convert("L")) for index in range(len(dataset))]
    if len(sizes := {each.shape for each in pixels}) > 1:
        raise InputError(f"{source} ({name}) holds images of {len(sizes)} sizes; expected {SIDE}x{SIDE} pixels each")
    return np.stack(pixels), dataset.labels.astype(np.uint8)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """
    The array of an IDX file of bytes, which may be compressed by gzip.

    Raises:
        InputError: The file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); download it again") from error
    # Two zero bytes, the type (8 is uint8), the number of dimensions, then each of them in four bytes.
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise InputError(f"{path} begins with {content[:4].hex() or 'nothing'}; expected an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != np.prod(shape):
        raise InputError(f"{path} holds {len(content) - start} bytes; expected {'x'.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _require_fashion_mnist(images: np.ndarray, labels: np.ndarray, split: Split, name: str) -> None:
    expected = (split.count, SIDE, SIDE), (split.count,)
    if (images.shape, labels.shape) != expected:
        raise InputError(f"{name} holds images {images.shape} and labels {labels.shape}; expected {expected}")
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != split.sha256:
        raise InputError(
            f"{name} is not Fashion-MNIST: its pixels and labels have the sha256 {found[:16]}, expected"
            f" {split.sha256[:16]}; download it again"
        )


def _encoded(images: np.ndarray) -> Iterator[dict[str, bytes | None]]:
    """Plain PGM, because the bytes of a PNG, and so the fingerprint, depend on the library that compresses it."""
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    header = b"P5\n%d %d\n255\n" % padded.shape[:0:-1]
    for pixels in padded:
        yield {"bytes": header + pixels.tobytes(), "path": None}
