"""Hashes of files and tensors, files that appear completely or not at all, and the files of a folder."""

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def sha256_of_file(path: str | os.PathLike) -> str:
    """Hex sha256 of the content of `path`, which need not fit into memory."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hex sha256 of names, dtypes, shapes and bytes in the order of the names, on any device and of any dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dict(tensors).items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # numpy knows no bfloat16; bytes are bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hex sha256 of JSON-ready content, the same before writing and after reading (tuples equal lists)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def sync(path: str | os.PathLike) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync files but no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """
    Write `path` so that at any moment, also after a power cut, it holds all of `content` or what it held before.
    Missing folders are made.

    Raises:
        OSError: The disk is full or the folder cannot be written. Nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = place_to_write(path)
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def place_to_write(path: Path) -> Path:
    """
    Name for a file or folder beside `path` that is to be renamed to it once it is complete. It is this process's own,
    so that ranks can write the same file at the same time. What killed processes of this machine left is deleted.
    """
    # Here, so that exports with remote code, which read files only, need diffusers alone.
    import psutil

    # Process ids mean nothing on another machine that shares the folder; a hash keeps the name short.
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    start, end = f".{path.name}.{host}-", ".writing"
    with os.scandir(path.parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for leftover in map(Path, left):
        process = leftover.name.removeprefix(start).removesuffix(end)
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}{end}")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8, see [`write_atomically`]; bytes of a file name that are none are written out, as `\\udcff`."""
    write_atomically(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write indented JSON, see [`write_atomically`]; what JSON does not know (a path) becomes text."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def file_names(root: str | os.PathLike) -> list[str]:
    """Paths, relative to `root`, of the files at any depth below it, each folder in the order of its names.

    Links are followed, except one that leads back to a folder it lies in. Hidden files and folders are skipped.
    """
    return list(_files_below(os.fspath(root), "", ()))


def _files_below(folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(folder)
    place = (status.st_dev, status.st_ino)
    if place in ancestors:
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _files_below(entry.path, f"{prefix}{entry.name}/", (*ancestors, place))
        else:
            yield prefix + entry.name
