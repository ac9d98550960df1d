"""Counting multiply-accumulates (MACs) of any PyTorch code, on any device, `meta` included.

Why not `torch.utils.flop_counter.FlopCounterMode`: it reports two FLOPs per MAC, and for the CPU kernel of
`scaled_dot_product_attention` it reports nothing at all, so that a transformer looks cheaper on a CPU than on a GPU.
Here the products of attention are counted whichever kernel runs. A MAC is one multiplication with its addition in a
matrix product or convolution; element-wise work, normalisation, softmax, interpolation and biases are not counted,
which is the convention of the autoencoder papers that the figures are compared with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def _mm(a, b, *_, **__):
    return a.shape[0] * a.shape[1] * b.shape[1]


def _addmm(_bias, a, b, *_, **__):
    return _mm(a, b)


def _bmm(a, b, *_, **__):
    return a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]


def _baddbmm(_bias, a, b, *_, **__):
    return _bmm(a, b)


def _mv(a, _b, *_, **__):
    return a.shape[0] * a.shape[1]


def _addmv(_bias, a, b, *_, **__):
    return _mv(a, b)


def _convolution(x, weight, _bias, _stride, _padding, _dilation, transposed, *_, out, **__):
    # Each output position of a convolution (each input position of a transposed one) meets the kernel once per channel
    # pair of its group; `weight` already holds only the pairs of one group.
    positions = math.prod((x if transposed else out).shape[2:])
    return x.shape[0] * positions * weight.numel()


def _attention(query, key, value, *_, **__):
    """Q K^T and the weights times V for `(B, heads, length, head_dim)`; a causal mask is not subtracted."""
    *batch, query_length, head_dim = query.shape
    return math.prod(batch) * query_length * key.shape[-2] * (head_dim + value.shape[-1])


def _attention_length_first(query, key, value, *_, **__):
    """The same for kernels that take `(B, length, heads, head_dim)`."""
    batch, query_length, heads, head_dim = query.shape
    return batch * heads * query_length * key.shape[1] * (head_dim + value.shape[-1])


def _operator_table() -> dict[Any, tuple[str, Callable[..., int]]]:
    table = {
        aten.mm: ("matmul", _mm),
        aten.addmm: ("matmul", _addmm),
        aten._addmm_activation: ("matmul", _addmm),
        aten.bmm: ("matmul", _bmm),
        aten.baddbmm: ("matmul", _baddbmm),
        aten.mv: ("matmul", _mv),
        aten.addmv: ("matmul", _addmv),
        aten.dot: ("matmul", lambda a, *_, **__: a.shape[0]),
        aten.convolution: ("convolution", _convolution),
        aten._convolution: ("convolution", _convolution),
    }
    by_name = {
        "_scaled_mm": ("matmul", _mm),
        "_int_mm": ("matmul", _mm),
        "_scaled_dot_product_flash_attention_for_cpu": ("attention", _attention),
        "_scaled_dot_product_flash_attention": ("attention", _attention),
        "_scaled_dot_product_efficient_attention": ("attention", _attention),
        "_scaled_dot_product_cudnn_attention": ("attention", _attention),
        "_scaled_dot_product_fused_attention_overrideable": ("attention", _attention),
        "_scaled_dot_product_attention_math_for_mps": ("attention", _attention),
        "_efficient_attention_forward": ("attention", _attention_length_first),
        "_flash_attention_forward": ("attention", _attention_length_first),
    }
    # Which fused kernels exist depends on the PyTorch version and build.
    table.update({getattr(aten, name): entry for name, entry in by_name.items() if hasattr(aten, name)})
    return table


_OPERATORS = _operator_table()


class MacCounterMode(TorchDispatchMode):
    """Counts the multiply-accumulates of everything that runs inside the `with` block.

    Works below autograd, so the backend of attention makes no difference: a fused kernel is counted by its formula,
    the unfused path by its two batched matrix products. Operators that are mere compositions (`linear`, `matmul`,
    `einsum` under inference mode) are decomposed first.

    Example:
        >>> with MacCounterMode() as counter:
        ...     model(images)
        >>> counter.count.total
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = MacCount()
        self._by_operator: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        entry = _OPERATORS.get(func._overloadpacket)
        if entry is None:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if decomposed is NotImplemented else decomposed
        out = func(*args, **kwargs)
        kind, formula = entry
        extra = {"out": out} if kind == "convolution" else {}
        self._by_operator[kind] += int(formula(*args, **kwargs, **extra))
        self.count = MacCount(sum(self._by_operator.values()), dict(self._by_operator))
        return out


def count_macs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> MacCount:
    """Multiply-accumulates of one call of `function` (a module, or any callable), without gradients.

    Args:
        function: What to call. With a module and arguments on the `meta` device nothing is computed or allocated.
        *args, **kwargs: Passed on.

    Returns:
        [`MacCount`].
    """
    with torch.no_grad(), MacCounterMode() as counter:
        function(*args, **kwargs)
    return counter.count
