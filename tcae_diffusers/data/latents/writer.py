"""Write latents of a data set to shards that survive interruption, on any number of ranks.

    writer = LatentShardWriter("cache", num_samples=len(source), latent_shape=(32, 4, 4), ...)
    for shard in writer.pending_shards(rank, world_size):
        with writer.open_shard(shard) as out:
            for indices in batches(range(shard.start, shard.stop)):
                out.add(indices, {"latents": raw, "latents_flip": raw_of_flipped_images}, labels)
    writer.flush()          # each rank, then a barrier
    manifest = writer.finalize()  # one rank

The reader is [`LatentCache`].
"""

import errno
import functools
import hashlib
import json
import math
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging
from safetensors.torch import save

from ...models.fingerprint import TokenizerFingerprint
from ..images.decoding import DECODING_VERSION
from .cache import LatentCache
from .channel_statistics import ChannelStatistics
from .format import (
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    JOB,
    MANIFEST,
    PLAIN_VIEW,
    LatentCacheError,
    ShapeBucket,
    explain_write_error,
    shard_file,
    shard_ranges,
    write_cache_file,
)
from .open_shard import LatentShard, OpenShard, is_finite

__all__ = ["LatentCache", "LatentShard", "LatentShardWriter"]

logger = logging.get_logger(__name__)


