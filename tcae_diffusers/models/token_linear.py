# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The switch for a faster kernel of linear layers on CPUs with AVX-512 that are not Intel's."""

import platform
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "GenuineIntel" in platform.processor()


# MKL takes its AVX-512 kernels on Intel's processors only.
_ONEDNN_HAS_FASTER_LINEAR = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and not _is_intel()
)


class TokenLinear(nn.Linear):
    """
    `nn.Linear` on tokens `(B, N, in_features)`, with the same parameters and the same result up to rounding. Models
    are built of `nn.Linear`; [`enable_fast_cpu_linear`] turns theirs into this.

    In fp32 on CPUs with AVX-512 that are not Intel's it runs oneDNN's kernels instead of MKL's matrix product, which
    leaves those units unused there: about twice as fast, in training and inference (docs/model_speed.md). Elsewhere,
    and wherever the product is compiled, traced, counted or quantised, it is `nn.Linear`.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self._prefers_onednn(hidden_states):
            return super().forward(hidden_states)
        if torch.is_grad_enabled():
            # The same product as a pointwise convolution, whose gradients oneDNN has too.
            hidden_map = hidden_states.contiguous().transpose(1, 2).unsqueeze(2)
            return F.conv2d(hidden_map, self.weight[:, :, None, None], self.bias).squeeze(2).transpose(1, 2)
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self.weight, self.bias, "none", [], "")

    def _prefers_onednn(self, hidden_states: torch.Tensor) -> bool:
        return (
            hidden_states.device.type == "cpu"
            and hidden_states.dtype == self.weight.dtype == torch.float32
            and not torch.compiler.is_compiling()
            and _ONEDNN_HAS_FASTER_LINEAR
            and bool(torch.backends.mkldnn.enabled)
            and hidden_states.ndim == 3
            and type(self.weight) is nn.Parameter
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not is_in_torch_dispatch_mode()
        )


def enable_fast_cpu_linear(model: nn.Module) -> None:
    """
    Let each `nn.Linear` of `model` compute as [`TokenLinear`], in place; parameters and their names stay. Layers that
    are made later, as by `fuse_qkv_projections()`, are plain until this is called again.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TokenLinear


def disable_fast_cpu_linear(model: nn.Module) -> None:
    """Undo [`enable_fast_cpu_linear`]."""
    for module in model.modules():
        if type(module) is TokenLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]
