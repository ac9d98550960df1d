"""Objects in images, as a segmentation model finds them that is told of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_pil_image

from ..errors import InputError
from ..files import sha256_of_tensors
from .whole_weights import load_whole


class ObjectFinder:
    """
    A SAM or SAM 2 of transformers, asked at a grid of points (its `mask-generation` pipeline, with its thresholds).

    Args:
        pretrained_model_name_or_path (`str` or `Path`): A folder of transformers' format, or a Hub name to download,
            such as `facebook/sam2.1-hiera-tiny`.
        device (`str`): Where it runs.
        points (`int`): Points along each side of an image.

    Attributes:
        name (`str`): Its type in transformers, such as `sam2`. weights_sha256 (`str`): Identifies its weights.

    Raises:
        InputError: No such model in the folder, and no download; or weights that are not all of the model's.
    """

    def __init__(self, pretrained_model_name_or_path: str | Path, device: str | torch.device, points: int):
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        name = str(pretrained_model_name_or_path)
        try:
            model = load_whole(AutoModelForMaskGeneration, name, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(name)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load a segmentation model from {name}: {str(error).splitlines()[0]} Save a SAM 2 on a machine"
                " with a network (AutoModelForMaskGeneration.from_pretrained(name).save_pretrained(folder), and "
                "its AutoImageProcessor alike) and pass the folder."
            ) from error
        self._pipeline: Any = pipeline("mask-generation", model=model, image_processor=processor, device=device)
        self.points = points
        self.name: str = model.config.model_type
        self.weights_sha256 = sha256_of_tensors(model.state_dict())

    def __call__(self, image: torch.Tensor) -> np.ndarray:
        """uint8 `(3, H, W)` to the masks of the objects in it: bool `(N, H, W)`, where N may be 0."""
        masks = self._pipeline(to_pil_image(image), points_per_crop=self.points)["masks"]
        return np.stack([np.asarray(mask) for mask in masks]) if len(masks) else np.zeros((0, *image.shape[1:]), bool)

    def one_of_each(self, images: torch.Tensor, numbers: range) -> torch.Tensor:
        """
        An object of each image, drawn at random: bool `(B, H, W)`, nowhere true where there is none.

        Args:
            images: uint8 `(B, 3, H, W)`.
            numbers: Of the images in their set; an image has the same object in every batch and on every rank.
        """
        chosen = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        for place, (image, number) in enumerate(zip(images, numbers, strict=True)):
            if len(masks := self(image)):
                chosen[place] = torch.from_numpy(masks[np.random.default_rng(number).integers(len(masks))])
        return chosen

    def describe(self) -> dict[str, object]:
        """For result files: name, hash of the weights, and points along a side."""
        return {"name": self.name, "weights_sha256": self.weights_sha256, "points": self.points}
