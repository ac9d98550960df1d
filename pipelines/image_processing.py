"""Images of any size for autoencoders that need multiples of their compression ratio."""

import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor


class PaddingImageProcessor(VaeImageProcessor):
    r"""
    Pads instead of resizing, and crops the result, so that every pixel keeps its position and value.

    ```py
    >>> processor = PaddingImageProcessor(vae_scale_factor=vae.spatial_compression_ratio)
    >>> padded, size = processor.pad(image)  # a PIL image of 500x333
    >>> reconstruction = processor.crop(vae(padded).sample, size)[0]  # again 500x333
    ```

    Args:
        vae_scale_factor (`int`, defaults to 32):
            The autoencoder's compression ratio. Padded sizes are multiples of it.
        padding_mode (`str`, defaults to `"reflect"`):
            What fills the added rows and columns: `"reflect"` (the image mirrored, `"replicate"` where it is too small
            to mirror) or `"replicate"` (its last row and column). Either looks to the encoder like more of the same
            image.
    """

    @register_to_config
    def __init__(self, vae_scale_factor: int = 32, padding_mode: str = "reflect"):
        # diffusers takes what has as many channels as its latents for latents, and leaves it as it is.
        super().__init__(
            do_resize=False, vae_scale_factor=vae_scale_factor, vae_latent_channels=None, do_convert_rgb=True
        )
        if padding_mode not in ("reflect", "replicate"):
            raise ValueError(f"padding_mode {padding_mode!r} must be 'reflect' or 'replicate'.")

    def pad(self, image: PipelineImageInput) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or lists of them, all of one size):
                PIL images, arrays `(H, W, C)` or `(B, H, W, C)` in `[0, 1]`, tensors `(C, H, W)` or `(B, C, H, W)` in
                `[0, 1]`.

        Returns:
            `tuple[torch.Tensor, tuple[int, int]]`: images `(B, C, H', W')` in `[-1, 1]`, padded at the bottom and the
            right so that the latent grid starts at the first pixel, and the size `(H, W)` that `crop` needs.

        Raises:
            ValueError: if the images are not of one size, or PIL images have more than 8 bits per channel.
        """
        pixels = self.preprocess(as_rgb_of_one_size(image))
        height, width = pixels.shape[-2:]
        ratio = self.config.vae_scale_factor
        bottom, right = -height % ratio, -width % ratio
        can_reflect = bottom < height and right < width
        mode = self.config.padding_mode if can_reflect else "replicate"
        return F.pad(pixels, (0, right, 0, bottom), mode=mode), (height, width)

    def crop(
        self, sample: torch.Tensor, size: tuple[int, int], output_type: str = "pil"
    ) -> list[PIL.Image.Image] | torch.Tensor:
        """
        Args:
            sample (`torch.Tensor` of shape `(B, C, H', W')`): Decoded images in `[-1, 1]`.
            size (`tuple[int, int]`): Height and width that `pad` returned.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`, the latter two in `[0, 1]`.

        Raises:
            ValueError: if `sample` is smaller than `size`.
        """
        height, width = size
        if sample.shape[-2] < height or sample.shape[-1] < width:
            raise ValueError(f"sample of shape {tuple(sample.shape)} is smaller than the size {size} to crop to.")
        return self.postprocess(sample[..., :height, :width].float(), output_type=output_type)


def as_rgb_of_one_size(image: PipelineImageInput) -> PipelineImageInput:
    """
    PIL images upright and in RGB, transparency on white; arrays and tensors as they are.

    Raises:
        ValueError: PIL images have more than 8 bits per channel, or images are of several sizes.
    """
    images = [_as_rgb(one) for one in image] if isinstance(image, list) else _as_rgb(image)
    if isinstance(images, list) and len({_size(one) for one in images}) > 1:
        sizes = ", ".join(str(size) for size in sorted({_size(one) for one in images}))
        raise ValueError(f"images of one batch must have one size, got {sizes} (height, width); pass them one by one.")
    return images


def _as_rgb(image: PipelineImageInput) -> PipelineImageInput:
    if not isinstance(image, PIL.Image.Image):
        return image
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        raise ValueError(
            f"a PIL image of mode {image.mode} has more than 8 bits per channel, which PIL would clip; scale it first."
        )
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    white = PIL.Image.new("RGBA", upright.size, "white")
    return PIL.Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def _size(image: PipelineImageInput) -> tuple[int, int]:
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[-3:-1]
    return height, width
