"""Gradient norms by part of the model, for the log."""

import torch
from torch import nn

from .sharding import whole_tensor


def gradient_norms(model: nn.Module, total: torch.Tensor, max_norm: float) -> dict[str, torch.Tensor]:
    """
    Norm of the gradients of `encoder`, `decoder` and the rest (`head`) as they were before clipping.

    Args:
        model (`nn.Module`): Unwrapped, with gradients that were clipped. All ranks must call this where it is sharded.
        total (`torch.Tensor` of shape `()`): What `clip_grad_norm_` returned, gathered.
        max_norm (`float`): To which it clipped.

    Returns:
        `dict`: `train/grad_norm_<part>`, tensors of shape `()` on the device.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            # By whole words: "autoencoder" is no encoder.
            part = next((part for part in ("encoder", "decoder") if part in name.split(".")), "head")
            parts.setdefault(part, []).append(parameter.grad)
    scale = (total / max_norm).clamp(min=1.0)
    return {
        f"train/grad_norm_{part}": whole_tensor(nn.utils.get_total_norm(grads)) * scale
        for part, grads in parts.items()
    }
