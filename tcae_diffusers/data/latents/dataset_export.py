"""A latent cache as a Hugging Face dataset, to push to the Hub and to stream from there."""

import json
import os
from collections.abc import Iterator

import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Value

from .cache import LatentCache


def latent_cache_to_dataset(cache: LatentCache, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """Export a latent cache.

    Columns: for each view an `Array3D` `(C, h, w)` of raw latents (float16 stays so, the other dtypes become float32,
    since Arrow has no bfloat16), `label` with the class names, `index`. Tokenizer hashes, statistics and transform are
    JSON in `dataset.info.description`.

    Args:
        cache ([`LatentCache`]): What to export.
        cache_dir (`str` or `os.PathLike`, *optional*): Where `datasets` keeps its Arrow file.
    """
    views, dtype = cache.manifest["views"], "float16" if cache.manifest["dtype"] == "float16" else "float32"
    features = Features(
        {
            **{view: Array3D(cache.latent_shape, dtype) for view in views},
            "label": ClassLabel(names=[cache.id2label[label] for label in range(len(cache.id2label))]),
            "index": Value("int64"),
        }
    )
    dataset = Dataset.from_generator(
        _rows,
        features=features,
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        # The fingerprint is an argument for the sake of `datasets`, which reuses its file when arguments are equal.
        gen_kwargs={"path": os.fspath(cache.path), "dtype": dtype, "fingerprint": cache.fingerprint},
    )
    dataset.info.description = json.dumps({key: value for key, value in cache.manifest.items() if key != "shards"})
    return dataset


def _rows(path: str, dtype: str, fingerprint: str) -> Iterator[dict]:
    cache = LatentCache(path)
    for number, shard in enumerate(cache.manifest["shards"]):
        latents = {view: cache.latents_of_shard(number, view) for view in cache.manifest["views"]}
        for row, index in enumerate(range(shard["start"], shard["stop"])):
            yield {
                **{view: values[row].to(getattr(torch, dtype)).numpy() for view, values in latents.items()},
                "label": int(cache.labels[index]),
                "index": index,
            }
