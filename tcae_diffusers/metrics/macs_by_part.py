"""Multiply-accumulates of a training step, backward pass included, split by the part of the model that causes them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .mac_counter import FlopCounter


class MacsByPart:
    """
    Context manager that counts what runs inside, by part and direction.

    A part is what runs in a watched module, or within [`part`]; the innermost counts. An operation of a backward pass
    belongs to the part whose forward pass made its node of the graph: autograd numbers its nodes in the order of the
    forward pass, and the numbers at which parts begin are remembered. What is counted, and how, is that of
    [`mac_counter`].

    Args:
        other (`str`, defaults to `"other"`): Part of all that runs elsewhere.

    Attributes:
        forward, backward (`Counter[str]`): Multiply-accumulates by part.
    """

    def __init__(self, other: str = "other"):
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self._active = [other]
        # The part from each number on, in the order of the numbers.
        self._beginnings = [0]
        self._parts = [other]
        self._open = ExitStack()

    def watch(self, module: nn.Module, part: str | Callable[..., str]) -> None:
        """
        Make every call of `module` a part, for good.

        Args:
            part: Its name, or a function that tells it from the positional arguments of the call.
        """

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._enter(part(*args) if callable(part) else part)

        def leave(*_: Any) -> None:
            self._leave()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Make what runs inside a part."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def __enter__(self) -> MacsByPart:
        counter = self._open.enter_context(FlopCounter())
        self._open.enter_context(_Sorter(self, counter))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _enter(self, name: str) -> None:
        self._active.append(name)
        self._begin()

    def _leave(self) -> None:
        self._active.pop()
        self._begin()

    def _begin(self) -> None:
        self._beginnings.append(torch.autograd._get_sequence_nr())
        self._parts.append(self._active[-1])

    def clear(self) -> None:
        """Forget what was counted; what is watched stays so."""
        self.forward.clear()
        self.backward.clear()

    def add(self, macs: int) -> None:
        """Count what ran just now."""
        # None outside of a backward pass, which the stubs of torch do not say.
        node: Any = torch._C._current_autograd_node()
        if node is None:
            self.forward[self._active[-1]] += macs
        else:
            self.backward[self._parts[bisect_right(self._beginnings, node._sequence_nr()) - 1]] += macs


class _Sorter(TorchDispatchMode):
    """Asks a counter after every operation how much it was."""

    def __init__(self, macs: MacsByPart, counter: FlopCounter):
        super().__init__()
        self.macs, self.counter = macs, counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if flops := self.counter.get_total_flops() - before:
            self.macs.add(flops // 2)
        return result
