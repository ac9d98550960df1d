"""One way from a real image to the pixels that a model is given, for training and for every figure."""

import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.images.center_crop import center_crop
from tcae_diffusers.data.images.image_sets import open_image_set
from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.sample_randomness import sample_generator


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_center_crop_takes_the_middle_of_either_orientation():
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
        assert np.asarray(center_crop(picture, 10)).reshape(-1, 3).tolist() == [[0, 0, 255]] * 100


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (200, 1)])
def test_of_a_thin_strip_only_what_is_wanted_is_scaled(size, monkeypatch):
    """The middle of 3,000 pixels of one row, 32 times as high, would be 98 thousand pixels wide."""
    image = Image.fromarray(np.repeat(np.linspace(0, 255, max(size)).astype(np.uint8)[:, None], 3, axis=1)[None])
    image = image if size[0] > 1 else image.transpose(Image.Transpose.ROTATE_270)
    largest, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, to, *args, **kwargs: (largest.append(to), resize(self, to, *args, **kwargs))[1],
    )
    result = center_crop(image, 32)
    assert result.size == (32, 32) and max(map(max, largest)) == 32
    # One pixel of the strip, in the middle of a slope from black to white.
    assert abs(np.asarray(result).astype(int) - 127).max() <= 2


def test_an_image_of_the_size_is_untouched():
    image = noise(16, 16)
    assert center_crop(image, 16) is image


def test_twice_the_size_is_averaged_in_boxes():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[::2, ::2] = 200
    assert (np.asarray(center_crop(Image.fromarray(pixels), 16)) == 50).all()
    # Antialiased bicubic resizing would ring beside an edge; boxes do not.
    pixels[:], pixels[:, :16] = 0, 255
    assert set(np.unique(np.asarray(center_crop(Image.fromarray(pixels), 16)))) == {0, 255}


@pytest.mark.parametrize("image", [(48, 30), (30, 48), (17, 16), (131, 67), (9, 12)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16), (1, 1)])
def test_the_result_has_the_size_and_covers_the_shorter_way(image, size):
    cropped = center_crop(noise(*image), size)
    assert (cropped.height, cropped.width) == size


def test_training_and_every_kind_of_reference_see_the_same_pixels(tmp_path):
    images = [noise(50, 41, seed) for seed in range(3)]
    pixels = np.stack([np.asarray(image) for image in images])
    for place in ("flat", "classes/a"):
        (tmp_path / place).mkdir(parents=True)
        for index, image in enumerate(images):
            image.save(tmp_path / place / f"{index}.png")
    np.savez(tmp_path / "set.npz", arr_0=pixels)
    transform = MultiCropTransform(16, horizontal_flip=False)
    for index, image in enumerate(images):
        view = transform(image, sample_generator(0, 0, 0))["pixel_values"].permute(1, 2, 0).numpy()
        for place in ("flat", "classes", "set.npz"):
            np.testing.assert_array_equal(open_image_set(tmp_path / place, 16)[index], view, err_msg=place)
