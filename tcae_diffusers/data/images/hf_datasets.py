"""Image sources over the `datasets` library: anything on the Hub, saved locally, or in WebDataset-style tar shards."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import datasets
import fsspec
import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm.auto import tqdm

from ...errors import InputError
from .class_labels import find_label_column, read_labels
from .content_fingerprint import content_digests, remembered_digest
from .dataset_specs import DatasetSpec, open_dataset
from .decoding import BrokenImageError, load_rgb_image, read_image_size

Decoded = TypeVar("Decoded")

_NO_IMAGE = b"the row holds no image".ljust(32)
_ROWS_AT_A_TIME = 1000


class HuggingFaceDatasetSource:
    """Map-style image source over a `datasets.Dataset`.

    Images are decoded by [`load_rgb_image`], not by `datasets`, so that rotation, transparency, 16 bits and broken
    files are treated as in every other source. Labels are read when they are first asked for: a data set whose labels
    cannot be used still serves those who need none.

    Args:
        dataset (`datasets.Dataset`): Map-style, with a column of encoded images or of paths.
        image_column (`str`, *optional*): Needed when there are several image columns.
        label_column (`str`, *optional*): Class labels, whole numbers or strings. When left out, the only `ClassLabel`
            column, else the first of [`LABEL_COLUMNS`] that is there, else every image has the one class `"image"`, as
            with `""`.
        name (`str`, defaults to `"dataset"`): What error messages call the data set.

    Raises:
        InputError: The columns cannot be told, or the split is empty (the message lists what there is). From `labels`,
            `classes` and `source[i]`: see [`read_labels`].
        BrokenImageError: From `source[i]` and `image(i)`, for an image that cannot be decoded.
    """

    attribution: str | None = None

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str = "dataset",
    ):
        if len(dataset) == 0:
            raise InputError(f"{name} has no rows")
        self._name = name
        self.image_column = find_image_column(dataset.features, image_column, name)
        if label_column is not None:
            find_label_column(dataset.features, label_column, name)
        self._wanted_label_column = label_column
        self._images = dataset.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )
        self._dataset = dataset

    @classmethod
    def from_spec(cls, text: str, cache_dir: str | os.PathLike | None = None) -> "HuggingFaceDatasetSource":
        """
        Open what `text` names; see [`DatasetSpec`].

        Tar shards are unpacked into an Arrow file once; to read them without that, see [`StreamedImages`].

        Args:
            cache_dir (`str` or `os.PathLike`, *optional*): Where `datasets` keeps what it prepares.
        """
        spec = DatasetSpec.parse(text)
        return cls(open_dataset(spec, cache_dir=cache_dir), spec.image_column, spec.label_column, spec.name)

    @cached_property
    def label_column(self) -> str | None:
        """Where labels stand, if anywhere."""
        return find_label_column(self._dataset.features, self._wanted_label_column, self._name)

    @cached_property
    def _classes_and_labels(self) -> tuple[list[str], np.ndarray]:
        if self.label_column is None:
            return ["image"], np.zeros(len(self), dtype=np.int64)
        return read_labels(self._dataset, self.label_column, self._name)

    @property
    def classes(self) -> list[str]:
        """Class names; label `i` is `classes[i]`."""
        return self._classes_and_labels[0]

    @property
    def labels(self) -> np.ndarray:
        """int64 `(N,)`."""
        return self._classes_and_labels[1]

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """How messages call image `index`."""
        path = (self._images[index][self.image_column] or {}).get("path")
        return f"{self._name}[{index}]" + (f" ({path})" if path else "")

    def image(self, index: int) -> Image.Image:
        """8-bit RGB, without asking for labels."""
        return decode_row(self._images[index][self.image_column], lambda: self.name(index), load_rgb_image)

    def image_size(self, index: int) -> tuple[int, int]:
        return decode_row(self._images[index][self.image_column], lambda: self.name(index), read_image_size)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the encoded images and of the label column, in order: names, paths and times do not count.

        Images in Arrow are read once for it; their hash is kept for as long as `datasets` and the file system say that
        the files are the same. Files that rows name are looked at each time, as [`content_digests`] does.

        Cost, measured on two cores with images of 110 kB in Arrow: 10,000 images/s, so 1.3 million take 2 minutes once
        (or as long as the disk needs for 140 GB), and less than a second in each later run.
        """
        if self._in_arrow():
            files = [file["filename"] for file in self._images.cache_files]
            images = remembered_digest(self._images._fingerprint, files, self._content_of_images)
        else:
            images = self._content_of_images()
        return hashlib.sha256(b"datasets\0" + images + self._label_content()).hexdigest()

    def _in_arrow(self) -> bool:
        chunks = self._images.data.column(self.image_column).chunks
        return not any(chunk.null_count or chunk.field("bytes").null_count for chunk in chunks)

    def _content_of_images(self) -> bytes:
        digest = hashlib.sha256()
        with tqdm(total=len(self), desc="hashing images", unit="image", delay=3) as bar:
            for content in self._image_digests():
                digest.update(content)
                bar.update()
        return digest.digest()

    def _image_digests(self) -> Iterator[bytes]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for table in self._images.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
                for chunk in table.column(self.image_column).chunks:
                    # Flattened, a row that is null as a whole is null in both.
                    fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
                    yield from _digests_of_rows(fields["bytes"], fields["path"], pool)

    def _label_content(self) -> bytes:
        """What stands in the label column, whether it can serve as labels or not."""
        try:
            column = self.label_column
        except InputError:
            return b"several label columns"
        if column is None:
            return b"no labels"
        values = self._dataset.select_columns([column]).with_format("arrow")[:].column(column)
        return repr((self._dataset.features[column], values.to_pylist())).encode()


