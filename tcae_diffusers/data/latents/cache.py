"""Read a latent cache: memory-mapped, verified, in any order, without per-sample Python objects."""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ...files import sha256_of_file
from ...models.fingerprint import TokenizerFingerprint
from ..sample_randomness import choose_per_sample
from .format import (
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    HEADER_DTYPES,
    JOB,
    MANIFEST,
    PLAIN_VIEW,
    LatentCacheError,
    ShapeBucket,
    read_header,
    read_int64,
    shard_ranges,
    token_view,
)
from .mapped_shard import MappedShard

Batch = TypeVar("Batch")

# Each keeps a file open, of 1,024 that a process commonly may; 512 of the default size hold two million images.
MAX_MAPPED_SHARDS = 512


class LatentCache(torch.utils.data.Dataset):
    """Latents and labels of a data set, keyed by `(epoch, index)` as [`StepIndexedBatchSampler`] yields them.

    Opening checks the manifest, the size and header of every shard, the exact index set and the range of labels, and
    maps the latents without reading them. Of several views (flips, augmented passes), each sample of each epoch gets
    the one that (seed, epoch, index) chooses.

    Shards hold raw latents. With `expected_tokenizer`, what is read equals what that tokenizer's `encode` returns:
    raw for one that was not calibrated, else `(raw - latent_mean) / latent_std`, the operations of `encode` in its
    order, so that float32 latents are equal bit for bit. Without it latents are raw until [`normalize_with`].

    Of a cache of several shapes, `latent_shape` and `token_shape` are those of a square image of its resolution, and a
    sample is an image at one of its sizes: a batch must be of one bucket of `bucket_of`.

    Args:
        path (`str` or `os.PathLike`): The cache folder.
        expected_tokenizer (`torch.nn.Module` or [`TokenizerFingerprint`], *optional*): Refuse latents of another one.
        verify (`str`, defaults to `"size"`): `"sha256"` also reads and hashes every shard, about 1 GB/s.
        seed (`int`, defaults to 0): Of the choice of views.
        use_views (`bool`, defaults to `True`): Whether to choose among all views or read the plain ones only.
        with_tokens (`bool`, defaults to `False`): Whether batches hold `tokens` too.

    Raises:
        FileNotFoundError: There is no such folder.
        LatentCacheError: The cache is incomplete; a shard is missing, truncated, modified or a copy of another; the
            dtype, shape, labels or indices are not those of the manifest; the latents are another tokenizer's; the
            tokenizer was calibrated with other statistics; or there are no tokens and they are asked for. The message
            names the file and the remedy.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        expected_tokenizer: torch.nn.Module | TokenizerFingerprint | None = None,
        verify: str = "size",
        seed: int = 0,
        use_views: bool = True,
        with_tokens: bool = False,
    ):
        if verify not in ("size", "sha256"):
            raise ValueError(f"verify {verify!r} is unknown; expected 'size' or 'sha256'")
        self.path = Path(path)
        self.seed = seed
        self.manifest = _read_manifest(self.path)
        self.latent_shape: tuple[int, int, int] = tuple(self.manifest["latent_shape"])
        self.buckets = ShapeBucket.all_of(self.manifest)
        tokens = self.manifest.get("tokens")
        self.token_shape: tuple[int, int, int] | None = tokens and tuple(tokens["shape"])
        self.with_tokens = with_tokens
        if with_tokens:
            self._require_tokens()
        self.id2label: dict[int, str] = {int(key): name for key, name in self.manifest["id2label"].items()}
        self.views: tuple[str, ...] = tuple(self.manifest["views"])[: None if use_views else 1]
        self.tokenizer = TokenizerFingerprint.from_dict(self.manifest["tokenizer"])
        statistics = self.manifest["statistics"]
        self.latent_mean = torch.tensor(statistics["mean"], dtype=torch.float64).float()
        self.latent_std = torch.tensor(statistics["std"], dtype=torch.float64).float()
        self._shift: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None

        shards, counts = self.manifest["shards"], [bucket.count for bucket in self.buckets]
        self.bucket_of = np.repeat(np.arange(len(counts)), counts)
        expected = shard_ranges(counts, self.manifest["shard_size"])
        found = [(shard["start"], shard["stop"]) for shard in shards]
        if found != [bounds[:2] for bounds in expected] or sum(counts) != self.manifest["num_samples"]:
            raise LatentCacheError(
                f"the shards that {self.path / MANIFEST} lists do not cover every image exactly once"
            )
        self._starts = np.array([start for start, _ in found])
        self.labels: torch.Tensor = torch.cat([self._check_shard(shard) for shard in shards])
        # The image of each sample.
        self.images = torch.arange(len(self.labels))
        if "buckets" in self.manifest:
            self.images = torch.cat([self._read_integers(shard, "image") for shard in shards])
            self._check_images(len(self.manifest["transform"]["resolution"]))
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        if verify == "sha256":
            self.verify_hashes()
        if expected_tokenizer is not None:
            self._match(expected_tokenizer)

    def _check_shard(self, shard: dict) -> torch.Tensor:
        """Check what can be checked without reading latents, and return the labels of the shard."""
        path = self.path / shard["file"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise LatentCacheError(f"shard {path} is missing; {_REMEDY}") from None
        if size != shard["bytes"]:
            raise LatentCacheError(f"shard {path} has {size} bytes, expected {shard['bytes']}; {_REMEDY}")
        header, data_start = read_header(path)
        count = shard["stop"] - shard["start"]
        wanted = {
            name: (HEADER_DTYPES[dtype], [count, *shape])
            for name, (shape, dtype) in self._bucket(shard["start"]).stored_values(self.manifest).items()
        }
        integers = ("labels", "index", *(["image"] if "buckets" in self.manifest else []))
        for name, (dtype, shape) in {**wanted, **dict.fromkeys(integers, ("I64", [count]))}.items():
            found = header.get(name, {"dtype": "nothing", "shape": []})
            if (found["dtype"], found["shape"]) != (dtype, shape):
                raise LatentCacheError(
                    f"{name} in {path} is {found['dtype']} {found['shape']}, expected {dtype} {shape}; {_REMEDY}"
                )
        index = read_int64(path, "index", header, data_start)
        if not torch.equal(index, torch.arange(shard["start"], shard["stop"])):
            raise LatentCacheError(
                f"shard {path} holds images {int(index[0])} to {int(index[-1])}, expected {shard['start']} to "
                f"{shard['stop'] - 1}: it is a copy of another shard or was modified; {_REMEDY}"
            )
        labels = read_int64(path, "labels", header, data_start)
        wrong = (labels < 0) | (labels >= len(self.id2label))
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise LatentCacheError(
                f"label {int(labels[place])} of image {shard['start'] + place} in {path} is not within "
                f"[0, {len(self.id2label)}); {_REMEDY}"
            )
        return labels

    def _read_integers(self, shard: dict, name: str) -> torch.Tensor:
        path = self.path / shard["file"]
        return read_int64(path, name, *read_header(path))

    def _check_images(self, resolutions: int) -> None:
        """Every image must be there at each resolution."""
        counts = self.images.bincount()
        wrong = (counts != resolutions).nonzero().flatten()
        if len(wrong):
            image = int(wrong[0])
            raise LatentCacheError(
                f"{self.path} has {len(self.images)} samples of {len(counts)} images, expected {resolutions} of each, "
                f"and {int(counts[image])} of image {image}; {_REMEDY}"
            )

    @property
    def shapes_in_words(self) -> str:
        """`(C, h, w)`, or how many of them there are."""
        shapes = [bucket.latent_shape for bucket in self.buckets]
        if len(set(shapes)) == 1:
            return str(shapes[0])
        smallest, largest = min(shapes, key=math.prod), max(shapes, key=math.prod)
        return f"of {len(shapes)} shapes from {smallest} to {largest}"

    @property
    def bytes_per_sample(self) -> float:
        """Of latents and tokens of all views, on average."""
        total = sum(bucket.count * bucket.bytes_per_sample(self.manifest) for bucket in self.buckets)
        return total / len(self)

    def _bucket(self, sample: int) -> ShapeBucket:
        return self.buckets[self.bucket_of[sample]]

    def verify_hashes(self) -> None:
        """Read every shard and compare its sha256 with the manifest's.

        Raises:
            LatentCacheError: A shard differs (the message names it).
        """
        for shard in self.manifest["shards"]:
            if sha256_of_file(self.path / shard["file"]) != shard["sha256"]:
                raise LatentCacheError(f"shard {self.path / shard['file']} was modified (sha256 differs); {_REMEDY}")

    def _match(self, expected: torch.nn.Module | TokenizerFingerprint) -> None:
        tokenizer = expected if isinstance(expected, TokenizerFingerprint) else TokenizerFingerprint.of(expected)
        difference = self.tokenizer.difference(tokenizer)
        if difference:
            raise LatentCacheError(
                f"the latents in {self.path} were made with another tokenizer ({difference}); cache the latents of "
                "this tokenizer, or load the one they were made with"
            )
        if tokenizer.latent_mean is None:
            return
        difference = self.difference_of_statistics(tokenizer)
        if difference:
            raise LatentCacheError(difference)
        self.normalize_with(self.latent_mean, self.latent_std)

    def difference_of_statistics(self, tokenizer: TokenizerFingerprint) -> str | None:
        """What is wrong if `tokenizer` was calibrated with other statistics than those of these latents, or `None`."""
        if tokenizer.latent_mean is None:
            return None
        mean, std = (torch.tensor(values).float() for values in (tokenizer.latent_mean, tokenizer.latent_std))
        if torch.equal(mean, self.latent_mean) and torch.equal(std, self.latent_std):
            return None
        off = float(((mean - self.latent_mean).abs() / self.latent_std).max())
        return (
            f"the tokenizer was calibrated with other statistics than those of {self.path} (means up to {off:.3g} "
            "deviations apart); write this cache's statistics into it: run cache_latents again with "
            "--write_statistics, or call set_latent_statistics(cache.latent_mean, cache.latent_std)"
        )

    def normalize_with(self, mean: torch.Tensor, std: torch.Tensor) -> "LatentCache":
        """Return `(raw - mean) / std` from all later reads.

        Args:
            mean (`torch.Tensor`), std (`torch.Tensor`): `(C,)`, taken as float32. Pass `cache.latent_mean` and
                `cache.latent_std`, or what the tokenizer holds.

        Returns:
            `LatentCache`: This cache.
        """
        channels = self.latent_shape[0]
        if tuple(mean.shape) != (channels,) or tuple(std.shape) != (channels,) or not (std > 0).all():
            raise ValueError(
                f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must be ({channels},) and std positive"
            )
        self._shift, self._scale = mean.float().cpu()[:, None, None], std.float().cpu()[:, None, None]
        return self

    @property
    def normalisation(self) -> dict[str, list[float]] | None:
        """`mean` and `std` per channel that reads are normalised with; `None` for raw latents."""
        if self._shift is None or self._scale is None:
            return None
        return {"mean": self._shift.flatten().tolist(), "std": self._scale.flatten().tolist()}

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation `(C,)` per channel, over all views, of what this returns: raw, or normalised."""
        if self._shift is None or self._scale is None:
            return self.latent_mean, self.latent_std
        shift, scale = self._shift.flatten(), self._scale.flatten()
        return (self.latent_mean - shift) / scale, self.latent_std / scale

    def overall_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the raw latents over all channels and views, for models with one scale."""
        mean, std = self.latent_mean.double(), self.latent_std.double()
        return float(mean.mean()), float((std.square().mean() + mean.var(correction=0)).sqrt())

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, indices: Sequence[int] | np.ndarray | torch.Tensor, epochs: int | np.ndarray = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch.

        Args:
            indices (sequence of `int`): Indices `(B,)` of samples, in any order, repeats allowed.
            epochs (`int` or `np.ndarray`, defaults to 0): For the choice of views, one for all or one each.

        Returns:
            `(latents, labels)`: float32 `(B, C, h, w)` and int64 `(B,)`.

        Raises:
            IndexError: An index is not within `[0, len(cache))`.
            ValueError: The samples are of several shapes.
        """
        indices, bucket = self._checked(indices)
        latents = self._gather(indices, epochs, self.views, torch.empty(len(indices), *bucket.latent_shape))
        if self._shift is not None and self._scale is not None:
            # In place, and in the order of `encode`: the same bits.
            latents.sub_(self._shift).div_(self._scale)
        return latents, self.labels[torch.from_numpy(indices)]

    def read_tokens(
        self, indices: Sequence[int] | np.ndarray | torch.Tensor, epochs: int | np.ndarray = 0
    ) -> torch.Tensor:
        """Read the tokens of the very views that [`read`] chooses for the same arguments.

        Returns:
            `torch.Tensor` of shape `(B, D, h, w)`, in the dtype that they are stored in.

        Raises:
            IndexError: An index is not within `[0, len(cache))`.
            ValueError: The samples are of several shapes.
            LatentCacheError: The cache has no tokens.
        """
        self._require_tokens()
        indices, bucket = self._checked(indices)
        assert bucket.token_shape is not None, "there are tokens of all buckets or of none"
        dtype, names = DTYPES[self.manifest["tokens"]["dtype"]], [token_view(view) for view in self.views]
        return self._gather(indices, epochs, names, torch.empty(len(indices), *bucket.token_shape, dtype=dtype))

    def _require_tokens(self) -> None:
        if self.token_shape is None:
            raise LatentCacheError(
                f"latent cache {self.path} has no tokens; cache the latents anew, in another folder, with --tokens "
                "tokenizer or a frozen network"
            )

    def _checked(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> tuple[np.ndarray, ShapeBucket]:
        """As an array, and the bucket that they are all in."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are not all within [0, {len(self)})")
        buckets = np.unique(self.bucket_of[indices])
        if len(buckets) > 1:
            shapes = ", ".join(str(self.buckets[bucket].latent_shape) for bucket in buckets)
            raise ValueError(f"samples of the shapes {shapes} are no batch; read those of one bucket at a time")
        return indices, self.buckets[buckets[0] if len(buckets) else 0]

    def _gather(
        self, indices: np.ndarray, epochs: int | np.ndarray, names: Sequence[str], values: torch.Tensor
    ) -> torch.Tensor:
        """Fill `values` with the rows of `indices`, each of the one of `names` that its view is."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        rows = indices - self._starts[shards]
        views = choose_per_sample(self.seed, epochs, indices, len(names))
        # One gather per shard and view that the batch touches, however large the batch is.
        keys = shards * len(names) + views
        order = np.argsort(keys, kind="stable")
        unique, starts = np.unique(keys[order], return_index=True)
        parts = list(zip(unique.tolist(), np.split(order, starts[1:]), strict=True))
        for key, places in parts:
            shard, view = divmod(key, len(names))
            self._map(shard).announce(names[view], rows[places])
        for key, places in parts:
            shard, view = divmod(key, len(names))
            source = self._map(shard).tensor(names[view])
            values[torch.from_numpy(places)] = source[torch.from_numpy(rows[places])].to(values.dtype)
        return values

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """One sample: `latents` `(C, h, w)`, `labels` and `indices` `()`, and `tokens` `(D, h, w)` if asked for."""
        batch = self.__getitems__([key])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A whole batch for a `DataLoader` with `collate_fn=LatentCache.collate`, named as in [`__getitem__`]."""
        epochs, indices = np.asarray(keys, dtype=np.int64).reshape(-1, 2).T
        latents, labels = self.read(indices, epochs)
        batch = {"latents": latents, "labels": labels, "indices": torch.from_numpy(indices.copy())}
        return {**batch, "tokens": self.read_tokens(indices, epochs)} if self.with_tokens else batch

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """What `__getitems__` returns is a batch already."""
        return batch

    def _map(self, number: int) -> MappedShard:
        if number not in self._mapped:
            if len(self._mapped) == MAX_MAPPED_SHARDS:
                self._mapped.popitem(last=False)
            self._mapped[number] = MappedShard(self.path / self.manifest["shards"][number]["file"])
        self._mapped.move_to_end(number)
        return self._mapped[number]

    def __getstate__(self) -> dict:
        # Mapped tensors would be pickled as their whole content; each DataLoader worker maps the files itself.
        return {**self.__dict__, "_mapped": OrderedDict()}

    def latents_of_shard(self, number: int, view: str = PLAIN_VIEW) -> torch.Tensor:
        """
        Raw latents of one shard `(N, C, h, w)`, or its tokens by the name of theirs, in the stored dtype, mapped from
        the file: do not write to them.
        """
        return self._map(number).tensor(view)

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which holds the sha256 of every shard."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


_REMEDY = "delete the cache folder and cache the latents again"


def _read_manifest(path: Path) -> dict:
    if not path.is_dir():
        raise FileNotFoundError(f"latent cache {path} does not exist; create it with cache_latents")
    file = path / MANIFEST
    if not file.exists():
        state = "is incomplete" if (path / JOB).exists() else f"has no {MANIFEST}"
        raise LatentCacheError(f"latent cache {path} {state}; run cache_latents to complete it")
    try:
        manifest = json.loads(file.read_text())
        known = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise LatentCacheError(f"{file} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error
    if known != (FORMAT, FORMAT_VERSION):
        raise LatentCacheError(
            f"{file} is {known[0]} version {known[1]}, expected {FORMAT} {FORMAT_VERSION}; {_REMEDY}"
        )
    return manifest
