"""What decoding makes of files that are not quite as they should be."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from tcae_diffusers.data.images.decoding import BrokenImageError, load_rgb_image, read_image_size
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


def _png(depth: int, colour: int, row: bytes, clear: bytes | None = None) -> bytes:
    """16x16 pixels, all rows alike, as PNG's specification has them: Pillow writes few of these."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, 0))
    transparent = b"" if clear is None else chunk(b"tRNS", clear)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 16))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "expected"),
    [
        # Half of each row has the transparent value, in samples of the file's own depth.
        (2, 0, b"\x55\x55\xaa\xaa", struct.pack(">H", 1), 170),
        (4, 0, b"\x88" * 4 + b"\x99" * 4, struct.pack(">H", 8), 153),
        (8, 0, b"\x08" * 8 + b"\x09" * 8, struct.pack(">H", 8), 9),
        (16, 0, b"\x12\x34" * 8 + b"\x80\x80" * 8, struct.pack(">H", 0x1234), 128),
        (8, 2, b"\x12" * 24 + b"\x13" * 24, struct.pack(">3H", *[0x12] * 3), 0x13),
        (16, 2, b"\x12\x34" * 24 + b"\x80\x80" * 24, struct.pack(">3H", *[0x1234] * 3), 128),
    ],
)
def test_a_transparent_value_is_one_of_the_files_own_depth(depth, colour, row, clear, expected):
    pixels = np.asarray(load_rgb_image(_png(depth, colour, row, clear)))
    assert (pixels[:, :8] == 255).all() and (pixels[:, 8:] == expected).all()
    opaque = np.asarray(load_rgb_image(_png(depth, colour, row)))
    assert (opaque[:, :8] < 255).all() and (opaque[:, 8:] == expected).all()


def _grey_tiff(bits: int, black: int, data: bytes) -> bytes:
    """16x16 pixels; `black` is what TIFF calls photometric interpretation: 0 where white is zero, 1 where black is."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, black), (273, 8), (277, 1), (278, 16), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "black", "data", "expected"),
    [
        (8, 1, b"\x04" * 256, 4),
        (8, 0, b"\x04" * 256, 251),
        (12, 1, b"\xff" * 384, 255),
        (12, 1, b"\x80\x08\x00" * 128, 128),
        (16, 1, b"\x04\x04" * 256, 4),
        (16, 0, b"\x04\x04" * 256, 251),
    ],
)
def test_grey_of_any_depth_goes_from_black_to_white(bits, black, data, expected):
    assert (np.asarray(load_rgb_image(_grey_tiff(bits, black, data))) == expected).all()


@pytest.mark.parametrize("form", FORMATS)
def test_the_size_is_that_of_the_decoded_image_without_decoding_it(form):
    options = [{"exif": _exif((0x0112, 3, 1, struct.pack("<HH", number, 0)))} for number in (1, 3, 5, 6, 8, 99)]
    for content in (_encoded(form, **each) for each in [{}, *options]):
        width, height = load_rgb_image(content).size
        assert read_image_size(content) == (height, width)
        # Of an image that is cut off behind its header too.
        if form != "WEBP":
            assert read_image_size(content[:-5]) == (height, width)
    with pytest.raises(BrokenImageError, match="cannot read image it: it is not an image"):
        read_image_size(b"text", "it")


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "jpeg"])
def test_the_size_of_a_turned_tiff_is_that_of_the_decoded_image(compression):
    for number in (1, 3, 6, 8):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 16), "red").save(buffer, "TIFF", compression=compression, tiffinfo={0x0112: number})
        width, height = load_rgb_image(buffer.getvalue()).size
        assert (width, height) == ((16, 8) if number > 4 else (8, 16))
        assert read_image_size(buffer.getvalue()) == (height, width)


def test_the_size_of_a_png_that_is_turned_by_xmp_or_by_what_imagemagick_writes():
    profile = _exif(TURNED).hex()
    texts = {
        "XML:com.adobe.xmp": '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>',
        "Raw profile type exif": f"\nexif\n{len(profile) // 2:8d}\n{profile}\n",
    }
    for key, text in texts.items():
        written = PngImagePlugin.PngInfo()
        written.add_itxt(key, text)
        content = _encoded("PNG", pnginfo=written)
        assert load_rgb_image(content).size == (16, 8), key
        assert read_image_size(content) == (8, 16), key


def test_a_tga_without_transparency_keeps_its_colours():
    """Programs that know no alpha leave the fourth byte at zero."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, 0)
    assert load_rgb_image(header + bytes([10, 20, 200, 0] * 2)).getpixel((0, 0)) == (200, 20, 10)
    seen = load_rgb_image(header + bytes([10, 20, 200, 0, 10, 20, 200, 255]))
    assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 20, 10)]
