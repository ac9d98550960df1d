"""Counting multiply-accumulates (MACs) of any PyTorch code, on any device, `meta` included.

A MAC is one multiplication with its addition in a matrix product or convolution; element-wise work, normalisation,
softmax, interpolation and biases are not counted, which is the convention of the autoencoder papers that the figures
are compared with. [`torch.utils.flop_counter.FlopCounterMode`] counts, two FLOPs per MAC.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass
class MacCount:
    """Result of a count.

    Args:
        total (`int`): Multiply-accumulates in all.
        by_operator (`dict[str, int]`): The same, split by the kind of operator: `matmul`, `convolution`, `attention`.
    """

    total: int = 0
    by_operator: dict[str, int] = field(default_factory=dict)


def _product_flops(first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
    """Of a matrix or vector times a matrix or vector."""
    return 2 * math.prod(first) * math.prod(second[1:])


def _biased_product_flops(_bias: torch.Size, first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
    return _product_flops(first, second)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    _gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    """Four products for the two of the forward pass. The scores that fused kernels compute once more are their own
    choice, and no work that a model asks for."""
    return 2 * sdpa_flop_count(query, key, value)


def _convolution_backward_flops(
    gradient: torch.Size, inputs: torch.Size, weight: torch.Size, *settings: Any, **_: Any
) -> int:
    """The gradients of input and weight each cost as much as the forward pass, whatever the number of groups."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    return sum(wanted[:2]) * conv_flop_count(list(inputs), list(weight), list(gradient), transposed)


# FlopCounterMode takes most of these for nothing; without attention on CPUs, a transformer would look cheaper there.
# The weight's gradient of a convolution in groups it takes for that of one without: many times as much.
_FORMULAS = {
    "convolution_backward": _convolution_backward_flops,
    "mv": _product_flops,
    "dot": _product_flops,
    "_int_mm": _product_flops,
    "addmv": _biased_product_flops,
    "_addmm_activation": _biased_product_flops,
    "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
    "_scaled_dot_product_fused_attention_overrideable": _attention_flops,
    "_scaled_dot_product_attention_math_for_mps": _attention_flops,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu_backward",
            "_scaled_dot_product_flash_attention_backward",
            "_scaled_dot_product_efficient_attention_backward",
            "_scaled_dot_product_cudnn_attention_backward",
            "_scaled_dot_product_fused_attention_overrideable_backward",
        ),
        _attention_backward_flops,
    ),
}
# For `custom_mapping` of FlopCounterMode. Which fused kernels exist depends on the PyTorch version and build.
FLOP_FORMULAS = {getattr(aten, name): formula for name, formula in _FORMULAS.items() if hasattr(aten, name)}


class _NoModules:
    """In place of what follows modules: all that runs is in none."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        return

    def __exit__(self, *error: object) -> None:
        return


class FlopCounter(FlopCounterMode):
    """
    PyTorch's counter with the formulas of this module, and without its table by module: to follow modules it registers
    hooks with which `torch.autograd.grad` of a leaf fails, as an adaptive weight of several batches takes it.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FLOP_FORMULAS)
        self.mod_tracker = cast(Any, _NoModules())


def _kind(operator: Any) -> str:
    name = str(operator)
    return "attention" if "attention" in name else "convolution" if "conv" in name else "matmul"


def count_macs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> MacCount:
    """Multiply-accumulates of one call of `function` (a module, or any callable), without gradients.

    The backend of attention makes no difference: a fused kernel is counted by its formula, the unfused path by its two
    batched matrix products.

    Args:
        function: What to call. With a module and arguments on the `meta` device nothing is computed or allocated.
        *args, **kwargs: Passed on.

    Returns:
        [`MacCount`].
    """
    with torch.no_grad(), FlopCounter() as counter:
        function(*args, **kwargs)
    by_operator: Counter[str] = Counter()
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        by_operator[_kind(operator)] += flops // 2
    return MacCount(by_operator.total(), dict(by_operator))
