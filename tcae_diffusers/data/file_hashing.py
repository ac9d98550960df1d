"""sha256 of files of any size in constant memory."""

import hashlib
import os


def sha256_of_file(path: str | os.PathLike) -> str:
    """Hex sha256 of the content of `path`, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
