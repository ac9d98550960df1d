"""How much memory activations take, counted like multiply-accumulates: on the `meta` device, without computing.

Two numbers, because they answer two questions. The peak of inference is the largest sum of intermediate tensors alive
at one time; kernels' workspaces and the allocator's rounding come on top of it. What training keeps is the sum of all
tensors that autograd saves for the backward pass, without weights; it grows in proportion to the batch. Attention is
taken as a fused kernel has it, which keeps its inputs and output and never the matrix of all pairs of tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytesMode(TorchDispatchMode):
    """Follows the storages that operators create; `peak` is the most bytes that were alive at one time."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.peak = self._alive = 0
        self._known = known  # storages of weights and inputs, which are no activations
        self._references: dict[int, weakref.ref] = {}

    def _freed(self, key: int, size: int, _reference: weakref.ref) -> None:
        self._references.pop(key, None)
        self._alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key in self._known or key in self._references:
                continue
            size = storage.nbytes()
            self._references[key] = weakref.ref(storage, partial(self._freed, key, size))
            self._alive += size
        self.peak = max(self.peak, self._alive)
        return out


class _FusedAttention(torch.autograd.Function):
    """The memory of a fused attention kernel, on tensors without values."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> NoReturn:
        raise NotImplementedError("memory can be counted only for the forward pass")


class _FusedAttentionMode(TorchFunctionMode):
    """On `meta` PyTorch has no fused attention and would make the matrix of all pairs."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            # diffusers passes them by name.
            query, key, value = [*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
            if query.is_meta:
                return _FusedAttention.apply(query, key, value)
        return func(*args, **kwargs)


def _storages(*trees: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)}


def peak_inference_bytes(module: nn.Module, function: Callable[..., Any], *args: Any) -> int:
    """Largest sum of intermediate tensors during one call of `function` without gradients.

    Args:
        module: Whose weights and buffers do not count. function, args: What is called; the arguments do not count.
    """
    known = _storages(list(module.parameters()), list(module.buffers()), args)
    with torch.no_grad(), _FusedAttentionMode(), _LiveBytesMode(known) as mode:
        function(*args)
    return mode.peak


def saved_training_bytes(module: nn.Module, function: Callable[..., Any], *args: Any) -> int:
    """Bytes that autograd keeps for the backward pass of one call, each storage once, without weights."""
    weights = _storages(list(module.parameters()), list(module.buffers()))
    saved: dict[int, tuple[torch.Tensor, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # The tensor is kept so that its storage's address is not given to another one.
            saved[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    flags = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(True)
    try:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.enable_grad(), _FusedAttentionMode(), hooks:
            out = function(*args)
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    del out
    return sum(size for _, size in saved.values())
