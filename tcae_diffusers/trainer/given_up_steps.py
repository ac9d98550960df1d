"""What a run saved beyond the step from which it is resumed, or started anew in the same folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from accelerate.logging import get_logger

logger = get_logger(__name__)

# Where it is moved to, below the folder that it was in.
GIVEN_UP = "given_up"
_STEP = re.compile(r"step-(\d{8,})")


def set_aside_steps_after(folder: Path, step: int) -> None:
    """
    Move what `folder` holds of later steps, files and folders `step-<n>...`, to its subfolder [`GIVEN_UP`]: it would
    pass for this run's. Nothing is deleted, since it may have taken days.
    """
    numbered = [(path, _STEP.match(path.name)) for path in sorted(folder.glob("step-*"))]
    later = [path for path, match in numbered if match and int(match[1]) > step]
    set_aside(folder, later, f"this run goes on from step {step}")


def set_aside(folder: Path, given_up: Sequence[Path], why: str = "another run left it here") -> None:
    """Move files and folders in `folder` to its subfolder [`GIVEN_UP`]."""
    for path in given_up:
        path.rename(_free(folder / GIVEN_UP, path.name))
    if given_up:
        names = ", ".join(path.name for path in given_up)
        logger.info(f"moved {names} to {folder / GIVEN_UP}: {why}")


def _free(folder: Path, name: str) -> Path:
    """A path for `name` in `folder` that is not taken by what was given up before."""
    folder.mkdir(exist_ok=True)
    path, number = folder / name, 2
    while path.exists():
        path, number = folder / f"{number}-{name}", number + 1
    return path
