"""Networks of transformers that look at images of one size and range: loading and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..errors import InputError
from .frozen_network import FrozenNetwork

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Statistics = tuple[float, float, float]
# (width, layers) of the published vision transformers.
_SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1152, 27): "so400m", (1280, 32): "h", (1536, 40): "g"}


def vit_name(family: str, config: Any) -> str:
    """
    Name of a vision transformer of `family` that a transformers config describes, such as `clip-vitl14`; other sizes
    than the published ones are spelled out.
    """
    size = _SIZES.get((config.hidden_size, config.num_hidden_layers))
    if size is None:
        size = f"-width{config.hidden_size}-depth{config.num_hidden_layers}-patch"
    return f"{family}-vit{size}{config.patch_size}"


def require_model_type(path: str, known: Sequence[str]) -> dict[str, Any]:
    """
    Transformers loads whatever has tensors of the same names: a DINO as an MAE, and reverse.

    Returns:
        `dict`: The config as it is stored.

    Raises:
        OSError: There is no config.
        InputError: The config is that of another model.
    """
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(path)
    found = config.get("model_type")
    # Without a config, loading says what is missing.
    if found is not None and found not in known:
        raise InputError(f"{path} holds a model of type {found!r}; expected {' or '.join(known)}")
    return config


class VisionNetwork(FrozenNetwork):
    """
    A network that sees images as a square (resized, antialiased), normalised by a mean and a deviation per channel.

    Args:
        load (`Callable`): Returns the network for what it is given as `pretrained_model_name_or_path`.
        family (`str`): What an error calls the network.
        pretrained_model_name_or_path (`str` or `Path`): A folder of transformers' format, or a Hub name to download.
        resolution (`int`): Side of the square, in pixels.
        interpolation (`str`): `"bilinear"`, or `"bicubic"`, whose overshoot is clamped.

    Attributes:
        config: Of transformers.

    Raises:
        InputError: No model in the folder, and no download; or weights that are not the network's.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        load: Callable[[str], Any],
        family: str,
        pretrained_model_name_or_path: str | Path,
        resolution: int,
        interpolation: Literal["bilinear", "bicubic"],
        mean: Statistics = IMAGENET_MEAN,
        std: Statistics = IMAGENET_STD,
    ):
        super().__init__()
        try:
            self.network = load(str(pretrained_model_name_or_path))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load {family} weights from {pretrained_model_name_or_path}: {str(error).splitlines()[0]} Save"
                " the model on a machine with a network (AutoModel.from_pretrained(name).save_pretrained(folder)) and"
                " pass the folder, or use efficientnet-lite0, which works offline."
            ) from error
        self.config = self.network.config
        self.resolution, self.interpolation = resolution, interpolation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to what the network was trained on."""
        size = (self.resolution, self.resolution)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode=self.interpolation, align_corners=False, antialias=True)
            if self.interpolation == "bicubic":
                images = images.clamp(-1.0, 1.0)
        return ((images + 1.0) / 2.0 - self.mean) / self.std
