"""Progress bar, log line and tracker entries of a training loop."""

import resource
import sys
import time

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from tqdm.auto import tqdm

logger = get_logger(__name__)

# Least time between two lines in a log file.
LOG_SECONDS = 20.0


class TrainingProgress:
    """
    Collects metrics without waiting for the device and writes them every `log_steps` steps: averages over the interval
    and over all ranks, images/s, the share of time spent waiting for data, memory, and the time left.

    Args:
        accelerator (`Accelerator`): Of the run.
        description (`str`): Shown before the bar.
        total_steps (`int`): Optimizer steps of the whole run.
        first_step (`int`): Steps done before this process started.
        total_batch_size (`int`): Images per optimizer step over all ranks.
        log_steps (`int`): Steps between two entries.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        description: str,
        total_steps: int,
        first_step: int,
        total_batch_size: int,
        log_steps: int,
    ):
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.total_batch_size = total_batch_size
        self.log_steps = log_steps
        self._on_terminal = sys.stderr.isatty()
        self._said = time.perf_counter()
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc=description,
            unit="step",
            disable=not (accelerator.is_local_main_process and self._on_terminal),
            dynamic_ncols=True,
        )
        self._start_interval()

    def _start_interval(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._waiting = 0.0
        self._started = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Account for time spent waiting for data."""
        self._waiting += seconds

    def pause(self, seconds: float) -> None:
        """Keep time spent on evaluation or saving out of the rates."""
        self._started += seconds

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        """Add the values of one forward pass, tensors of shape `()`, to the running averages."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def step(self, step: int, values: dict[str, float]) -> dict[str, float] | None:
        """
        Call once per optimizer step.

        Args:
            step (`int`): Steps done.
            values (`dict[str, float]`): Host-side values of this step, such as the learning rate.

        Returns:
            `dict[str, float]` or `None`: what was logged, if this was a logging step.
        """
        self._steps += 1
        self.bar.update(1)
        if step % self.log_steps and step != self.total_steps:
            return None
        averages = self._averages()
        elapsed = time.perf_counter() - self._started
        rate = self._steps * self.total_batch_size / elapsed
        logged = {
            **averages,
            **values,
            "train/images_per_second": rate,
            "train/data_wait_share": self._waiting / elapsed,
            "train/memory_gib": _peak_memory_gib(self.accelerator.device),
        }
        self.accelerator.log(logged, step=step)
        line = ", ".join(
            [f"{name.split('/')[-1]} {value:.4g}" for name, value in averages.items() if name.startswith("train/")]
            + [f"{rate:.0f} img/s", f"data {logged['train/data_wait_share']:.0%}"]
            + [f"{logged['train/memory_gib']:.1f} GiB"]
        )
        self.bar.set_postfix_str(line, refresh=False)
        if not self._on_terminal and time.perf_counter() - self._said > LOG_SECONDS:
            # Where there is no terminal there is no bar: a line of the log says the same.
            remaining = (self.total_steps - step) * elapsed / self._steps
            logger.info(f"step {step}/{self.total_steps}, {line}, {tqdm.format_interval(remaining)} left")
            self._said = time.perf_counter()
        self._start_interval()
        return logged

    def _averages(self) -> dict[str, float]:
        if not self._sums:
            return {}
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] / self._counts[name] for name in names])
        values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(names, values.tolist(), strict=True))

    def close(self) -> None:
        self.bar.close()


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
