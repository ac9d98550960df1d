"""Where autocast is switched off."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Context in which the device of `tensor` has no autocast; one that knows none, such as `meta`, needs nothing."""
    device_type = tensor.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
