"""Small tar shards and PNG images for tests."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def encoded(number: int, form: str = "PNG", size: int = 6) -> bytes:
    """An image whose red channel tells `number`, below 25."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number * 10, 7, 7)).save(
        buffer, form, **({"quality": 100} if form != "PNG" else {})
    )
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 4, rows: int = 5) -> Path:
    """`part-0.tar` and so on; image `n` has the class `n % 3`."""
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        members = {}
        for number in numbers:
            members |= {f"{number:04d}.png": encoded(number), f"{number:04d}.cls": str(number % 3).encode()}
        write_tar(folder / f"part-{shard}.tar", members)
    return folder
