"""Decode any image file to an upright 8-bit RGB `PIL.Image`.

One place decides what grey, palette, CMYK, 16-bit, transparent and rotated files become, so that every image source
agrees. A file that cannot be decoded raises [`BrokenImageError`], which a training loop may count and skip.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ...errors import InputError

# EXIF 2.3, section 4.6.4, tag 0x0112: what makes each orientation upright; 1 is.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Raised when the same file gives other pixels: features that were kept of those before are then computed again.
DECODING_VERSION = 3
# From this one on, height and width change places.
_FIRST_TURNED = 5
_TIFF_SIZE = (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
# Where Pillow finds the orientation of a PNG: its own chunk, XMP, and what ImageMagick writes.
_PNG_ORIENTATIONS = {"exif", "XML:com.adobe.xmp", "Raw profile type exif"}


class BrokenImageError(InputError):
    """An image that cannot be decoded.

    Args:
        path (`str`): The file, or a name that finds the sample in its dataset.
        reason (`str`): What the decoder said.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(f"cannot read image {path}: {reason}; replace or remove it")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Exceptions cross process borders from DataLoader workers; the default would pass one argument only.
        return type(self), (self.path, self.reason)


def load_rgb_image(file: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Decode `file` to an RGB image of 8 bits per channel.

    The EXIF orientation is applied where it can be read, transparency is composed on white, CMYK and grey are
    converted, and grey of more than 8 bits is scaled to 0-255.

    Args:
        file (`str`, `os.PathLike` or `bytes`): A path, or the encoded bytes.
        name (`str`, *optional*): What error messages call the image; the path when left out.

    Returns:
        `PIL.Image.Image` of mode RGB, fully loaded (no file stays open).

    Raises:
        BrokenImageError: The file is missing, truncated, not an image, or has a pixel type without a fixed range.
    """
    with _opened(file, name) as image:
        raw_mode = _raw_mode(image)
        image.load()
        return to_rgb(_as_stored(image, raw_mode))


def read_image_size(file: str | os.PathLike | bytes, name: str | None = None) -> tuple[int, int]:
    """Height and width of what [`load_rgb_image`] returns, from what stands before the pixels.

    A PNG may name its orientation behind them alone, where it is not looked for.

    Args, Raises: As in [`load_rgb_image`].
    """
    with _opened(file, name) as image:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow gives the size of a TIFF as it will be once turned.
            width, height = (image.tag_v2[tag] for tag in _TIFF_SIZE)
        known = image.format != "PNG" or not _PNG_ORIENTATIONS.isdisjoint(image.info)
        return (width, height) if known and _orientation(image) >= _FIRST_TURNED else (height, width)


@contextmanager
def _opened(file: str | os.PathLike | bytes, name: str | None) -> Iterator[Image.Image]:
    label = name or (os.fspath(file) if not isinstance(file, bytes) else "<bytes>")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, zlib.error, IndexError ...
    # Memory exhaustion is not the file's fault and must not be counted as such.
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        # Its own words name the file once more, or an address in memory.
        raise BrokenImageError(label, "it is not an image, or its format cannot be read") from error
    except Exception as error:
        raise BrokenImageError(label, f"{type(error).__name__}: {error}") from error


def _raw_mode(image: Image.Image) -> str | None:
    """How Pillow is about to read the samples of a file that is open and not loaded yet, such as `"L;4"`."""
    arguments = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else None


def _as_stored(image: Image.Image, raw_mode: str | None) -> Image.Image:
    """What Pillow leaves out where it brings samples to 8 or 16 bits: the transparent value, white, and what is 0."""
    clear = image.info.get("transparency")
    if image.format == "PNG" and isinstance(clear, int):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(raw_mode or "", 1)
    elif image.format == "PNG" and isinstance(clear, tuple) and raw_mode == "RGB;16B":
        # Of 16-bit samples Pillow keeps the upper halves.
        image.info["transparency"] = tuple(sample >> 8 for sample in clear)
    elif image.format == "TGA" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        # The fourth byte of a pixel of 32 bits need not be transparency.
        return image.convert("RGB")
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.mode.startswith("I;16"):
        return image
    samples = np.asarray(image).astype(np.uint16)
    if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        samples = (samples << 4 | samples >> 8).astype(np.uint16)
    # TIFF 6.0, section 4: with 0, white is zero.
    if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        samples = (65535 - samples).astype(np.uint16)
    return Image.fromarray(samples)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded PIL image of any mode to upright RGB, as [`load_rgb_image`] describes."""
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # "I;16", "I;16B" and, from some formats, "I" hold 16-bit samples, which PIL's convert() would clip at 255.
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError(f"integer samples of {samples.min()}..{samples.max()}, expected 0..65535")
        pixels = np.round(samples / 257).astype(np.uint8)
        # One value of a grey PNG may stand for nothing at all.
        if isinstance(clear := image.info.get("transparency"), int):
            pixels[samples == clear] = 255
        return Image.fromarray(pixels, mode="L").convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples have no fixed range; save the image with 8 or 16 bits per channel")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        # La and RGBa (premultiplied) convert to RGBA only through their own straight form.
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an image whose EXIF data are malformed stays as it is.

    `ImageOps.exif_transpose` would also write the EXIF data anew, which fails for some that can be read.
    """
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    # Malformed data raise as many types as damaged files do, but the pixels are there.
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1
