"""All views of one decoded image: the one to reconstruct, and the crops and masks of self-distillation.

Everything runs on `PIL.Image` rather than on tensors: at 32-64 px, per-call overhead dominates and PIL's is the
smallest; at 224 px PIL's Gaussian blur is five times faster than torchvision's on either type.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .center_crop import center_crop, height_and_width
from .token_masks import MASK_SHAPES, draw_mask

# Blur radii of the iBOT release are in pixels of its 224 px crops.
_BLUR_REFERENCE_SIZE = 224


class MultiCropTransform:
    """Turn one image into the training views of TC-AE: reconstruction view, 2 global crops, k local crops, masks.

    Augmentation is that of the iBOT release: flip 0.5; colour jitter 0.4/0.4/0.2/0.1 with probability 0.8; grey 0.2;
    Gaussian blur with probability 1.0 (first global crop), 0.1 (second), 0.5 (local crops); solarisation 0.2 on the
    second global crop. The blur radius, 0.1-2.0 px there, is scaled by crop size / 224, since 2 px would erase a 32 px
    crop.

    Args:
        resolution (`int`): Side of the reconstruction view in pixels, see [`center_crop`].
        global_crop_size (`int`, *optional*): Side of the global crops. None gives the reconstruction view alone.
        local_crop_size (`int`, *optional*): Side of the local crops; needed when there are any.
        num_local_crops (`int`, defaults to 0): k.
        mask_grid (`tuple[int, int]`, *optional*): Grid of token groups of a global crop; see [`draw_mask`]. None
            draws no masks.
        horizontal_flip (`bool`, defaults to `True`): Flip the reconstruction view with probability 0.5.
        global_crop_scale (`tuple[float, float]`, defaults to (0.25, 1.0)): Share of the image area in a global crop.
        local_crop_scale (`tuple[float, float]`, defaults to (0.05, 0.25)): The same for local crops.
        mask_probability (`float`, defaults to 0.5), mask_ratio (`tuple[float, float]`, defaults to (0.1, 0.5)),
        mask_shape (`str`, defaults to `"random"`): See [`draw_mask`].

    Raises:
        ValueError: A size, scale, ratio or shape is out of range (the message names it).
    """

    def __init__(
        self,
        resolution: int,
        global_crop_size: int | None = None,
        local_crop_size: int | None = None,
        num_local_crops: int = 0,
        mask_grid: tuple[int, int] | None = None,
        horizontal_flip: bool = True,
        global_crop_scale: tuple[float, float] = (0.25, 1.0),
        local_crop_scale: tuple[float, float] = (0.05, 0.25),
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_shape: str = "random",
    ):
        sizes = {"resolution": resolution, "global_crop_size": global_crop_size, "local_crop_size": local_crop_size}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} {size} is not a positive number of pixels")
        if num_local_crops < 0:
            raise ValueError(f"num_local_crops {num_local_crops} is negative")
        if num_local_crops and (global_crop_size is None or local_crop_size is None):
            raise ValueError(
                f"num_local_crops={num_local_crops} needs global_crop_size and local_crop_size; got "
                f"{global_crop_size} and {local_crop_size}"
            )
        if mask_grid is not None and (len(mask_grid) != 2 or min(mask_grid) < 1):
            raise ValueError(f"mask_grid {mask_grid} is not a (height, width) of at least one token group each")
        if mask_grid is not None and global_crop_size is None:
            raise ValueError(f"mask_grid {mask_grid} needs global_crop_size: masks belong to global crops")
        ranges = {
            "global_crop_scale": global_crop_scale,
            "local_crop_scale": local_crop_scale,
            "mask_ratio": mask_ratio,
        }
        for name, (low, high) in ranges.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} ({low}, {high}) is not a range within (0, 1]")
        if not 0 <= mask_probability <= 1:
            raise ValueError(f"mask_probability {mask_probability} is not within [0, 1]")
        if mask_shape not in MASK_SHAPES:
            raise ValueError(f"mask_shape {mask_shape!r} is unknown; expected one of {', '.join(MASK_SHAPES)}")
        self.resolution = resolution
        self.global_crop_size = global_crop_size
        self.local_crop_size = local_crop_size
        self.num_local_crops = num_local_crops
        self.mask_grid = None if mask_grid is None else (mask_grid[0], mask_grid[1])
        self.horizontal_flip = horizontal_flip
        self.global_crop_scale = (global_crop_scale[0], global_crop_scale[1])
        self.local_crop_scale = (local_crop_scale[0], local_crop_scale[1])
        self.mask_probability = mask_probability
        self.mask_ratio = (mask_ratio[0], mask_ratio[1])
        self.mask_shape = mask_shape

    def __call__(
        self, image: Image.Image, generator: np.random.Generator, size: tuple[int, int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Draw the views of one image.

        Args:
            image (`PIL.Image.Image`): RGB, any size.
            generator (`np.random.Generator`): The only source of randomness; see [`sample_generator`].
            size (`tuple[int, int]`, *optional*): Height and width of the reconstruction view; a square of `resolution`
                if unset.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` uint8 `(3, H, W)`, and when global crops are on `global_crops`
            uint8 `(2, 3, h, w)`, `masks` bool `(2, grid height, grid width)`, `local_crops` uint8 `(k, 3, h', w')`.
            What is switched off is absent.
        """
        flip = generator.random() < 0.5 and self.horizontal_flip
        view = center_crop(image, size or self.resolution)
        views = {"pixel_values": to_uint8(ImageOps.mirror(view) if flip else view)}
        if self.global_crop_size is None:
            return views
        first = self._crop(image, generator, self.global_crop_size, self.global_crop_scale, blur_probability=1.0)
        second = self._crop(
            image,
            generator,
            self.global_crop_size,
            self.global_crop_scale,
            blur_probability=0.1,
            solarize_probability=0.2,
        )
        views["global_crops"] = torch.stack([first, second])
        if self.mask_grid is not None:
            masks = [
                draw_mask(self.mask_grid, generator, self.mask_probability, self.mask_ratio, self.mask_shape)
                for _ in range(2)
            ]
            views["masks"] = torch.from_numpy(np.stack(masks))
        # Drawn last, so that their number changes nothing else.
        if self.num_local_crops and self.local_crop_size is not None:
            views["local_crops"] = torch.stack(
                [
                    self._crop(image, generator, self.local_crop_size, self.local_crop_scale, blur_probability=0.5)
                    for _ in range(self.num_local_crops)
                ]
            )
        return views

    @staticmethod
    def _crop(
        image: Image.Image,
        generator: np.random.Generator,
        size: int,
        scale: tuple[float, float],
        blur_probability: float,
        solarize_probability: float = 0.0,
    ) -> torch.Tensor:
        crop = random_resized_crop(image, generator, size, scale)
        if generator.random() < 0.5:
            crop = ImageOps.mirror(crop)
        if generator.random() < 0.8:
            crop = color_jitter(crop, generator)
        if generator.random() < 0.2:
            crop = crop.convert("L").convert("RGB")
        if generator.random() < blur_probability:
            crop = crop.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0) * size / _BLUR_REFERENCE_SIZE))
        if generator.random() < solarize_probability:
            crop = ImageOps.solarize(crop)
        return to_uint8(crop)


