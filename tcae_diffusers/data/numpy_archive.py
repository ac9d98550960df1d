"""NumPy archives (`.npz`) that others wrote."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import InputError


@contextmanager
def open_npz(path: str | os.PathLike, what: str) -> Iterator[Any]:
    """
    What `numpy.load` gives of an archive, without objects.

    Args:
        path (`str` or `os.PathLike`): The file.
        what (`str`): What error messages call it, such as `"image archive"`.

    Raises:
        InputError: There is no such file, or it is damaged or no archive; also if that shows only while it is read.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"cannot read {what} {path}: it is not an .npz archive")
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {what} {path}: {error}") from error
