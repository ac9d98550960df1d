"""What an image source is, and how a short text on the command line names one."""

import os
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ...errors import InputError
from ...existing_paths import scheme_before
from .decoding import BrokenImageError

__all__ = ["BrokenImageError", "ImageSource", "build_image_source", "scheme_of", "training_split"]

SCHEMES = ("openmoji", "datasets", "webdataset", "stream")


@runtime_checkable
class ImageSource(Protocol):
    """A map-style set of images, with labels for those who ask for them.

    Attributes:
        attribution (`str` or `None`): Credit that the images' licence asks to be shown beside them.
        classes (`list[str]`): Class names; label `i` is `classes[i]`. A set whose labels cannot be used raises
            [`InputError`] here and from `source[i]`, and not before.
        labels (`np.ndarray`): int64 `(N,)`. As `classes`.
        fingerprint (`str`): sha256 that changes when the content, the names or the order of the images do.
    """

    attribution: str | None

    @property
    def classes(self) -> list[str]: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return the 8-bit RGB image alone.

        Raises:
            BrokenImageError: This image cannot be decoded; others may be.
        """
        ...

    def image_size(self, index: int) -> tuple[int, int]:
        """Return `(height, width)` of `image(index)`, without decoding it; raises as `image` does."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return `(image, label)`, the label an index into `classes`; raises as `image` does."""
        ...


def scheme_of(spec: str | os.PathLike) -> str | None:
    """Which of [`SCHEMES`] names the source; `None` for a path, and for a path that exists whatever its name.

    Raises:
        InputError: There is no name. As a path it would stand for the working directory.
    """
    if not os.fspath(spec):
        raise InputError("the name of the images is empty; expected a folder or a data source such as datasets:NAME")
    return scheme_before(os.fspath(spec), SCHEMES)


def training_split(spec: str | os.PathLike) -> str | None:
    """
    The training images that belong to held-out ones: `openmoji:train` of `openmoji:heldout`, the split `train` of
    another split of a data set.

    Returns:
        What names them, or `None` where they cannot be told, as with folders, and where `spec` holds some of them.

    Raises:
        InputError: A data set cannot be found, or not be read.
    """
    spec = os.fspath(spec)
    scheme, rest = scheme_of(spec), spec.partition(":")[2]
    if scheme == "openmoji":
        split, mark, label = rest.partition("?")
        return None if split == "train" else f"openmoji:train{mark}{label}"
    if scheme != "datasets":
        return None
    from .dataset_specs import DatasetSpec, split_names

    dataset = DatasetSpec.parse(rest)
    named = {part.strip().partition("[")[0] for part in (dataset.split or "train").split("+")}
    if named & {"train", "all"} or "train" not in split_names(dataset):
        return None
    return f"datasets:{dataset.text_of_split('train')}"


def drawing_resolution(size: int) -> int:
    """
    Side at which vector images are drawn that are to have sides of `size` pixels, where nothing else is asked for: the
    same for training, latents and references, since a Fréchet distance tells drawings of one image apart.
    """
    return 2 * size


def build_image_source(
    spec: str | os.PathLike, resolution: int | None = None, cache_dir: str | os.PathLike | None = None
) -> ImageSource:
    """Build the image source that `spec` names.

    | spec | source |
    |---|---|
    | `openmoji:train`, `openmoji:heldout` | [`OpenMojiSource`], rasterised at `resolution`; `?label=subcategory` |
    | `datasets:NAME_OR_PATH[:SPLIT]` | [`HuggingFaceDatasetSource`]; split `train` unless named |
    | `webdataset:FILES` | the same of tar shards (a path or glob of `.tar` files) |
    | anything else | a folder of `root/class/image.png` for [`ImageFolderSource`] |

    Behind the two in the middle, `?name=CONFIG&image=COLUMN&label=COLUMN` chooses what cannot be told
    ([`DatasetSpec`]).

    Args:
        spec (`str` or `os.PathLike`): See the table.
        resolution (`int`, *optional*): Size of the stored images, for sources that rasterise (OpenMoji: 64). Other
            sources return images at their own size.
        cache_dir (`str` or `os.PathLike`, *optional*): Where a source keeps what it prepares.

    Raises:
        ValueError, FileNotFoundError: There is no such data set, or it is a stream, which cannot be read at an index.
        ImportError: `openmoji:` without the `demo` extra.
    """
    spec = os.fspath(spec)
    scheme, rest = scheme_of(spec), spec.partition(":")[2]
    # Imports are local so that OpenMoji's extra and `datasets` load only for those who ask for them.
    if scheme == "openmoji":
        from .openmoji import OpenMojiSource

        return OpenMojiSource.from_spec(rest, 64 if resolution is None else resolution, cache_dir)
    if scheme == "stream":
        raise InputError(
            f"{spec} is a stream, which only the --train_data of a tokenizer accepts; use "
            + (rest if rest.startswith("webdataset:") else f"datasets:{rest}")
        )
    if scheme is not None:
        from .hf_datasets import HuggingFaceDatasetSource

        return HuggingFaceDatasetSource.from_spec(rest if scheme == "datasets" else spec, cache_dir=cache_dir)
    from .folder import ImageFolderSource

    return ImageFolderSource(spec)
