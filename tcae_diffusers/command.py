"""
How a command starts: it reads its arguments before it imports what does the work. That takes seconds, for torch and
diffusers, and neither `--help` nor a typo should wait for them.
"""

import logging
import os
from collections.abc import Sequence

from .arguments import ArgumentsType, parse_arguments

# Least of the numbers tried (100, 300, 1000, 3000) that costs nothing where nothing else runs; the measurements are in
# docs/train_your_own.md.
SPIN_COUNT = 1000


def start_command(
    arguments_type: type[ArgumentsType], argv: Sequence[str] | None = None, prog: str | None = None
) -> ArgumentsType:
    """
    [`parse_arguments`], and what has to be set before torch is imported.

    Args:
        arguments_type: Dataclass of options, from a module that imports nothing heavy.
        argv, prog: See [`parse_arguments`].
    """
    arguments = parse_arguments(arguments_type, argv, prog)
    limit_spinning()
    # diffusers imports torchao where it is installed, which warns that its kernels do not fit this torch. Commands do
    # not quantise, so to their users it says nothing.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    return arguments


def limit_spinning() -> None:
    """
    Let threads of torch that wait for each other sleep soon, unless the environment says how they wait.

    By default they spin for milliseconds, and where another program runs, a spinning thread takes the core from the
    one that it waits for. Not to spin at all (`OMP_WAIT_POLICY=PASSIVE`) costs a quarter of the speed where nothing
    else runs. GNU's OpenMP, which torch uses on Linux, reads the variable once, when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
