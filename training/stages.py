"""Commands of this package that follow one another; what is done already is not run again."""

from __future__ import annotations

import json
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """
    One command.

    Args:
        title (`str`): What is shown before it runs.
        module (`str`): Module below `tcae_diffusers`, run with `python -m`.
        arguments (`list[str]`): Its command line.
        result (`Path`): What it leaves behind; a command that was interrupted may exit with 0 without it.
    """

    title: str
    module: str
    arguments: list[str]
    result: Path

    @property
    def command(self) -> list[str]:
        return ["python", "-m", f"tcae_diffusers.{self.module}", *self.arguments]


def run_stage(stage: Stage) -> int:
    """Run the command; on Ctrl-C or SIGTERM wait while it saves its work, and return what it returned."""
    process = subprocess.Popen([sys.executable, *stage.command[1:]])
    # Unlike Ctrl-C in a terminal, this signal has not been sent to the command.
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_stages(
    stages: Sequence[Stage], folder: Path, again: str, run: Callable[[Stage], int] = run_stage
) -> dict[str, float]:
    """
    Run what is not done, in order.

    Args:
        folder (`Path`): Where it is noted what is done; what another command made, or what stood before an earlier
            stage ran again, is not a stage's result.
        again (`str`): What the user runs to go on.
        run (`Callable`): Runs one stage.

    Returns:
        `dict[str, float]`: CPU seconds of each stage by its title, imports and earlier, interrupted attempts included.

    Raises:
        SystemExit: A command failed or was interrupted.
    """
    started, anew, seconds = time.monotonic(), False, {}
    folder.mkdir(parents=True, exist_ok=True)
    notes = [folder / f"{number}" for number in range(1, len(stages) + 1)]
    noted = [json.loads(note.read_text()) if note.exists() else {} for note in notes]
    commands = [shlex.join(stage.command) for stage in stages]
    # Of all stages: the one that fails writes its note anew, and would be silent about it the next time.
    of_others = any(
        earlier and earlier.get("command") != command for earlier, command in zip(noted, commands, strict=True)
    )
    for number, (stage, command, note, earlier) in enumerate(
        zip(stages, commands, notes, noted, strict=True), start=1
    ):
        head = f"[{number}/{len(stages)}] {stage.title}"
        known = earlier.get("command") == command and not anew
        seconds[stage.title] = earlier["cpu_s"] if known else 0.0
        if known and earlier["complete"] and stage.result.exists():
            say(f"{head}: already done ({stage.result})")
            continue
        anew = True
        say(f"{head}\n      {command}")
        before = _seconds_of_children()
        code = run(stage)
        seconds[stage.title] += _seconds_of_children() - before
        complete = code == 0 and stage.result.exists()
        note.write_text(json.dumps({"command": command, "complete": complete, "cpu_s": seconds[stage.title]}))
        if not complete:
            way_on = f"run {again} again to resume"
            if code > 0 and of_others:
                way_on = f"results of other commands are in {folder.parent}; if they are in the way, remove it"
            say(f"stopped in step {number} after {minutes_since(started)}; {way_on}")
            sys.exit(code if code > 0 else 130)
    return seconds


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def minutes_since(started: float) -> str:
    return f"{(time.monotonic() - started) / 60:.1f} minutes"


def say(text: str) -> None:
    # This is a command: what it prints is its result.
    print(text, flush=True)
