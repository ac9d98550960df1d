"""Statistics of latents: written into the tokenizer that made them, and missed where there are none."""

import io
import json
from pathlib import Path

import safetensors.torch
import torch
from accelerate.logging import get_logger

from ...files import write_atomically, write_json
from ...models.adapters import adapt, load_autoencoder
from ...models.fingerprint import STATISTICS_BUFFERS, is_calibrated
from .cache import LatentCache
from .format import LatentCacheError

logger = get_logger(__name__)

_CONFIG = "config.json"

# Autoencoders with one scaling factor for all channels stay within; an encoder that nothing normalises seldom does.
_FARTHEST_MEAN = 1.0
_DEVIATIONS = (0.5, 2.0)


def write_statistics(cache: LatentCache, folder: Path) -> None:
    """
    Let latents of the tokenizer saved in `folder` have unit variance, and load it to check that they do. A model with
    statistics per channel gets those of `cache` in every weights file that holds such buffers (any shard, variant or
    format); another one gets one scaling factor for all channels in its config, and a shift factor where its class has
    one. Each file is replaced atomically.

    Raises:
        LatentCacheError: A channel never varies (with one scale: no channel does), or the tokenizer does not load with
            the statistics.
        OSError: A file cannot be written.
    """
    adapter = adapt(load_autoencoder(folder))
    if adapter.keeps_statistics:
        _write_per_channel(cache, folder)
        logger.info(f"per-channel statistics written into {folder}")
    else:
        _write_scaling(cache, folder, adapter.scaling_entries)
        logger.info(f"{' and '.join(adapter.scaling_entries)} written into {folder / _CONFIG}")


def _write_scaling(cache: LatentCache, folder: Path, entries: tuple[str, ...]) -> None:
    mean, std = cache.overall_moments()
    if not (cache.latent_std > 0).any():
        raise _collapsed("all channels")
    file, scaling = folder / _CONFIG, {"scaling_factor": 1.0 / std, "shift_factor": mean}
    written = {name: scaling[name] for name in entries}
    write_json(file, {**json.loads(file.read_text()), **written})
    config = load_autoencoder(folder).config
    if {name: config[name] for name in entries} != written:
        raise _not_loaded(folder)


def _collapsed(channels: str) -> LatentCacheError:
    return LatentCacheError(
        f"{channels} of the latent are constant, so the tokenizer has collapsed; train it longer, or pass "
        "--write_statistics false to leave it without statistics"
    )


def _not_loaded(folder: Path) -> LatentCacheError:
    return LatentCacheError(
        f"the tokenizer in {folder} does not load with the statistics that were written into it; save it again "
        "with save_pretrained() and run the same command again"
    )


def _write_per_channel(cache: LatentCache, folder: Path) -> None:
    dead = (cache.latent_std <= 0).nonzero().flatten().tolist()
    if dead:
        raise _collapsed(f"channels {dead}")
    if _holds(folder, cache):
        return
    buffers = dict(zip(STATISTICS_BUFFERS, (cache.latent_mean, cache.latent_std), strict=True))
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            _write_into_safetensors(file, buffers)
        elif file.suffix == ".bin":
            _write_into_pickle(file, buffers)
    if not _holds(folder, cache):
        raise _not_loaded(folder)


def _holds(folder: Path, cache: LatentCache) -> bool:
    model = load_autoencoder(folder)
    return torch.equal(model.latent_mean.float(), cache.latent_mean) and torch.equal(
        model.latent_std.float(), cache.latent_std
    )


def _write_into_safetensors(file: Path, buffers: dict[str, torch.Tensor]) -> None:
    with safetensors.safe_open(file, "pt") as content:
        names, metadata = buffers.keys() & set(content.keys()), content.metadata()
    if names:
        tensors = safetensors.torch.load_file(file) | {name: buffers[name] for name in names}
        write_atomically(file, safetensors.torch.save(tensors, metadata))


def _write_into_pickle(file: Path, buffers: dict[str, torch.Tensor]) -> None:
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    names = buffers.keys() & tensors.keys()
    if names:
        stream = io.BytesIO()
        torch.save(tensors | {name: buffers[name] for name in names}, stream)
        write_atomically(file, stream.getvalue())


def warn_of_latents_without_unit(cache: LatentCache) -> None:
    """Warn if what `cache` returns is far from mean 0 and deviation 1 in some channel, as noise is."""
    means, deviations = cache.moments()
    mean, low, high = (float(value) for value in (means.abs().max(), deviations.min(), deviations.max()))
    if mean > _FARTHEST_MEAN or low < _DEVIATIONS[0] or high > _DEVIATIONS[1]:
        logger.warning(
            f"the latents of {cache.path}, as used for training, have channel means of up to {mean:.3g} and standard "
            f"deviations from {low:.3g} to {high:.3g}, but noise has 0 and 1. cache_latents "
            "--write_statistics sets per-channel statistics in an AutoencoderTC; in others it sets one scaling_factor "
            "for all channels, which keeps their differences"
        )


def warn_of_noise_without_unit(autoencoder: torch.nn.Module, latent_noise: float, images: torch.Tensor) -> None:
    """
    Warn if `latent_noise` is asked for on latents whose deviation is not 1 but whatever the encoder gives.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): In [-1, 1], to measure the deviation of latents that no
            statistics normalise, but at most a scaling factor.
    """
    calibrated = is_calibrated(autoencoder)
    if not latent_noise or calibrated:
        return
    adapter = adapt(autoencoder)
    with torch.no_grad():
        latents = adapter.encode(images).float() * adapter.pipeline_scaling[0]
    # One factor can give unit deviation to all channels together, not to each.
    if calibrated is None and _DEVIATIONS[0] <= float(latents.std()) <= _DEVIATIONS[1]:
        return
    deviations = latents.transpose(0, 1).flatten(1).std(dim=1)
    low, high = float(deviations.min()), float(deviations.max())
    remedy = "run cache_latents with it first, which writes its latent statistics"
    if calibrated is None and adapter.scaling_entries:
        remedy = "run cache_latents with --write_statistics first, which sets the scaling_factor in its config.json"
    elif calibrated is None:
        remedy = "choose a noise of that size"
    logger.warning(
        f"--latent_noise {latent_noise:g} is in units of the latent's standard deviation, but those of this "
        f"autoencoder's channels are {low:.3g} to {high:.3g}; {remedy}"
    )