def random_resized_crop(
    image: Image.Image, generator: np.random.Generator, size: int | tuple[int, int], scale: tuple[float, float]
) -> Image.Image:
    """Cut out a random rectangle and resize it to one size, as `torchvision.transforms.RandomResizedCrop` does.

    Args:
        image (`PIL.Image.Image`): Any size.
        generator (`np.random.Generator`): The only source of randomness.
        size (`int` or `tuple[int, int]`): Of the result: side of a square, or `(height, width)`, in pixels.
        scale (`tuple[float, float]`): Range of the rectangle's share of the image area; its aspect ratio is that of
            the result times a factor that is log-uniform in [3/4, 4/3].
    """
    target_height, target_width = height_and_width(size)
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3))) * (target_width / target_height)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(width - crop_width + 1))
            top = int(generator.integers(height - crop_height + 1))
            box = (left, top, left + crop_width, top + crop_height)
            return image.resize((target_width, target_height), Image.Resampling.BICUBIC, box=box)
    return center_crop(image, size)


def color_jitter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Change brightness and contrast by up to 0.4, saturation by 0.2 and hue by 0.1 of a turn, in random order."""
    brightness, contrast = generator.uniform(0.6, 1.4, size=2)
    saturation, hue = generator.uniform(0.8, 1.2), generator.uniform(-0.1, 0.1)
    for step in generator.permutation(4):
        if step == 0:
            image = ImageEnhance.Brightness(image).enhance(brightness)
        elif step == 1:
            image = ImageEnhance.Contrast(image).enhance(contrast)
        elif step == 2:
            image = ImageEnhance.Color(image).enhance(saturation)
        else:
            image = _shift_hue(image, hue)
    return image


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    pixels = np.array(image.convert("HSV"))
    # Bytes wrap around as the hue does.
    pixels[..., 0] += np.uint8(round(turns * 255) % 256)
    return Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


def to_uint8(image: Image.Image) -> torch.Tensor:
    """RGB image as uint8 `(3, H, W)`, 0-255."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