def _digests_of_rows(contents: pa.Array, paths: pa.Array, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    in_files = contents.is_null().to_numpy(zero_copy_only=False) & paths.is_valid().to_numpy(zero_copy_only=False)
    named = paths.filter(pa.array(in_files)).to_pylist()
    found = iter(content_digests([path for path in named if not _is_url(path)]))
    # What is behind a URL is not fetched to tell images apart.
    of_files = (hashlib.sha256(f"URL {path}".encode()).digest() if _is_url(path) else next(found) for path in named)
    of_bytes = pool.map(_sha256_of_value, contents)
    for in_file, content in zip(in_files, of_bytes, strict=True):
        yield next(of_files) if in_file else content


def _is_url(path: str) -> bool:
    return "://" in path


def _sha256_of_value(value: pa.BinaryScalar) -> bytes:
    return hashlib.sha256(value.as_buffer()).digest() if value.is_valid else _NO_IMAGE


def read_row(encoded: dict | None, name: Callable[[], str]) -> bytes:
    """The encoded image of what `datasets.Image(decode=False)` gives: `{"bytes": ..., "path": ...}`.

    Args:
        name (callable): What error messages call the image; it is asked for only when it is needed.

    Raises:
        BrokenImageError: There is neither, or the file is gone.
    """
    encoded = encoded or {}
    if encoded.get("bytes") is not None:
        return encoded["bytes"]
    path = encoded.get("path")
    if path is None:
        raise BrokenImageError(name(), "the row holds no image")
    try:
        # Rows of a stream name files on the Hub and in archives by URL.
        with fsspec.open(path) if _is_url(path) else open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BrokenImageError(name(), error.strerror or type(error).__name__) from error


def decode_row(encoded: dict | None, name: Callable[[], str], decode: Callable[[bytes], Decoded]) -> Decoded:
    """What `decode` makes of the encoded image of a row, see [`read_row`]."""
    try:
        return decode(read_row(encoded, name))
    except BrokenImageError as error:
        # The name costs another read of the row.
        raise BrokenImageError(name(), error.reason) from error


def find_image_column(features: datasets.Features, wanted: str | None, name: str) -> str:
    """The column `wanted`, or the only one of images."""
    if wanted is not None:
        if wanted not in features:
            raise InputError(f"{name} has no column {wanted!r}; expected one of {', '.join(features)}")
        if not _may_hold_images(features[wanted]):
            raise InputError(
                f"column {wanted!r} of {name} holds {features[wanted]}; expected images, encoded bytes or paths"
            )
        return wanted
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        state = (
            f"several image columns ({', '.join(found)})" if found else f"no image column among {', '.join(features)}"
        )
        raise InputError(f"{name} has {state}; name one with ?image=COLUMN")
    return found[0]


def _may_hold_images(feature: Any) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    # What `datasets.Image` becomes where its type was lost.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() <= {"bytes", "path"})
