import numpy as np
import PIL.Image
import pytest
import torch

from tcae_diffusers.pipelines import AutoencoderReconstructionBlocks, PaddingImageProcessor


@pytest.fixture
def processor(tiny_vae):
    return PaddingImageProcessor(vae_scale_factor=tiny_vae.spatial_compression_ratio)


def random_image(height, width, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(8, 8), (17, 30), (1, 1), (3, 41)])
@pytest.mark.parametrize("padding_mode", ["reflect", "replicate"])
def test_crop_undoes_pad_exactly(size, padding_mode):
    processor = PaddingImageProcessor(vae_scale_factor=8, padding_mode=padding_mode)
    image = random_image(*size)
    padded, original_size = processor.pad(image)
    assert padded.shape == (1, 3, -(-size[0] // 8) * 8, -(-size[1] // 8) * 8)
    assert padded.abs().max() <= 1
    np.testing.assert_array_equal(np.asarray(processor.crop(padded, original_size)[0]), np.asarray(image))


def test_padding_mirrors_the_image(processor):
    padded, _ = processor.pad(random_image(13, 16))
    torch.testing.assert_close(padded[..., 13:, :], padded[..., 9:12, :].flip(-2))


def test_any_size_goes_through_the_autoencoder(processor, tiny_vae):
    for image in (random_image(21, 35), random_image(21, 35, "L"), random_image(21, 35, "RGBA")):
        padded, size = processor.pad(image)
        reconstruction = processor.crop(tiny_vae(padded).sample.detach(), size)[0]
        assert reconstruction.size == image.size
        assert reconstruction.mode == "RGB"


def test_pil_images_are_upright_rgb_with_transparency_on_white(processor, tiny_vae):
    red = PIL.Image.new("RGBA", (16, 8), (255, 0, 0, 0))
    assert (processor.pad(red)[0] == 1).all()
    turned = PIL.Image.new("L", (16, 8), 255)
    turned.getexif()[0x0112] = 6
    assert processor.pad(turned)[1] == (16, 8)
    deep = PIL.Image.fromarray(np.full((8, 8), 0x8080, dtype=np.uint16))
    with pytest.raises(ValueError, match="mode I;16 has more than 8 bits per channel"):
        processor.pad(deep)
    modular = AutoencoderReconstructionBlocks().init_pipeline()
    modular.update_components(vae=tiny_vae)
    for image, message in ((deep, "more than 8 bits"), ([red, red.resize((32, 16))], "must have one size")):
        with pytest.raises(ValueError, match=message):
            modular(image=image)
    for mode in ("L", "P", "LA", "RGBA", "CMYK", "1"):
        seen = modular(image=random_image(16, 16).convert(mode), output="images")
        assert seen[0].size == (16, 16)


def test_batches_of_tensors_and_arrays(processor):
    images = torch.rand(2, 3, 10, 12)
    padded, size = processor.pad(images)
    assert padded.shape == (2, 3, 16, 16)
    torch.testing.assert_close(processor.crop(padded, size, output_type="pt"), images)
    # diffusers would take four channels for a latent.
    transparent = torch.rand(1, 4, 16, 16)
    torch.testing.assert_close(processor.pad(transparent)[0], transparent * 2 - 1)
    from_array, _ = processor.pad(images.permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(from_array, padded)


def test_errors(processor):
    with pytest.raises(ValueError, match=r"one size, got \(8, 8\), \(9, 8\)"):
        processor.pad([random_image(8, 8), random_image(9, 8)])
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) is smaller than the size \(9, 8\)"):
        processor.crop(torch.zeros(1, 3, 8, 8), (9, 8))
    with pytest.raises(ValueError, match="padding_mode 'zeros'"):
        PaddingImageProcessor(padding_mode="zeros")
