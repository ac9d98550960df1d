"""The files of a latent cache, and what writer and reader agree on.

```
cache/
  latents-00000.safetensors   images [0, shard_size): latents, latents_flip, ..., labels, index; with tokens, for
                              each view too: tokens, tokens_flip, ...
  latents-00001.safetensors   images [shard_size, 2 * shard_size)
  manifest.json               written last; without it there is no cache
```

While a cache is being made there are also `job.json` (what is being cached, so that a resume cannot mix two jobs) and
one `latents-00000.json` per finished shard (size, sha256, statistics). The manifest takes over their content.

A cache of images of several sizes has `buckets`: samples of one size stand together, and no shard crosses from one to
the next. `latent_shape` is then that of a square image of the cache's resolution, and shards hold `image` too, the
number of each sample's image, of which there are as many samples as resolutions.

Latents are stored **raw**: as they leave the encoder, before per-channel normalisation. The statistics are computed
from these latents, so they can only be known afterwards; raw latents stay valid whatever they are.
"""

import errno
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...files import write_atomically

FORMAT = "tcae-latent-cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
JOB = "job.json"
PLAIN_VIEW = "latents"

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Spelling of the safetensors header.
HEADER_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class LatentCacheError(RuntimeError):
    """A latent cache is incomplete, damaged, or not the one that is needed."""


def token_view(view: str) -> str:
    """Name of the tokens of a view's image, which stand beside its latent: `tokens_flip` for `latents_flip`."""
    return "tokens" + view.removeprefix(PLAIN_VIEW)


@dataclass(frozen=True)
class ShapeBucket:
    """
    Samples of a cache that have one shape.

    Args:
        count (`int`): How many.
        image_size (`tuple[int, int]`): Height and width of their images in pixels.
        latent_shape (`tuple[int, int, int]`): `(C, h, w)`.
        token_shape (`tuple[int, int, int]`, *optional*): `(D, h', w')`, where there are tokens.
    """

    count: int
    image_size: tuple[int, int]
    latent_shape: tuple[int, int, int]
    token_shape: tuple[int, int, int] | None = None

    @classmethod
    def all_of(cls, job: dict) -> "list[ShapeBucket]":
        """Those of a cache, in the order of its samples; a single one, of unknown image size, without `buckets`."""
        if "buckets" in job:
            return [
                cls(
                    bucket["count"],
                    tuple(bucket["image_size"]),
                    tuple(bucket["latent_shape"]),
                    tuple(bucket["token_shape"]) if "token_shape" in bucket else None,
                )
                for bucket in job["buckets"]
            ]
        tokens = job.get("tokens")
        token_shape = tokens and tuple(tokens["shape"])
        return [cls(job["num_samples"], (0, 0), tuple(job["latent_shape"]), token_shape)]

    def stored_values(self, job: dict) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one sample's and dtype of every floating-point tensor in a shard, by its name."""
        stored: dict[str, tuple[tuple[int, ...], str]] = dict.fromkeys(job["views"], (self.latent_shape, job["dtype"]))
        if self.token_shape is not None:
            stored |= dict.fromkeys(map(token_view, job["views"]), (self.token_shape, job["tokens"]["dtype"]))
        return stored

    def bytes_per_sample(self, job: dict) -> int:
        """Of latents and tokens of all views."""
        return sum(math.prod(shape) * DTYPES[dtype].itemsize for shape, dtype in self.stored_values(job).values())


def shard_file(number: int) -> str:
    return f"latents-{number:05d}.safetensors"


def shard_ranges(counts: Sequence[int], shard_size: int) -> list[tuple[int, int, int]]:
    """
    `(start, stop, bucket)` of each shard, where buckets have `counts` samples: they depend on the data set alone,
    never on the number of ranks.
    """
    ranges, first = [], 0
    for bucket, count in enumerate(counts):
        end = first + count
        ranges += [(start, min(start + shard_size, end), bucket) for start in range(first, end, shard_size)]
        first = end
    return ranges


def read_header(path: Path) -> tuple[dict, int]:
    """The safetensors header of `path` as a dictionary, and the file position where tensor data begins.

    Raises:
        LatentCacheError: The file does not begin with a safetensors header.
    """
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= 100_000_000:
            raise LatentCacheError(f"{path} is not a safetensors file (header of {length} bytes)")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise LatentCacheError(f"{path} has a damaged safetensors header: {error}") from error
    return header, 8 + length


def read_int64(path: Path, name: str, header: dict, data_start: int) -> torch.Tensor:
    """Read one int64 tensor `(N,)` of a shard into memory, leaving the latents untouched."""
    begin, end = header[name]["data_offsets"]
    with open(path, "rb") as stream:
        stream.seek(data_start + begin)
        return torch.frombuffer(bytearray(stream.read(end - begin)), dtype=torch.int64)


def write_cache_file(path: Path, content: bytes) -> None:
    """
    [`~tcae_diffusers.files.write_atomically`], with errors in words about the cache.

    Raises:
        OSError: The disk is full or the folder cannot be written; the message says which. Nothing is left behind.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise explain_write_error(error, path, len(content)) from error


def explain_write_error(error: OSError, path: Path, size: int) -> OSError:
    """`error` with a message about the cache; finished shards are kept, so the same command resumes."""
    hints = {
        errno.ENOSPC: f"the disk is full and {size / 2**20:.1f} MiB are needed; free some space and run again",
        errno.EDQUOT: f"the disk quota is exceeded and {size / 2**20:.1f} MiB are needed; free some space and run "
        "again",
    }
    hint = hints.get(error.errno or 0, f"{error.strerror}; choose a writable folder")
    return OSError(error.errno, f"cannot write the latent cache: {hint}", str(path))
