"""Gradient norms by part of the model, for the log."""

import torch
from torch import nn

from ..data.whole_tensor import whole_tensor


def gradient_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    Norm of the gradients of `encoder`, `decoder` and the rest (`head`).

    Args:
        model (`nn.Module`): Unwrapped, with gradients that were not clipped yet. All ranks must call this where it is
            sharded.

    Returns:
        `dict`: `train/grad_norm_<part>`, tensors of shape `()` on the device.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            # By whole words: "autoencoder" is no encoder.
            part = next((part for part in ("encoder", "decoder") if part in name.split(".")), "head")
            parts.setdefault(part, []).append(parameter.grad)
    return {f"train/grad_norm_{part}": whole_tensor(nn.utils.get_total_norm(grads)) for part, grads in parts.items()}
