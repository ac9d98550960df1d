"""
Several commands at the same time, in processes of one thread each; as soon as one ends the next begins.

That uses two cores better than two threads, of which one waits for the other after every small product, and better
than taking turns, where one core is idle.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.trainer.signals import StopSignal


@dataclass(frozen=True)
class Job:
    """
    Args:
        name (`str`): What messages call it.
        command (`list[str]`): Program and arguments.
        log (`Path`): File for its output, in a folder that exists.
        result (`Path`): What it leaves behind.
    """

    name: str
    command: list[str]
    log: Path
    result: Path


def run_side_by_side(jobs: Sequence[Job], processes: int, done: Callable[[Job], None]) -> None:
    """
    Run jobs, `processes` at a time, in order.

    Args:
        done: Called with each that has ended well.

    Raises:
        InputError: A job failed; the message has the last error of its log, or else its last line.
        SystemExit: The user asked to stop; what runs has been asked to stop too, and has ended.
    """
    waiting = list(jobs)
    running: dict[subprocess.Popen[bytes], Job] = {}
    with StopSignal() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    job = waiting.pop(0)
                    running[_start(job)] = job
                time.sleep(0.2)
                if stop.received:
                    raise SystemExit(f"{stop.reason}: {len(waiting) + len(running)} left; run the same command again")
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    _require_success(job, process.returncode)
                    done(job)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(job.log, "wb") as log:
        # In a session of its own, because Ctrl-C in a terminal would reach it twice: from there, and from here.
        return subprocess.Popen(
            job.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _require_success(job: Job, returncode: int) -> None:
    if returncode or not job.result.exists():
        lines = job.log.read_text(errors="replace").strip().splitlines() or ["no output"]
        reason = next((line for line in reversed(lines) if "rror:" in line), lines[-1])
        raise InputError(f"{job.name} ended with code {returncode}, see {job.log}: {reason}")
