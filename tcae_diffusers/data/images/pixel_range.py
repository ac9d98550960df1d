"""The one rule between bytes and the range of networks."""

import torch


def to_signed(images: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """uint8 [0, 255] to float32 [-1, 1], `x / 127.5 - 1`; converted on `device`, so that a byte travels, not four."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)


def from_signed(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to uint8, `round(clamp((x + 1) / 2 * 255, 0, 255))`: what a viewer would see of an image."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
