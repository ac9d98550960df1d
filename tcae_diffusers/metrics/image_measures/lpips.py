"""LPIPS (Zhang et al. 2018): a learned distance of deep features."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...data.images.pixel_range import to_signed
from ...errors import InputError
from ...files import sha256_of_tensors
from ...objectives.perceptual import LPIPSLoss
from .measure import ImageMeasure, ImageMeasureSettings


class LPIPS(ImageMeasure):
    """LPIPS v0.1 of every image, at least 32 pixels a side.

    Args:
        network ([`LPIPSLoss`]): With its backbone.
    """

    better: ClassVar = {"lpips": "lower"}
    if_left_out: ClassVar = {"LPIPS": "not requested; pass --lpips alex, which needs its ImageNet weights"}

    def __init__(self, network: LPIPSLoss):
        self._network = network
        self._weights_sha256 = sha256_of_tensors(network.state_dict())

    def describe_network(self) -> dict[str, Any]:
        return {"name": self._network.name, "weights_sha256": self._weights_sha256}

    @classmethod
    def build(cls, settings: ImageMeasureSettings) -> LPIPS | None:
        if settings.lpips is None:
            return None
        return cls(LPIPSLoss(settings.lpips, settings.lpips_weights).to(settings.device))

    @torch.inference_mode()
    def __call__(self, originals: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if min(outputs.shape[-2:]) < 32:
            raise InputError(f"LPIPS needs images of at least 32 pixels, got {outputs.shape[-1]}x{outputs.shape[-2]}")
        return {"lpips": self._network.network(to_signed(outputs), to_signed(originals)).flatten()}

    def figure_name(self, column: str, height: int, width: int) -> str:
        return self._network.name.upper()
