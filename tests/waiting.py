"""Notices what makes the CPU wait for the device."""

import sys
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class ForbidReadingBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # A boolean mask as an index is a nonzero in disguise.
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        assert name not in READS_BACK and not by_mask, f"aten::{name} reads from the device"
        return func(*args, **(kwargs or {}))


_NAMES = (torch.device, str)


class ForbidBlockingCopies(TorchFunctionMode):
    """
    A tensor that is sent to a device named in the call is waited for, unless the call says otherwise. Of our own calls
    only: libraries name a device where the tensor may be there already, and whether it is shows on a GPU alone.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if sys._getframe(1).f_globals["__name__"].startswith("tcae_diffusers."):
            if func is torch.Tensor.to and not kwargs.get("non_blocking"):
                named = [
                    value for value in (*args[1:2], kwargs.get("device")) if isinstance(value, torch.device | str)
                ]
                assert not named, f"a copy to {named[0]} that waits; pass non_blocking=True"
            if func in (torch.tensor, torch.as_tensor):
                assert kwargs.get("device") is None, f"torch.{func.__name__} on {kwargs['device']} copies and waits"
        return func(*args, **kwargs)


@contextmanager
def forbid_waiting(device: str):
    """On a GPU as CUDA itself sees it; on a CPU, which has nothing to wait for, by the operations that would."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with ForbidReadingBack(), ForbidBlockingCopies():
            yield
