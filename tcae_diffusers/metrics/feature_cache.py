"""Features of an image set, computed once: the cache is keyed by the content of the images and of the network."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.logging import get_logger

from ..data.cache_folder import default_cache_dir
from ..data.distributed import gather_in_rank_order
from ..data.images.decoding import DECODING_VERSION
from ..data.images.image_sets import ImageSet
from ..files import write_atomically
from .features import FeatureNetwork
from .rank_batches import rank_batches

logger = get_logger(__name__)


def default_cache_folder() -> Path:
    """`features/` in the cache folder of this package (`$TCAE_CACHE`, else below `~/.cache`)."""
    return default_cache_dir() / "features"


def features_of(
    images: ImageSet,
    network: FeatureNetwork,
    batch_size: int = 32,
    cache_folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """Features of all images, in order.

    Args:
        images, network: What to compute. Under several ranks each computes its own range and all get everything.
        cache_folder: Where features are kept between runs; `None` keeps nothing.

    Returns:
        `features (N, D)` and, where the network has them, `logits (N, C)`: float32.
    """
    state = PartialState()
    path = None
    if cache_folder is not None:
        key = f"{images.fingerprint} {DECODING_VERSION} {len(images)} {network.name} {network.weights_sha256}"
        path = Path(cache_folder) / f"{network.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        cached = _read(path, len(images))
        # Ranks may see different file systems: the cache counts only if all of them have it.
        if all(gather_in_rank_order(cached is not None, state)) and cached is not None:
            return cached

    parts: dict[str, list[np.ndarray]] = {}
    for _, batch in rank_batches(images, batch_size, f"features of {Path(images.name).name}"):
        for name, values in network(batch).items():
            parts.setdefault(name, []).append(values.numpy())
    own = {name: np.concatenate(values) for name, values in parts.items()}
    gathered = [part for part in gather_in_rank_order(own, state) if part]
    result = {name: np.concatenate([part[name] for part in gathered]) for name in gathered[0]}
    if len(result["features"]) != len(images):
        raise RuntimeError(f"{len(result['features'])} features for {len(images)} images")
    if path is not None and state.is_main_process:
        _write(path, result)
    return result


def _read(path: Path, count: int) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            result = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged cache entry is recomputed, whatever is wrong with it
        logger.warning(f"feature cache {path} cannot be read, so its features are recomputed: {error}")
        return None
    return result if len(result.get("features", ())) == count else None


def _write(path: Path, result: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **result)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        logger.warning(f"features are not cached: cannot write {path}: {error}")
