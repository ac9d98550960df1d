"""How a training command ends when the user gave it something it cannot use: one line, exit code 2, no traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..arguments import exit_with_error
from ..data.images.training_dataset import TooManyBrokenImagesError
from ..data.latents.format import LatentCacheError
from ..errors import InputError
from .checkpoint import CheckpointError
from .nonfinite import NonFiniteError

# What a run may meet at any step through no defect of ours: data, disk, divergence.
RUN_ERRORS = (InputError, OSError, LatentCacheError, CheckpointError, NonFiniteError, TooManyBrokenImagesError)
# What bad input raises besides at the start; anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, ImportError, *RUN_ERRORS)


@contextmanager
def exit_on_user_error(errors: tuple[type[Exception], ...] = USER_ERRORS, prog: str | None = None) -> Iterator[None]:
    """
    Context manager around a command's work: `<program>: error: <message>` on stderr and `SystemExit(2)` for an error
    in `errors`. `TCAE_TRACEBACK=1` lets it through with its traceback.

    Args:
        errors (`tuple`, defaults to `USER_ERRORS`): [`RUN_ERRORS`] for the loop, where a plain ValueError is a defect.
        prog (`str`, *optional*): The command as the user typed it; [`~arguments.program_name`] if unset.
    """
    try:
        yield
    except errors as error:
        if os.environ.get("TCAE_TRACEBACK"):
            raise
        exit_with_error(error_message(error), prog)


def error_message(error: Exception) -> str:
    """What an error says to a user, in one paragraph."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Without "[Errno 13]", which says nothing to most people.
        return f"{error.strerror}: {error.filename}"
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:
        # From a data loader's worker, with the worker's traceback, whose last line is `Type: message`.
        return text.splitlines()[-1].partition(": ")[2]
    return text