class LatentShardWriter:
    """Writes the shards and the manifest of a latent cache.

    Every rank makes a writer with the same arguments. Shards are index ranges of the data set and do not depend on
    the number of ranks or the batch size, so a cache can be resumed with other ones, and is the same file for file.
    A finished shard is written by a background thread while the next one is encoded.

    Args:
        path (`str` or `os.PathLike`): The cache folder; made when it does not exist.
        num_samples (`int`): Images in the data set, times the resolutions of each.
        latent_shape (`tuple[int, int, int]`): `(C, h, w)`.
        tokenizer ([`TokenizerFingerprint`]): Of the model that encodes.
        id2label (`dict[int, str]`): Class names by label, 0 to K - 1.
        data_fingerprint (`str`): The image source's.
        transform (`dict`): What was done to the images before encoding, JSON-ready.
        dtype (`str`, defaults to `"float32"`): `"float32"`, `"float16"` or `"bfloat16"`. The error of rounding to it
            is measured and written into the manifest.
        views (`tuple[str, ...]`, defaults to `("latents",)`): One latent per image and view, the first the plain
            image's; `"latents_flip"` is the latent of the mirrored image; further names for augmented passes.
        shard_size (`int`, defaults to 4096): Images per shard.
        tokens (`dict`, *optional*): Keep tokens of the images too, a map of them for each view: their `shape` `(D, h,
            w)` and `dtype`, and whatever tells where they come from, JSON-ready.
        buckets (`list[ShapeBucket]`, *optional*): Shapes of the samples, in their order, where they differ from
            `latent_shape` and that of `tokens`, which are then those of a square image.
        image_of (`np.ndarray`, *optional*): With `buckets`, the image of each sample, int64 `(num_samples,)`.

    Raises:
        LatentCacheError: The folder holds a cache of another job (the message says what differs).
        OSError: The folder cannot be written, or the disk has no room for what is still to be written.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        num_samples: int,
        latent_shape: tuple[int, int, int],
        tokenizer: TokenizerFingerprint,
        id2label: dict[int, str],
        data_fingerprint: str,
        transform: dict,
        dtype: str = "float32",
        views: tuple[str, ...] = (PLAIN_VIEW,),
        shard_size: int = 4096,
        tokens: dict | None = None,
        buckets: list[ShapeBucket] | None = None,
        image_of: np.ndarray | None = None,
    ):
        if num_samples < 1 or shard_size < 1:
            raise ValueError(f"num_samples {num_samples} and shard_size {shard_size} must be at least 1")
        if dtype not in DTYPES:
            raise ValueError(f"latent dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
        if not views or views[0] != PLAIN_VIEW or len(set(views)) != len(views) or {"labels", "index"} & set(views):
            raise ValueError(f"views {views} must be distinct names, and the first must be {PLAIN_VIEW!r}")
        if sorted(id2label) != list(range(len(id2label))) or not id2label:
            raise ValueError(f"id2label has the labels {sorted(id2label)}, expected 0 to K - 1 without a gap")
        if len(latent_shape) != 3 or min(latent_shape) < 1:
            raise ValueError(f"latent_shape {tuple(latent_shape)} is not (channels, height, width)")
        if buckets is not None and (image_of is None or sum(each.count for each in buckets) != num_samples):
            raise ValueError(f"buckets {buckets} do not have {num_samples} samples, or image_of is missing")
        self.path = Path(path)
        self.job = json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    "version": FORMAT_VERSION,
                    "tokenizer": tokenizer.to_dict(),
                    "transform": transform,
                    "decoding": DECODING_VERSION,
                    "data_fingerprint": data_fingerprint,
                    "num_samples": num_samples,
                    "latent_shape": list(latent_shape),
                    "dtype": dtype,
                    "views": list(views),
                    "shard_size": shard_size,
                    "id2label": {str(label): name for label, name in sorted(id2label.items())},
                    **({} if tokens is None else {"tokens": tokens}),
                    **({} if buckets is None else {"buckets": [_without_none(asdict(each)) for each in buckets]}),
                }
            )
        )
        self._image_of = image_of
        buckets = ShapeBucket.all_of(self.job)
        self.shards = [
            LatentShard(number, start, stop, buckets[bucket])
            for number, (start, stop, bucket) in enumerate(shard_ranges([each.count for each in buckets], shard_size))
        ]
        # Made on first use: one thread, so that at most one shard waits in memory beside the one being filled.
        self._pool: ThreadPoolExecutor | None = None
        self._pending_write: Future | None = None
        self._claim_folder()

    def _claim_folder(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write_error(error, self.path, 0) from error
        for name in (MANIFEST, JOB):
            if (self.path / name).exists():
                # Caches do not say how their images were decoded that are older than its third version.
                found = {"decoding": 3, **_read_job(self.path / name)}
                keys = {**self.job, "tokens": None, "buckets": None}
                different = [key for key in keys if found.get(key) != self.job.get(key)]
                if different:
                    raise LatentCacheError(
                        f"{self.path} holds latents of another job (different: {', '.join(different)}); delete the "
                        "folder or choose another"
                    )
                break
        else:
            write_cache_file(self.path / JOB, json.dumps(self.job, indent=1).encode())
        self._check_free_space()

    def _check_free_space(self) -> None:
        needed = sum(
            (shard.stop - shard.start) * (shard.bucket.bytes_per_sample(self.job) + 16)
            for shard in self.shards
            if not self.is_complete(shard)
        )
        if needed > (free := shutil.disk_usage(self.path).free):
            raise OSError(
                errno.ENOSPC,
                f"cannot write the latent cache: {needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB free; "
                "free some space or choose another folder",
                str(self.path),
            )

    @property
    def is_finalized(self) -> bool:
        """Whether the manifest is written, so that nothing is left to do."""
        return (self.path / MANIFEST).exists()

    def is_complete(self, shard: LatentShard) -> bool:
        """Whether `shard` was written to the end, in this run or an earlier one."""
        try:
            return (self.path / shard_file(shard.number)).stat().st_size == self._record_of(shard)["bytes"]
        except FileNotFoundError:
            return False

    def _record_of(self, shard: LatentShard) -> dict:
        if self.is_finalized:
            return self._final_records[shard.number]
        return json.loads(self._record_path(shard).read_text())

    @functools.cached_property
    def _final_records(self) -> list[dict]:
        # Read once: with thousands of shards the manifest takes a while, and what it says of them stays.
        return json.loads((self.path / MANIFEST).read_text())["shards"]

    def _record_path(self, shard: LatentShard) -> Path:
        return self.path / Path(shard_file(shard.number)).with_suffix(".json")

    def pending_shards(self, rank: int = 0, world_size: int = 1) -> list[LatentShard]:
        """The shards that `rank` still has to write: a contiguous share of the unfinished ones."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not within [0, world_size={world_size})")
        # Shares are of all shards, not of the unfinished: ranks that look at different moments must not overlap.
        first, last = (len(self.shards) * r // world_size for r in (rank, rank + 1))
        return [shard for shard in self.shards[first:last] if not self.is_complete(shard)]

    def open_shard(self, shard: LatentShard) -> OpenShard:
        """Context manager that collects the latents of `shard` and hands them to be written when it ends cleanly."""
        return OpenShard(shard, self.job, self._submit)

    def flush(self) -> None:
        """Wait until all shards are on disk; raises what went wrong in the background."""
        if self._pending_write is not None:
            pending, self._pending_write = self._pending_write, None
            pending.result()

    def _submit(self, shard: LatentShard, values: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        self.flush()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="latent-shard")
        self._pending_write = self._pool.submit(self._write, shard, values, labels)

    def _write(self, shard: LatentShard, values: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        dtype = DTYPES[self.job["dtype"]]
        latents = {view: values[view] for view in self.job["views"]}
        tensors = {**values, "labels": labels, "index": torch.arange(shard.start, shard.stop)}
        if "buckets" in self.job and self._image_of is not None:
            tensors["image"] = torch.from_numpy(self._image_of[shard.start : shard.stop].astype(np.int64))
        statistics = functools.reduce(ChannelStatistics.merge, map(ChannelStatistics.of, latents.values()))
        largest, squared = 0.0, 0.0
        for view, exact in latents.items():
            tensors[view] = exact.to(dtype)
            if not is_finite(tensors[view]):
                raise ValueError(
                    f"latents of images {shard.start} to {shard.stop - 1} reach {exact.abs().max():g}, beyond the "
                    f"range of {self.job['dtype']}; cache them as bfloat16 or float32"
                )
            if dtype is not torch.float32:
                view_largest, view_squared = rounding_error(exact, tensors[view])
                largest, squared = max(largest, view_largest), squared + view_squared
        content = save(tensors)
        record = {
            "file": shard_file(shard.number),
            "start": shard.start,
            "stop": shard.stop,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "statistics": statistics.to_dict(),
            "rounding": {"max_abs": largest, "sum_squared": squared},
        }
        # The record comes after its shard, and counts only if the sizes agree: a kill in between costs one shard.
        write_cache_file(self.path / shard_file(shard.number), content)
        write_cache_file(self._record_path(shard), json.dumps(record).encode())

    def finalize(self) -> dict:
        """Write the manifest. Called by one rank, after all have flushed.

        Returns:
            `dict`: The manifest, as [`LatentCache`] reads it.

        Raises:
            LatentCacheError: A shard is missing (the message names it).
        """
        self.flush()
        if not self.is_finalized:
            manifest = self._merge_records()
            write_cache_file(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        # What a killed run left behind goes too, now that no rank writes any more.
        for leftover in (self.path / JOB, *map(self._record_path, self.shards), *self.path.glob(".*.writing")):
            leftover.unlink(missing_ok=True)
        return json.loads((self.path / MANIFEST).read_text())

    def _merge_records(self) -> dict:
        missing = [shard for shard in self.shards if not self.is_complete(shard)]
        if missing:
            raise LatentCacheError(
                f"{len(missing)} of {len(self.shards)} shards of {self.path} are missing, the first of them "
                f"{shard_file(missing[0].number)}; run the same command again to finish"
            )
        records = [self._record_of(shard) for shard in self.shards]
        covered = np.concatenate([np.arange(record["start"], record["stop"]) for record in records])
        if not np.array_equal(covered, np.arange(self.job["num_samples"])):
            raise LatentCacheError(f"the shards of {self.path} do not cover every image exactly once")
        statistics = ChannelStatistics.from_dict(records[0].pop("statistics"))
        for record in records[1:]:
            statistics = statistics.merge(ChannelStatistics.from_dict(record.pop("statistics")))
        rounding = [record.pop("rounding") for record in records]
        values = statistics.count * len(statistics.mean)
        return {
            **self.job,
            "statistics": {
                "count": statistics.count,
                "mean": statistics.mean.tolist(),
                "std": statistics.std.tolist(),
            },
            "rounding_error": {
                "max_abs": max(part["max_abs"] for part in rounding),
                "rms": math.sqrt(math.fsum(part["sum_squared"] for part in rounding) / values),
            },
            "shards": records,
        }


def _without_none(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def _read_job(file: Path) -> dict:
    """What an earlier run says that it caches, or cached."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise LatentCacheError(f"{file} is damaged ({error}); choose another folder, or delete this one") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        # It is not ours to say that the folder may be deleted.
        raise LatentCacheError(f"{file} is not that of a latent cache; choose another folder")
    return found


def rounding_error(values: torch.Tensor, rounded: torch.Tensor) -> tuple[float, float]:
    """Largest absolute and summed squared difference of two tensors `(N, ...)`, in float64."""
    largest, squared = 0.0, 0.0
    for exact, stored in zip(values.split(64), rounded.split(64), strict=True):
        difference = (stored.float() - exact).double().flatten()
        largest = max(largest, float(difference.abs().max()))
        squared += float(difference.dot(difference))
    return largest, squared
