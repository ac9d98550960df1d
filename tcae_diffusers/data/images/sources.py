"""What an image source is, and how a short text on the command line names one."""

import os
from typing import Protocol, runtime_checkable

from PIL import Image

from ...existing_paths import scheme_before
from .decoding import BrokenImageError

__all__ = ["BrokenImageError", "ImageSource", "build_image_source", "scheme_of"]

SCHEMES = ("openmoji", "datasets", "webdataset")


@runtime_checkable
class ImageSource(Protocol):
    """A map-style set of labelled images.

    Attributes:
        classes (`list[str]`): Class names; label `i` is `classes[i]`.
        attribution (`str` or `None`): Credit that the images' licence asks to be shown beside them.
        fingerprint (`str`): sha256 that changes when the content, the names or the order of the images do.
    """

    classes: list[str]
    attribution: str | None

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return `(image, label)`: an 8-bit RGB image and an index into `classes`.

        Raises:
            BrokenImageError: This image cannot be decoded; others may be.
        """
        ...


def scheme_of(spec: str | os.PathLike) -> str | None:
    """Which of [`SCHEMES`] names the source; `None` for a path, and for a path that exists whatever its name."""
    return scheme_before(os.fspath(spec), SCHEMES)


def build_image_source(
    spec: str | os.PathLike, resolution: int | None = None, cache_dir: str | os.PathLike | None = None
) -> ImageSource:
    """Build the image source that `spec` names.

    | spec | source |
    |---|---|
    | `openmoji:train`, `openmoji:heldout` | [`~data.openmoji.OpenMojiSource`], rasterised at `resolution` |
    | `datasets:NAME_OR_PATH[:SPLIT]` | [`~data.hf_datasets.HuggingFaceDatasetSource`]; split `train` unless named |
    | `webdataset:FILES` | tar shards (a path or glob of `.tar` files) through `datasets` |
    | anything else | a folder of `root/class/image.png` for [`~data.image_folder.ImageFolderSource`] |

    Args:
        spec (`str` or `os.PathLike`): See the table.
        resolution (`int`, *optional*): Size of the stored images, for sources that rasterise (OpenMoji: 64). Other
            sources return images at their own size.
        cache_dir (`str` or `os.PathLike`, *optional*): Where a source keeps what it prepares.

    Raises:
        ValueError: The part after `openmoji:` is not a split.
        FileNotFoundError: The folder does not exist.
        ImportError: `openmoji:` without the `demo` extra.
    """
    spec = os.fspath(spec)
    scheme, rest = scheme_of(spec), spec.partition(":")[2]
    # Imports are local so that OpenMoji's extra and `datasets` load only for those who ask for them.
    if scheme == "openmoji":
        from .openmoji import OpenMojiSource

        return OpenMojiSource(rest, resolution=64 if resolution is None else resolution, cache_dir=cache_dir)
    if scheme is not None:
        from .hf_datasets import HuggingFaceDatasetSource

        if scheme == "webdataset":
            return HuggingFaceDatasetSource.from_tar_shards(rest, cache_dir=cache_dir)
        return HuggingFaceDatasetSource.from_spec(rest, cache_dir=cache_dir)
    from .folder import ImageFolderSource

    return ImageFolderSource(spec)
