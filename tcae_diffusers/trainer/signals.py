"""SIGTERM and SIGINT as a request to save and stop at the next step boundary."""

import os
import signal
from types import FrameType

import torch
import torch.distributed as dist

from ..data.distributed import is_distributed


class StopSignal:
    """
    Context manager that turns SIGTERM and SIGINT into a flag. A second SIGINT interrupts at once, as usual.

    Every rank must leave its loop at the same step, so [`agreed`] exchanges the flag over a CPU process group: it
    never waits for the accelerator.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._pid = os.getpid()
        self._group = dist.new_group(backend="gloo") if is_distributed() else None

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Data loader workers inherit this handler by fork; a worker must not swallow its own termination.
        if os.getpid() != self._pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    @property
    def reason(self) -> str:
        """What stopped the run, for its log."""
        return "another rank was asked to stop" if self.received is None else self.received.name

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. All ranks must call this at the same place."""
        if self._group is None:
            return self.received is not None
        # A number stands for a group that this rank is no member of.
        assert not isinstance(self._group, int)
        flag = torch.tensor(int(self.received is not None))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)
