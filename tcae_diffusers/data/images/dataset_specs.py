"""The text after `datasets:`, `webdataset:` and `stream:` on a command line, and the data set that it names."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import datasets
from accelerate.logging import get_logger
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ...errors import InputError
from ...existing_paths import split_after_path
from .command_outputs import refuse_outputs
from .content_fingerprint import content_digests
from .folder import IMAGE_EXTENSIONS, SPLIT_NAMES, image_names
from .sample_manifest import refuse_drawn_set
from .tar_shards import TarShards

logger = get_logger(__name__)

TAR_SCHEME = "webdataset:"
# `datasets` makes shards of a folder that it saved as it is asked to: enough for any number of ranks and workers.
_SHARDS_OF_SAVED = 1024
_KEYS = {"name": "config", "image": "image_column", "label": "label_column"}


@dataclass(frozen=True)
class DatasetSpec:
    """
    `NAME_OR_PATH[:SPLIT][?name=CONFIG&image=COLUMN&label=COLUMN]`, or `webdataset:FILES[?image=...&label=...]`.

    Args:
        text (`str`): As the user wrote it, for messages.
        location (`str`): A Hub name, a folder, or files (path, glob or URL).
        is_tar (`bool`): Whether these are tar shards.
        split (`str`, *optional*): As named; a slice such as `train[:10%]` too.
        config (`str`, *optional*): Which of several configurations of the data set.
        image_column, label_column (`str`, *optional*): `label_column=""` is for no labels.
    """

    text: str
    location: str
    is_tar: bool = False
    split: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    @property
    def name(self) -> str:
        """What messages call the data set."""
        details = ", ".join(filter(None, [self.config, self.split]))
        return self.location + (f" ({details})" if details else "")

    def text_of_split(self, split: str) -> str:
        """What a user writes for another split of the same data set."""
        has_options = (self.config, self.image_column, self.label_column) != (None, None, None)
        return f"{self.location}:{split}" + has_options * f"?{self.text.rpartition('?')[2]}"

    @classmethod
    def parse(cls, text: str) -> "DatasetSpec":
        """
        Raises:
            InputError: There is no name, or a key that is unknown, empty or given twice.
        """
        rest, options = _split_off_options(text)
        if rest.startswith(TAR_SCHEME) and not os.path.exists(rest):
            files = rest.removeprefix(TAR_SCHEME)
            if not files or "config" in options:
                raise InputError(f"{text!r} should be webdataset:FILES[?image=EXTENSION&label=EXTENSION]")
            return cls(text, files, is_tar=True, **options)
        location, split = split_after_path(rest, ":")
        if not location:
            raise InputError(f"{text!r} does not specify a dataset; expected NAME_OR_PATH[:SPLIT][?name=CONFIG]")
        return cls(text, location, split=split or None, **options)


def _split_off_options(text: str) -> tuple[str, dict[str, Any]]:
    location, mark, query = text.rpartition("?")
    # A glob or a path may hold a question mark too; what follows one of ours is always key=value.
    if not mark or "=" not in query or os.path.exists(text.removeprefix(TAR_SCHEME)):
        return text, {}
    options = {}
    for key, values in parse_qs(query, keep_blank_values=True).items():
        if key not in _KEYS:
            raise InputError(f"unknown key {key} in {text!r}; expected {', '.join(f'{key}=' for key in _KEYS)}")
        if len(values) > 1:
            raise InputError(f"{text!r} gives {key}= more than once")
        if not values[0] and key != "label":
            raise InputError(f"{text!r} has an empty {key}=; give it a value or omit it")
        options[_KEYS[key]] = values[0]
    return location, options


def open_dataset(spec: DatasetSpec, cache_dir: str | os.PathLike | None = None) -> datasets.Dataset:
    """
    What `spec` names: a Hub name, a folder that `save_to_disk` wrote or that `load_dataset` understands, tar shards.

    Args:
        spec ([`DatasetSpec`]): The split is `train` unless named.
        cache_dir (`str` or `os.PathLike`, *optional*): Where `datasets` keeps what it prepares.

    Raises:
        InputError: There is no such data set, configuration or split (the message lists those that are there), or
            `datasets` cannot read it.
    """
    with _in_our_words(spec):
        found = _find(spec, sliceable=True, cache_dir=None if cache_dir is None else os.fspath(cache_dir))
        if isinstance(found, datasets.Dataset):
            return found
        found.download_and_prepare(_prepared_folder(found))
        dataset = found.as_dataset(split=spec.split or "train")
        if isinstance(found, ImageFolder):
            _warn_of_unlisted_images(spec, found)
        if isinstance(found, TarShards) and spec.label_column is None:
            label = found.config.label_column
            return dataset.remove_columns(label) if dataset.unique(label) == [None] else dataset
        return dataset


def _prepared_folder(builder: datasets.DatasetBuilder) -> str | None:
    """
    Where `builder` keeps what it prepares of these very files, `None` for its own choice.

    `datasets` tells local files apart by path and modification time, and would give what it prepared of others that
    were there before: some tools keep the time of what they copy.
    """
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    if not files or not all(map(os.path.isfile, files)):
        return None
    content = hashlib.sha256(b"".join(content_digests(files))).hexdigest()
    return f"{builder.cache_dir}-{content[:16]}"


def split_names(spec: DatasetSpec) -> list[str]:
    """The splits of a data set; none where it is not divided, as in tar shards. Raises as [`open_dataset`] does."""
    if spec.is_tar:
        return []
    with _in_our_words(spec):
        if _is_saved(spec):
            saved = datasets.load_from_disk(spec.location)
            return list(saved) if isinstance(saved, datasets.DatasetDict) else []
        return _splits_of(_find_builder(spec, cache_dir=None))


def open_stream(spec: DatasetSpec) -> tuple[datasets.IterableDataset, list[str]]:
    """The same, not read yet, and the files that it is in. Splits are whole. Raises as [`open_dataset`] does."""
    with _in_our_words(spec):
        found = _find(spec, sliceable=False)
        if isinstance(found, datasets.Dataset):
            shards = max(1, min(_SHARDS_OF_SAVED, len(found)))
            return found.to_iterable_dataset(shards), [file["filename"] for file in found.cache_files]
        split = spec.split or "train"
        return found.as_streaming_dataset(split=split), [str(file) for file in found.config.data_files[split]]


def _find(
    spec: DatasetSpec, sliceable: bool, cache_dir: str | None = None
) -> datasets.Dataset | datasets.DatasetBuilder:
    if spec.is_tar:
        return _tar_shards(spec, {"train": spec.location}, cache_dir=cache_dir)
    if _is_saved(spec):
        return _open_saved(spec, sliceable)
    builder = _find_builder(spec, cache_dir)
    _check_split(spec, _splits_of(builder), sliceable)
    if isinstance(builder, WebDataset):
        # `datasets` would take the columns of the first tar for those of all.
        options = {"base_path": builder.base_path, "dataset_name": builder.dataset_name}
        return _tar_shards(spec, builder.config.data_files, cache_dir=cache_dir, **options)
    return builder


def _is_saved(spec: DatasetSpec) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((Path(spec.location) / file).exists() for file in ("dataset_dict.json", "state.json"))


def _splits_of(builder: datasets.DatasetBuilder) -> list[str]:
    # Those that `datasets` infers are no `str`.
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def _tar_shards(spec: DatasetSpec, data_files: Mapping[str, Any], **options: str | None) -> TarShards:
    if os.path.isdir(spec.location) and spec.is_tar:
        raise InputError(
            f"webdataset:{spec.location} is a folder; name its tar files, as in webdataset:{spec.location}/*.tar, or"
            f" datasets:{spec.location}"
        )
    if spec.is_tar and "{" in spec.location and not os.path.exists(spec.location):
        raise InputError(f"webdataset:{spec.location}: braces are not expanded; use a glob, such as shard-*.tar")
    # The hash tells caches of other versions of `TarShards` apart.
    builder = TarShards(
        data_files=data_files, image=spec.image_column, label=spec.label_column or None, hash="2", **options
    )
    if not any(builder.config.data_files.values()):
        raise InputError(f"{spec.location} does not specify a tar file; expected a path, a glob or a URL")
    return builder


def _open_saved(spec: DatasetSpec, sliceable: bool) -> datasets.Dataset:
    if spec.config:
        raise InputError(f"{spec.location} was written by save_to_disk, which has no configurations; omit name=")
    saved = datasets.load_from_disk(spec.location)
    if isinstance(saved, datasets.DatasetDict):
        _check_split(spec, list(saved), sliceable)
        return _slice(saved, spec)
    if spec.split not in (None, str(saved.split)):
        raise InputError(f"{spec.location} is a single dataset without splits; omit :{spec.split}")
    return saved


def _slice(saved: datasets.DatasetDict, spec: DatasetSpec) -> datasets.Dataset:
    split = spec.split or "train"
    if split in saved:
        return saved[split]
    split = "+".join(saved) if split == "all" else split
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(saved[name]) for name in saved})
    except (ValueError, AssertionError) as error:
        raise InputError(f"{spec.location}:{spec.split} cannot be read: {error}") from error
    # Of what begins behind the last row, `datasets` says nothing that a user would understand.
    filled = [part for part in parts if part.from_ < min(part.to, len(saved[part.splitname]))]
    if not filled:
        raise InputError(f"{spec.location}:{spec.split} has no rows")
    return datasets.concatenate_datasets([saved[part.splitname].select(range(part.from_, part.to)) for part in filled])


def _check_split(spec: DatasetSpec, known: list[str], sliceable: bool) -> None:
    split = spec.split or "train"
    if split == "all" and sliceable:
        return
    for part in split.split("+") if sliceable else [split]:
        name, bracket, _ = part.strip().partition("[")
        if bracket and not sliceable and name in known:
            raise InputError(
                f"{spec.location} supports complete splits only, not {split!r}; expected {', '.join(known)}"
            )
        if name not in known:
            named = "" if spec.split else " (the default; choose another as in NAME:SPLIT)"
            raise InputError(f"{spec.location} has no split {name!r}{named}; expected one of {', '.join(known)}")


def _find_builder(spec: DatasetSpec, cache_dir: str | None) -> datasets.DatasetBuilder:
    if os.path.isdir(spec.location):
        _check_folder(spec.location)
    elif os.path.isfile(spec.location):
        raise InputError(
            f"{spec.location} is a file; name the folder that it is in, or a tar file with webdataset: before it"
        )
    try:
        builder = datasets.load_dataset_builder(spec.location, name=spec.config, cache_dir=cache_dir)
    except ValueError as error:
        # What is wrong is told by what there is, not by the message, which differs between versions of `datasets`.
        configs = datasets.get_dataset_config_names(spec.location)
        if spec.config is not None and spec.config not in configs:
            raise InputError(
                f"{spec.location} has no configuration {spec.config!r}; expected name= one of {', '.join(configs)}"
            ) from error
        if spec.config is None and len(configs) > 1:
            raise InputError(
                f"{spec.location} has several configurations ({', '.join(configs)}); choose one with ?name=CONFIG"
            ) from error
        raise
    if isinstance(builder, ImageFolder) and os.path.isdir(spec.location):
        _check_images(spec.location, builder)
    return builder


def _check_folder(location: str) -> None:
    """Refuse what `datasets` would read as something else, or not at all, without a word."""
    refuse_drawn_set(Path(location), "name the folder without datasets:")
    names: list[str] = []
    for folder, subfolders, files in os.walk(location):
        names += [os.path.relpath(os.path.join(folder, file), location) for file in files]
        for name in subfolders:
            if os.path.islink(path := os.path.join(folder, name)):
                raise InputError(
                    f"{path} is a link to a folder, which `datasets` does not follow; name the folder without "
                    "datasets:, or put a copy in place of the link"
                )
    images = [name for name in names if name.lower().endswith(IMAGE_EXTENSIONS)]
    refuse_outputs(Path(location), images, [name for name in names if name.endswith(".json")])


def _check_images(location: str, builder: ImageFolder) -> None:
    """
    Refuse a folder of images of which `datasets` takes some for a split and leaves out the others, or whose folders it
    would take for other classes than they are where the same folder is named without `datasets:`.
    """
    # There, the author of the data set may say what belongs to it.
    has_readme = os.path.exists(os.path.join(location, "README.md"))
    for files in builder.config.data_files.values():
        _check_class_folders(location, [str(file) for file in files], has_readme)
    if has_readme:
        return
    taken = {os.path.abspath(file) for files in builder.config.data_files.values() for file in files}
    left_out = [name for name in image_names(location) if os.path.abspath(os.path.join(location, name)) not in taken]
    if left_out:
        splits = ", ".join(map(str, builder.config.data_files))
        raise InputError(
            f"`datasets` takes folders of {location} for splits ({splits}), as it does where one is called train or "
            f"test, and leaves out {len(left_out)} images such as {left_out[0]}; name the folder without datasets:"
        )


def _check_class_folders(location: str, files: list[str], has_readme: bool) -> None:
    if any(os.path.basename(file).startswith("metadata.") for file in files):
        return  # Labels stand there, if anywhere.
    if archive := next((file for file in files if file.lower().endswith(".zip")), None):
        raise InputError(
            f"{location}: of archives such as {os.path.basename(archive)} `datasets` makes other classes than of"
            " folders, or none; unpack them"
        )
    images = [file for file in files if file.lower().endswith(IMAGE_EXTENSIONS)]
    folders = {os.path.dirname(file) for file in images}
    if len(folders) < 2:
        return
    top = os.path.commonpath(folders)
    below = [part for part in Path(os.path.relpath(top, location)).parts if not _is_split_folder(part)]
    if below and not has_readme:
        raise InputError(
            f"{location}: `datasets` takes the folders in {os.path.relpath(top, location)} for classes, and"
            f" {below[0]} for none; name {top}, or the folder without datasets:"
        )
    for folder in sorted(folders):
        if os.path.dirname(folder) != top:
            inside = "it" if folder == top else os.path.relpath(folder, location)
            raise InputError(
                f"{location}: {inside} holds images and is no class folder beside the others; `datasets` would make"
                " other classes of these folders, or none; name the folder without datasets:"
            )


def _is_split_folder(name: str) -> bool:
    """Whether `datasets` would take a folder for a split, as it does `train`, `test-00` and what is in `data`."""
    return name == "data" or not SPLIT_NAMES.isdisjoint(re.split("[-._ 0-9]+", name.lower()))


def _warn_of_unlisted_images(spec: DatasetSpec, builder: ImageFolder) -> None:
    """Say how many images a metadata file leaves out: nobody sees it in the result."""
    for split, files in (builder.config.data_files or {}).items():
        if not any(os.path.basename(str(file)).startswith("metadata.") for file in files):
            continue
        images = sum(str(file).lower().endswith(IMAGE_EXTENSIONS) for file in files)
        listed = builder.info.splits[str(split)].num_examples
        if listed < images:
            logger.warning(
                f"{spec.location}: metadata lists {listed} of the {images} images of {split}; the others are not used"
            )


@contextmanager
def _in_our_words(spec: DatasetSpec) -> Iterator[None]:
    """Say errors of `datasets` in one line that starts with what the user wrote."""
    try:
        yield
    except InputError:
        raise
    except ConnectionError as error:
        raise InputError(
            f"{spec.location} is not a local folder, and the Hub cannot be reached; check the path or the network"
        ) from error
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        reason = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ is not None else error
        first_line = next(iter(str(reason).strip().splitlines()), type(reason).__name__)
        raise InputError(f"{spec.name} cannot be read: {first_line}") from error
