"""
Perceptual distances with gradient to the reconstruction: LPIPS, and a distance of EfficientNet-Lite features for use
without LPIPS's backbone. The two are different measures, and their names and figures must not be mixed.
"""

import os
import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import torch

from ..models.efficientnet_lite_variants import EFFICIENTNET_LITES
from ..models.frozen_network import FrozenNetwork, loads_pretrained_weights
from ..models.precision import without_autocast
from .feature_backbones import EfficientNetLiteFeatures

PERCEPTUAL_LOSSES = ("none", "lpips-vgg", "lpips-alex", "lpips-squeeze", *EFFICIENTNET_LITES)
# What lpips calls its trunks, and torchvision's weights of each.
LPIPS_BACKBONES = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def _load_backbone_weights(net: str, path: str | Path | None) -> dict[str, torch.Tensor]:
    from torchvision import models

    weights = getattr(models, LPIPS_BACKBONES[net]).IMAGENET1K_V1
    file_name = os.path.basename(weights.url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    advice = (
        f"LPIPS ({net}) needs torchvision's ImageNet weights {file_name}. Put the file at {cached} or pass its path "
        "as the LPIPS backbone weights; or choose the perceptual loss efficientnet-lite0, which works offline and is "
        "not LPIPS, or none"
    )
    if path is not None and not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}. {advice}")
    if path is not None:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} cannot be read as weights ({type(error).__name__}). {advice}") from error
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except (URLError, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(f"{file_name} is not cached and cannot be downloaded ({error}). {advice}") from error


class LPIPSLoss(FrozenNetwork):
    """
    LPIPS v0.1 (Zhang et al., 2018), averaged over the batch.

    The package `lpips` ships the linear heads only. Its backbone is torchvision's, from `backbone_weights`, from
    torch's download cache or from a download; without it this raises: LPIPS on a random backbone is not LPIPS.

    Args:
        net (`str`, defaults to `"vgg"`): backbone, `"vgg"` (usual as a loss), `"alex"` (usual as a metric) or
            `"squeeze"`.
        backbone_weights (`str` or `Path`, *optional*): file with torchvision's weights of that backbone.

    Raises:
        FileNotFoundError: no weights; the message says where to put them.
        ValueError: unknown `net`, or a file that holds other weights.
    """

    def __init__(self, net: str = "vgg", backbone_weights: str | Path | None = None):
        super().__init__()
        if net not in LPIPS_BACKBONES:
            raise ValueError(f"LPIPS backbone is {net!r}; expected one of {', '.join(LPIPS_BACKBONES)}")
        weights = _load_backbone_weights(net, backbone_weights) if loads_pretrained_weights() else None
        import lpips

        with warnings.catch_warnings():
            # lpips still calls torchvision with `pretrained=`; the random trunk it builds is overwritten below.
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            # On the meta device its heads, which it always loads, have nowhere to go.
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self.name = f"lpips-{net}"
        if weights is not None:
            self._load_trunk(weights, net, backbone_weights)
        self.freeze()

    def _load_trunk(self, weights: dict[str, torch.Tensor], net: str, path: str | Path | None) -> None:
        trunk = self.network.net
        # lpips cuts torchvision's `features.N` into `sliceK.N`.
        sources = {key: "features." + key.split(".", 1)[1] for key in trunk.state_dict()}
        missing = [
            source
            for key, source in sources.items()
            if source not in weights or weights[source].shape != trunk.state_dict()[key].shape
        ]
        if missing:
            raise ValueError(
                f"{path} does not hold torchvision's {LPIPS_BACKBONES[net]}: {missing[0]} is missing or "
                "has another shape"
            )
        trunk.load_state_dict({key: weights[source] for key, source in sources.items()})

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`sample` and `target` `(B, 3, H, W)` in [-1, 1], H and W at least 32 -> fp32 mean distance."""
        if min(sample.shape[-2:]) < 32:
            raise ValueError(
                f"images of {sample.shape[-2]}x{sample.shape[-1]} pixels are too small for LPIPS; expected at least "
                "32x32, or use the perceptual loss efficientnet-lite0, which enlarges them"
            )
        with without_autocast(sample):
            return self.network(sample.float(), target.float()).mean()


class EfficientNetFeatureLoss(FrozenNetwork):
    """
    Distance of EfficientNet-Lite features: at each of five depths, the squared distance of channel-normalised
    features, averaged over positions, then over depths. Between 0 and 4.

    It has LPIPS's form without its human-calibrated weights: a training loss for when no LPIPS backbone is available,
    never a figure to report as LPIPS. A Fréchet distance in the features of the same network falls under it by
    construction: measure with another one.

    Args:
        name (`str`): see [`EfficientNetLiteFeatures`].
        weights_path (`str`, *optional*): see [`EfficientNetLiteFeatures`].
    """

    def __init__(self, name: str, weights_path: str | None = None):
        super().__init__()
        self.name = f"{name}-features"
        self.backbone = EfficientNetLiteFeatures(name, weights_path=weights_path)
        self.freeze()

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`sample` and `target` `(B, 3, H, W)` in [-1, 1] -> fp32 mean distance."""
        with without_autocast(sample):
            with torch.no_grad():
                targets = self.backbone(target.float())
            distances = []
            for found, wanted in zip(self.backbone(sample.float()), targets, strict=True):
                difference = _unit_channels(found) - _unit_channels(wanted)
                distances.append(difference.square().sum(dim=1).mean())
            return torch.stack(distances).mean()


def _unit_channels(features: torch.Tensor) -> torch.Tensor:
    # Added inside the root: the gradient of a norm at an all-zero pixel is not a number.
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt()


def build_perceptual_loss(name: str, weights_path: str | None = None) -> FrozenNetwork | None:
    """
    Args:
        name (`str`): `"none"`, `"lpips-vgg"`, `"lpips-alex"`, `"lpips-squeeze"` or one of
            [`EFFICIENTNET_LITES`].
        weights_path (`str`, *optional*): weights of the backbone.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: if the weights are neither present nor downloadable.
    """
    if name == "none":
        return None
    if name in EFFICIENTNET_LITES:
        return EfficientNetFeatureLoss(name, weights_path=weights_path)
    if name in PERCEPTUAL_LOSSES:
        return LPIPSLoss(name.removeprefix("lpips-"), weights_path)
    raise ValueError(f"perceptual loss is {name!r}; expected one of {', '.join(PERCEPTUAL_LOSSES)}")
