"""Tar shards in the manner of WebDataset: the files of one stem, `0001.jpg` and `0001.cls`, are a sample."""

import itertools
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import datasets

from ...errors import InputError
from .class_labels import LABEL_COLUMNS
from .folder import IMAGE_EXTENSIONS

# Names and files of a tar, in order.
Members = Iterable[tuple[str, BinaryIO]]
# What reading a file raises that is cut off or no tar.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
# Of which a tar consists, in bytes.
_BLOCK = 512
# Members of the first tar that tell which extensions there are: a few samples, read in one go.
_LOOKED_AT = 100


@dataclass
class TarShardsConfig(datasets.BuilderConfig):
    """
    Args:
        image (`str`, *optional*): What follows the stem in the names of the images, such as `jpg` or `photo.png`.
            Otherwise the only image of a sample is taken, whatever its format; beside `0001.mask.png` that is
            `0001.jpg`.
        label (`str`, *optional*): What follows the stem in the names of the labels. Otherwise the first of
            [`LABEL_COLUMNS`] that a sample has.
    """

    image: str | None = None
    label: str | None = None

    @property
    def image_column(self) -> str:
        return self.image or "image"

    @property
    def label_column(self) -> str:
        return self.label or "label"


class TarShards(datasets.GeneratorBasedBuilder):
    """
    A builder of `datasets` for tar shards, with one column of images and one of labels (strings).

    The one in `datasets` has a column for each extension that stands in the beginning of the first tar, and leaves out
    what has another: shards of JPEG and PNG images lose one of the two. Files that are neither image nor label are
    passed over; a label without an image is a row without one.

    Raises:
        InputError: On opening: what `image` or `label` names is not there, or a tar was cut off. While reading: a tar
            is damaged, or a sample has several images and none is the plain one.
    """

    BUILDER_CONFIG_CLASS = TarShardsConfig
    # Rows that are held in memory until they are written.
    DEFAULT_WRITER_BATCH_SIZE = 100

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=datasets.Features(
                {
                    self.config.image_column: datasets.Image(),
                    self.config.label_column: datasets.Value("string"),
                }
            )
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        generators = []
        for split, files in dl_manager.download(self.config.data_files).items():
            # Lists of one length are what `datasets` distributes as shards.
            arguments = {"tars": files, "archives": [dl_manager.iter_archive(file) for file in files]}
            self._check_names(files[0], arguments["archives"][0])
            for file in files:
                _check_end(file)
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=arguments))
        return generators

    def _check_names(self, tar: str, members: Members) -> None:
        with _named(tar):
            names = [name for name, _ in itertools.islice(members, _LOOKED_AT)]
        extensions = sorted({split[1] for split in map(_split_name, names) if split is not None})
        for wanted in filter(None, (self.config.image, self.config.label)):
            if wanted not in extensions:
                raise InputError(f"{tar} has no column {wanted!r}; expected one of {', '.join(extensions)}")

    def _generate_examples(self, tars: list[str], archives: list[Members]) -> Iterator[tuple[str, dict]]:
        for number, (tar, members) in enumerate(zip(tars, archives, strict=True)):
            for place, (stem, files) in enumerate(self._samples(tar, members)):
                field = self._image_field(tar, stem, files)
                image = {"bytes": files[field], "path": f"{stem}.{field}"} if field in files else None
                yield (
                    f"{number}_{place}",
                    {self.config.image_column: image, self.config.label_column: self._label(files)},
                )

    def _samples(self, tar: str, members: Members) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Stem and `{rest of the name: content}` of each sample, of the files that matter."""
        stem: str | None = None
        files: dict[str, bytes] = {}
        with _named(tar):
            for name, file in members:
                split = _split_name(name)
                if split is None or not self._matters(split[1]):
                    continue
                if split[0] != stem:
                    if stem is not None and files:
                        yield stem, files
                    stem, files = split[0], {}
                if split[1] in files:
                    raise InputError(f"{tar} holds {name} twice; remove one of the two")
                files[split[1]] = file.read()
        if stem is not None and files:
            yield stem, files

    def _matters(self, field: str) -> bool:
        return _is_image(field) or field in (self.config.image, self.config.label) or field.lower() in LABEL_COLUMNS

    def _image_field(self, tar: str, stem: str, files: dict[str, bytes]) -> str | None:
        if self.config.image:
            return self.config.image
        images = [field for field in files if _is_image(field)]
        found = [field for field in images if "." not in field] if len(images) > 1 else images
        if len(images) > 1 and len(found) != 1:
            raise InputError(
                f"sample {stem} of {tar} has several images ({', '.join(images)}); name one with ?image={images[0]}"
            )
        return found[0] if found else None

    def _label(self, files: dict[str, bytes]) -> str | None:
        lower = {field.lower(): content for field, content in files.items()}
        names = [self.config.label] if self.config.label else LABEL_COLUMNS
        content = next((lower[name.lower()] for name in names if name.lower() in lower), None)
        return None if content is None else content.decode(errors="replace").strip()


def _is_image(field: str) -> bool:
    return f".{field.lower()}".endswith(IMAGE_EXTENSIONS)


def _split_name(path: str) -> tuple[str, str] | None:
    """`"a/0001.mask.png"` as `("a/0001", "mask.png")`; None without an extension."""
    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", path)
    return None if match is None else (match[1], match[2])


def _check_end(tar: str) -> None:
    """
    Raises:
        InputError: A tar on disk does not end with a block of zeros: `tarfile` takes the end of what was cut off
            between two files for the end of the tar, without a word.
    """
    if not os.path.isfile(tar):
        return
    with open(tar, "rb") as file:
        is_uncompressed = file.read(_BLOCK)[257:262] == b"ustar"
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BLOCK))
        if is_uncompressed and (size % _BLOCK or any(file.read())):
            raise InputError(f"{tar} is damaged: it was cut off before its end mark; replace or remove it")


@contextmanager
def _named(tar: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise InputError(f"{tar} is damaged or not a tar file ({error}); replace or remove it") from error
