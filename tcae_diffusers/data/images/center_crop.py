"""How a real image becomes one of the size that a model works on, in training, previews, caches and figures alike."""

from PIL import Image

# Up to this many times the area asked for, an image is scaled as a whole.
_MOST_COVERING = 16


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The central part of an image at another size: the preprocessing of ADM's ImageNet figures.

    The image is halved with a box filter while it stays at least as large as asked for, then scaled (bicubic) until it
    just covers the size, and cut. An image that has the size is returned untouched.

    Args:
        image (`PIL.Image.Image`): Of any size.
        size (`int` or `tuple[int, int]`): Side of a square, or `(height, width)`, in pixels.
    """
    height, width = height_and_width(size)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    if scale != 1:
        # Rounding could take a pixel too many off the longer side.
        covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if covering[0] * covering[1] > _MOST_COVERING * width * height:
            # Of a strip a pixel thick, what covers the size is a thousand times as large as what is left of it.
            left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
            box = (left, top, left + width / scale, top + height / scale)
            return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        image = image.resize(covering, resample=Image.Resampling.BICUBIC)
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """The side of a square, or `(height, width)`, as the latter."""
    return (size, size) if isinstance(size, int) else size
