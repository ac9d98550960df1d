"""The exception for input that a user can correct."""


class InputError(ValueError):
    """Bad input to an evaluation: the message names the file or value, what was expected, and how to mend it.

    The command line prints the message without a traceback and exits with code 2.
    """
