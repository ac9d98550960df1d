"""What decoding makes of files that are not quite as they should be."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from tcae_diffusers.data.images.decoding import BrokenImageError, load_rgb_image
from tcae_diffusers.errors import InputError

FORMATS = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
# Clockwise by 90 degrees to view.
TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


def _exif(*entries) -> bytes:
    fields = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)


def _encoded(form, **options) -> bytes:
    image = Image.new("RGB", (8, 16), "red")
    image.paste("blue", (0, 0, 8, 8))
    buffer = io.BytesIO()
    image.save(buffer, form, **FORMATS[form], **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II",
        _exif((0x0112, 7, 4, b"\6\0\0\0")),
        _exif((0x0112, 3, 1, struct.pack("<HH", 99, 0))),
    ],
    ids=["no header", "cut off", "of no number", "of no direction"],
)
def test_an_orientation_that_cannot_be_read_is_left_alone(form, exif):
    image = load_rgb_image(_encoded(form, exif=exif))
    assert image.size == (8, 16) and image.mode == "RGB"
    assert image.getpixel((4, 2))[2] > 250 > 5 > image.getpixel((4, 2))[0]


def test_exif_data_in_a_text_chunk_may_be_malformed_too():
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("Raw profile type exif", "\nexif\n   10\nzzzz")
    assert load_rgb_image(_encoded("PNG", pnginfo=chunk)).size == (8, 16)


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("form", FORMATS)
def test_an_orientation_counts_beside_malformed_entries(form):
    # The second entry can be read, but not be written again.
    image = load_rgb_image(_encoded(form, exif=_exif(TURNED, (0x0103, 6, 4, b"\xff\1\2\3"))))
    assert image.size == (16, 8) and image.getpixel((14, 4))[2] > 250 > 5 > image.getpixel((14, 4))[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_made_upright_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.array_equal(load_rgb_image(buffer.getvalue()), expected)


def test_a_broken_image_is_bad_input():
    with pytest.raises(InputError, match="cannot read image <bytes>"):
        load_rgb_image(b"no image")
    assert issubclass(BrokenImageError, InputError)
