"""
How a command starts: it reads its arguments before it imports what does the work. That takes seconds, for torch and
diffusers, and neither `--help` nor a typo should wait for them.
"""

from collections.abc import Sequence

from .arguments import ArgumentsType, parse_arguments


def start_command(
    arguments_type: type[ArgumentsType], argv: Sequence[str] | None = None, prog: str | None = None
) -> ArgumentsType:
    """
    [`parse_arguments`], and what has to be set before torch is imported.

    Args:
        arguments_type: Dataclass of options, from a module that imports nothing heavy.
        argv, prog: See [`parse_arguments`].
    """
    return parse_arguments(arguments_type, argv, prog)
