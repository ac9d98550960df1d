"""Image sources over the `datasets` library: anything on the Hub, saved locally, or in WebDataset-style tar shards."""

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs

import datasets
import numpy as np
from PIL import Image

from ...existing_paths import split_after_path
from .decoding import BrokenImageError, load_rgb_image

# Names that label columns have in the data sets of the Hub and in tar shards, the commonest first.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "target")


class HuggingFaceDatasetSource:
    """Map-style image source over a `datasets.Dataset`.

    Images are decoded by [`load_rgb_image`], not by `datasets`, so that rotation, transparency, 16 bits and broken
    files are treated as in every other source.

    Args:
        dataset (`datasets.Dataset`): Map-style, with a column of encoded images.
        image_column (`str`, *optional*): Needed when there are several image columns.
        label_column (`str`, *optional*): Class labels, whole numbers or strings. When left out, the only `ClassLabel`
            column, else the first of [`LABEL_COLUMNS`] that is there, else every image has the one class `"image"`.
        name (`str`, defaults to `"dataset"`): What error messages call the data set.

    Raises:
        ValueError: The columns cannot be told, or the split is empty (the message lists what there is).
        BrokenImageError: From `source[i]`, for an image that cannot be decoded.
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
            raise ValueError(f"{name} has no rows")
        self._name = name
        self.image_column = find_image_column(dataset.features, image_column, name)
        self.label_column = find_label_column(dataset.features, label_column, name)
        self.classes, self.labels = self._read_labels(dataset)
        self._dataset = dataset.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )

    def _read_labels(self, dataset: datasets.Dataset) -> tuple[list[str], np.ndarray]:
        if self.label_column is None:
            return ["image"], np.zeros(len(dataset), dtype=np.int64)
        values = np.asarray(dataset.with_format("numpy", columns=[self.label_column])[self.label_column][:])
        feature = dataset.features[self.label_column]
        if isinstance(feature, datasets.ClassLabel):
            if values.min() < 0:
                row = int(values.argmin())
                raise ValueError(
                    f"row {row} of {self._name} has no label ({self.label_column} is {values[row]}); choose another "
                    "split, or another label column"
                )
            return list(feature.names), values.astype(np.int64)
        distinct, labels = np.unique(values, return_inverse=True)
        return [str(value) for value in distinct], labels.astype(np.int64)

    @classmethod
    def from_spec(cls, spec: str, cache_dir: str | os.PathLike | None = None) -> "HuggingFaceDatasetSource":
        """Open `NAME_OR_PATH[:SPLIT][?image=COLUMN&label=COLUMN]`.

        Args:
            spec (`str`): A Hub name, a folder that `save_to_disk` wrote, or a folder that `load_dataset` understands.
                The split is `train` unless named, and may be a slice such as `train[:10%]`.
            cache_dir (`str` or `os.PathLike`, *optional*): Where `datasets` keeps what it prepares.
        """
        location, split, columns = parse_dataset_spec(spec)
        name = f"{location} ({split})"
        cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        folder = Path(location)
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(location)
            if split not in splits:
                raise ValueError(f"{location} has no split {split!r}; expected one of {', '.join(splits)}")
            return cls(splits[split], **columns, name=name)
        if (folder / "state.json").exists():
            return cls(datasets.load_from_disk(location), **columns, name=location)
        return cls(datasets.load_dataset(location, split=split, cache_dir=cache_dir), **columns, name=name)

    @classmethod
    def from_tar_shards(cls, spec: str, cache_dir: str | os.PathLike | None = None) -> "HuggingFaceDatasetSource":
        """Open WebDataset-style tar shards: `FILES[?image=COLUMN&label=COLUMN]`, where files are a path, glob or URL.

        A sample is the files of one stem: `0001.jpg` and `0001.cls`. They are unpacked into an Arrow file once; to
        read tars without that, see [`~data.streaming_dataset.StreamingTrainingDataset`].
        """
        files, columns = split_off_columns(spec)
        cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        dataset = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", cache_dir=cache_dir)
        return cls(dataset, **columns, name=files)

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        """How messages call image `index`."""
        path = (self._dataset[index][self.image_column] or {}).get("path")
        return f"{self._name}[{index}]" + (f" ({path})" if path else "")

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        encoded = self._dataset[index][self.image_column]
        return decode_row(encoded, lambda: self.name(index)), int(self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of labels, file names and encoded sizes in order, read from Arrow without decoding.

        `datasets`' own fingerprint changes with the cache folder and its dates, so it does not identify the images.
        """
        digest = hashlib.sha256(b"datasets\0" + "\0".join(self.classes).encode() + self.labels.tobytes())
        for table in self._dataset.with_format("arrow").iter(batch_size=4096):
            for row in table.column(self.image_column).combine_chunks():
                content, path = row["bytes"], row["path"].as_py()
                size = content.as_buffer().size if content.is_valid else os.stat(path).st_size
                digest.update(f"{os.path.basename(path or '')}\0{size}\0".encode())
        return digest.hexdigest()


def decode_row(encoded: dict | None, name: Callable[[], str]) -> Image.Image:
    """Decode what `datasets.Image(decode=False)` gives: `{"bytes": ..., "path": ...}`."""
    if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
        raise BrokenImageError(name(), "the row holds no image")
    if encoded["bytes"] is not None:
        try:
            return load_rgb_image(encoded["bytes"])
        except BrokenImageError as error:
            # The name is looked up only when it is needed: it costs another read of the row.
            raise BrokenImageError(name(), error.reason) from error
    return load_rgb_image(encoded["path"])


def find_image_column(features: datasets.Features, wanted: str | None, name: str) -> str:
    """The column `wanted`, or the only one of images."""
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if wanted in features:
        return wanted
    if wanted is not None:
        raise ValueError(f"{name} has no column {wanted!r}; expected one of {', '.join(features)}")
    if len(found) != 1:
        state = (
            f"several image columns ({', '.join(found)})" if found else f"no image column among {', '.join(features)}"
        )
        raise ValueError(f"{name} has {state}; name one with ?image=COLUMN")
    return found[0]


def find_label_column(features: datasets.Features, wanted: str | None, name: str) -> str | None:
    """The column `wanted`, or the one that holds labels by type or by name, or None."""
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{name} has no column {wanted!r}; expected one of {', '.join(features)}")
        return wanted
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    named = next((column for column in LABEL_COLUMNS if column in (typed or features)), None)
    if typed and named is None:
        raise ValueError(f"{name} has several label columns ({', '.join(typed)}); name one with ?label=COLUMN")
    return named


def split_off_columns(spec: str) -> tuple[str, dict[str, str]]:
    """`"files?image=A&label=B"` as `("files", {"image_column": "A", "label_column": "B"})`."""
    location, query = split_after_path(spec, "?")
    # A glob may hold a question mark too; what follows one of ours is always key=value.
    if query and "=" not in query:
        return spec, {}
    columns = {key: values[-1] for key, values in parse_qs(query).items()}
    unknown = set(columns) - {"image", "label"}
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))} in {spec!r}; expected image= or label=")
    return location, {f"{key}_column": value for key, value in columns.items()}


def parse_dataset_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """`"name:split?label=x"` as `("name", "split", {"label_column": "x"})`."""
    rest, columns = split_off_columns(spec)
    if not rest:
        raise ValueError(f"{spec!r} names no data set; expected datasets:NAME_OR_PATH[:SPLIT]")
    location, split = split_after_path(rest, ":")
    return location, split or "train", columns
