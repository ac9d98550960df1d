"""Networks that only look: in evaluation mode for good, without gradients to their own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_WITHOUT_WEIGHTS = ContextVar("without_pretrained_weights", default=False)


@contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """
    Within it, frozen networks are built as they are shaped, with random weights or, under `torch.device("meta")`, with
    none: to count what they cost on a machine that lacks the weights. Whatever they return means nothing.
    """
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


def loads_pretrained_weights() -> bool:
    """Whether a frozen network is to load its weights: everywhere but within [`without_pretrained_weights`]."""
    return not _WITHOUT_WEIGHTS.get()


class FrozenNetwork(nn.Module):
    """
    A network in evaluation mode for good, whose weights take no gradient.

    Attributes:
        name (`str`): by which reports tell it from others.
    """

    name: str

    def freeze(self) -> None:
        """Call it once the network is complete."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenNetwork:
        # A parent's `.train()` would switch dropout and batch statistics on and change what is measured.
        return super().train(False)


class FrozenNetworkHolder(nn.Module):
    """
    A module that uses a frozen network and moves it along, but has none of its weights among its own parameters or in
    its state: these are loaded from a file, and a checkpoint need not hold them again.

    Args:
        network (`nn.Module`, *optional*): Found as `frozen_network`.
    """

    def __init__(self, network: Any = None):
        super().__init__()
        # In a list, where torch does not look for modules.
        self._frozen_network = [network]

    @property
    def frozen_network(self) -> Any:
        return self._frozen_network[0]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FrozenNetworkHolder:
        super()._apply(fn, recurse)
        if self.frozen_network is not None:
            self.frozen_network._apply(fn)
        return self
