import numpy as np
import pytest
from PIL import Image

from tcae_diffusers.data.images.decoding import BrokenImageError
from tcae_diffusers.data.images.folder import ImageFolderSource
from tcae_diffusers.data.images.multi_crop import MultiCropTransform, random_resized_crop
from tcae_diffusers.data.images.size_buckets import bucket_sizes, build_size_buckets
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.data.sample_randomness import sample_generator

# Height and width.
SIZES = [(20, 20), (20, 40), (40, 20), (21, 22), (300, 400), (10, 100)]


class SizedSource:
    """Images of `SIZES`, red ones; those in `broken` cannot be read."""

    attribution = None
    fingerprint = "sizes"

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return len(SIZES)

    def image_size(self, index):
        if index in self.broken:
            raise BrokenImageError(f"{index}.png", "made so")
        return SIZES[index]

    def image(self, index):
        height, width = self.image_size(index)
        return Image.new("RGB", (width, height), "red")


def test_squares_need_no_sizes_of_images():
    buckets = build_size_buckets(SizedSource(broken=range(6)), [32, 48], 8, aspect_ratios=False)
    assert buckets.sizes == [(32, 32), (48, 48)] and buckets.counts == [6, 6]
    assert buckets.image_of.tolist() == 2 * list(range(6))
    assert [buckets.size(sample) for sample in (0, 5, 6, 11)] == [(32, 32), (32, 32), (48, 48), (48, 48)]
    assert build_size_buckets(SizedSource(), [32], 8, aspect_ratios=False).description == ""
    assert buckets.description == "2 sizes from 32x32 to 48x48"


@pytest.mark.parametrize(("resolution", "divisor"), [(64, 8), (32, 8), (32, 32), (256, 32)])
def test_aspect_ratios_have_about_as_many_pixels_as_the_square_in_whole_steps(resolution, divisor):
    sizes = bucket_sizes(resolution, divisor, aspect_ratios=True)
    assert sizes[0] == (resolution, resolution) and len(set(sizes)) == len(sizes)
    assert all(side % divisor == 0 and side > 0 for size in sizes for side in size)
    if divisor * 8 <= resolution:
        assert all(abs(np.log(height * width / resolution**2)) < 0.2 for height, width in sizes)
        assert max(width / height for height, width in sizes) == pytest.approx(2, rel=0.1)


def test_images_go_to_the_nearest_aspect_ratio_at_each_resolution():
    buckets = build_size_buckets(SizedSource(), [64, 128], 8, aspect_ratios=True)
    ratios = [[size[1] / size[0] for size in map(buckets.size, range(first, first + 6))] for first in (0, 6)]
    for found in ratios:
        # What is wider than all is in the widest.
        assert found == pytest.approx([1, 2, 0.5, 1, 4 / 3, 2], rel=0.1)
    assert len(buckets.sizes) == len(set(buckets.bucket_of.tolist())) and sum(buckets.counts) == len(buckets) == 12


def test_an_image_of_unknown_size_goes_to_the_square_and_what_replaces_it_too():
    source = SizedSource(broken=[0])
    buckets = build_size_buckets(source, [64], 8, aspect_ratios=True)
    assert buckets.size(0) == (64, 64) and buckets.size(1) == (48, 88)
    dataset = TokenizerTrainingDataset(source, MultiCropTransform(64), buckets, max_broken_images=1)
    sample = dataset[0, 0]
    assert sample["indices"] == 1 and sample["pixel_values"].shape == (3, 64, 64)
    assert dataset[0, 1]["pixel_values"].shape == (3, 48, 88)


def test_the_order_by_size_keeps_images_and_sizes_together():
    buckets = build_size_buckets(SizedSource(), [64, 128], 8, aspect_ratios=True)
    ordered = buckets.in_order()
    assert (np.diff(ordered.bucket_of) >= 0).all() and ordered.counts == buckets.counts
    pairs = [sorted((each.size(i), int(each.image_of[i])) for i in range(12)) for each in (buckets, ordered)]
    assert pairs[0] == pairs[1] and len(set(pairs[0])) == 12


def test_the_fingerprint_of_a_data_set_tells_sizes_apart():
    sizes = [([32], False), ([32, 64], False), ([32], True)]
    datasets = [
        TokenizerTrainingDataset(SizedSource(), MultiCropTransform(32), build_size_buckets(SizedSource(), each, 8, on))
        for each, on in sizes
    ]
    assert datasets[0].fingerprint == "sizes" and len({each.fingerprint for each in datasets}) == 3
    assert datasets[1].description == "6 images, 2 sizes from 32x32 to 64x64" and len(datasets[1]) == 12


def test_sources_tell_sizes_of_upright_images(tmp_path):
    from datasets import Dataset

    from tcae_diffusers.data.images.hf_datasets import HuggingFaceDatasetSource

    exif = Image.Exif()
    exif[0x0112] = 6
    for index, options in enumerate([{}, {"exif": exif}]):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{index}.jpg", **options)
    files = sorted(map(str, tmp_path.glob("*.jpg")))
    for source in (
        ImageFolderSource(tmp_path),
        HuggingFaceDatasetSource(Dataset.from_dict({"image": files}), image_column="image"),
    ):
        assert [source.image_size(index) for index in range(2)] == [(20, 30), (30, 20)]
        assert [source.image(index).size for index in range(2)] == [(30, 20), (20, 30)]


def test_a_random_crop_has_the_aspect_ratio_that_it_is_resized_to():
    # Wide stripes of the same width in pixels of a wide image stay as wide as they are high.
    image = Image.fromarray(np.kron(np.indices((10, 20)).sum(0) % 2, np.ones((10, 10))).astype(np.uint8) * 255)
    crop = np.asarray(random_resized_crop(image, sample_generator(0, 0, 0), (50, 100), (1.0, 1.0)).convert("L"))
    assert crop.shape == (50, 100)
    squares = [np.abs(np.diff(crop.astype(int), axis=axis)).sum() / crop.size for axis in (0, 1)]
    assert squares[0] == pytest.approx(squares[1], rel=0.35)
