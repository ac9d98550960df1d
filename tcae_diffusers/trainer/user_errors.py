"""How a training command ends when the user gave it something it cannot use: one line, exit code 2, no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.latent_format import LatentCacheError
from .checkpoint import CheckpointError
from .nonfinite import NonFiniteError

# What bad input raises; anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, LatentCacheError, CheckpointError, NonFiniteError)


@contextmanager
def exit_on_user_error(command: str) -> Iterator[None]:
    """
    Context manager around a command's work: `train_dit: error: <message>` on stderr and `SystemExit(2)` for an error
    in [`USER_ERRORS`]. `TCAE_TRACEBACK=1` lets it through with its traceback.

    Args:
        command (`str`): Name of the command, such as `"train_dit"`.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("TCAE_TRACEBACK"):
            raise
        print(f"{command}: error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Without "[Errno 13]", which says nothing to most people.
        return f"{error.strerror}: {error.filename}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # An error of a data loader's worker carries the worker's traceback, whose last line is the message.
    return lines[-1].strip() if "Original Traceback" in str(error) else " ".join(line.strip() for line in lines)
