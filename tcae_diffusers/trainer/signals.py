"""SIGTERM and SIGINT as a request to save and stop at the next step boundary."""

import os
import signal
from types import FrameType

import torch
import torch.distributed as dist


class StopSignal:
    """
    Context manager that turns SIGTERM and SIGINT into a flag. A second SIGINT interrupts at once, as usual.

    Every rank must leave its loop at the same step, so [`agreed`] exchanges the flag over a CPU process group: it
    never waits for the accelerator.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, object] = {}
        self._group = dist.new_group(backend="gloo") if _world_size() > 1 else None

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
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
        flag = torch.tensor(int(self.received is not None))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
