"""
How a command starts: it reads its arguments before it imports what does the work. That takes seconds, for torch and
diffusers, and neither `--help` nor a typo should wait for them.
"""

import ctypes
import logging
import os
from collections.abc import Sequence

from .arguments import ArgumentsType, parse_arguments

# Least of the numbers tried (100, 300, 1000, 3000) that costs nothing where nothing else runs; the measurements are in
# docs/train_your_own.md.
SPIN_COUNT = 1000

# Of glibc's malloc.h: memory at the end of the heap beyond which it is given back, and how many blocks are mapped.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


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
    keep_freed_memory()
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


def keep_freed_memory() -> None:
    """
    Let glibc keep the memory that tensors have left for the next ones, unless the environment sets its allocator.

    By default it gives large blocks back to the kernel, which clears every page of the next one again. The features of
    large batches then take five times as long (docs/train_your_own.md). The process keeps the most memory that it ever
    needed. Other C libraries have no such setting and are left as they are.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have no mallopt, Windows no library of the process
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
