"""A latent cache as a Hugging Face dataset, to push to the Hub and to stream from there."""

import json
import os
from collections.abc import Iterator

import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Value

from ...errors import InputError
from .cache import LatentCache


def latent_cache_to_dataset(cache: LatentCache, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """Export a latent cache.

    Columns: for each view an `Array3D` `(C, h, w)` of raw latents, and one `(D, h, w)` of tokens where there are any
    (float16 stays so, the other dtypes become float32, since Arrow has no bfloat16), `label` with the class names,
    `index`. Tokenizer hashes, statistics and transform are JSON in `dataset.info.description`.

    Args:
        cache ([`LatentCache`]): What to export.
        cache_dir (`str` or `os.PathLike`, *optional*): Where `datasets` keeps its Arrow file.

    Raises:
        InputError: The cache has several shapes, for which a column has no type.
    """
    if len(cache.buckets) > 1:
        raise InputError(
            f"{cache.path} has latents of {len(cache.buckets)} shapes, and a column of a dataset holds one; cache one"
            " size for it"
        )
    stored = {
        name: (shape, "float16" if dtype == "float16" else "float32")
        for name, (shape, dtype) in cache.buckets[0].stored_values(cache.manifest).items()
    }
    features = Features(
        {
            **{name: Array3D(shape, dtype) for name, (shape, dtype) in stored.items()},
            "label": ClassLabel(names=[cache.id2label[label] for label in range(len(cache.id2label))]),
            "index": Value("int64"),
        }
    )
    dataset = Dataset.from_generator(
        _rows,
        features=features,
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        # The fingerprint is an argument for the sake of `datasets`, which reuses its file when arguments are equal.
        gen_kwargs={
            "path": os.fspath(cache.path),
            "dtypes": {name: dtype for name, (_, dtype) in stored.items()},
            "fingerprint": cache.fingerprint,
        },
    )
    dataset.info.description = json.dumps({key: value for key, value in cache.manifest.items() if key != "shards"})
    return dataset


def _rows(path: str, dtypes: dict[str, str], fingerprint: str) -> Iterator[dict]:
    cache = LatentCache(path)
    for number, shard in enumerate(cache.manifest["shards"]):
        stored = {name: cache.latents_of_shard(number, name) for name in dtypes}
        for row, index in enumerate(range(shard["start"], shard["stop"])):
            yield {
                **{name: values[row].to(getattr(torch, dtypes[name])).numpy() for name, values in stored.items()},
                "label": int(cache.labels[index]),
                "index": index,
            }
