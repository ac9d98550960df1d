"""
Encode a data set once: latents, latents of the mirrored images and labels, in sharded safetensors with a manifest.

    accelerate launch training/cache_latents.py --tokenizer runs/tokenizer/model --data openmoji:train \
        --output_dir runs/latents --write_statistics

Works with any diffusers autoencoder. Interrupted, the same command goes on with the shards that are missing.
"""

import sys
import time
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from tcae_diffusers.data.image_sources import ImageSource, build_image_source
from tcae_diffusers.data.latent_cache import LatentCache
from tcae_diffusers.data.latent_format import LatentCacheError
from tcae_diffusers.data.latent_shards import LatentShard, LatentShardWriter
from tcae_diffusers.data.multi_crop import center_crop, to_uint8
from tcae_diffusers.data.tokenizer_fingerprint import TokenizerFingerprint
from tcae_diffusers.evaluation.autoencoder_access import (
    check_image_size,
    encode_to_latent,
    load_autoencoder,
)
from tcae_diffusers.models import AutoencoderTC
from tcae_diffusers.trainer import StopSignal, save_model
from tcae_diffusers.trainer.arguments import option
from tcae_diffusers.trainer.run import configure_logging

logger = get_logger(__name__)


@dataclass
class CacheArguments:
    """Encode a data set once, for training diffusion models on its latents."""

    tokenizer: str = option(MISSING, "Folder of a saved diffusers autoencoder.")
    output_dir: str = option(MISSING, "Folder of the cache; one that was interrupted is completed.")
    data: str = option("openmoji:train", "openmoji:train, a folder root/class/img.png, or datasets:NAME[:SPLIT].")
    resolution: int | None = option(None, "Side of the images; the autoencoder's sample_size if unset.")
    data_resolution: int | None = option(None, "Size at which vector images are drawn; twice the resolution if unset.")
    flip: bool = option(True, "Also store the latents of the mirrored images.")
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "Of the stored latents; the rounding error goes into the manifest."
    )
    batch_size: int = option(64, "Images per forward pass.")
    shard_size: int = option(4096, "Images per shard.")
    dataloader_num_workers: int = option(0, "Processes that decode images.")
    write_statistics: bool = option(
        False,
        "Write the per-channel mean and deviation into the saved tokenizer, so that its latents have unit variance.",
    )


class ImageRange(Dataset):
    """Images `[start, stop)` of a source as uint8 `(3, resolution, resolution)`: centre crops, nothing random."""

    def __init__(self, source: ImageSource, start: int, stop: int, resolution: int):
        self.source, self.start, self.stop, self.resolution = source, start, stop, resolution

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int, int]:
        image, label = self.source[self.start + place]
        return to_uint8(center_crop(image, self.resolution)), label, self.start + place


def without_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Make `encode` return raw latents: what is stored must not depend on an earlier calibration."""
    if isinstance(model, AutoencoderTC):
        model.set_latent_statistics(torch.zeros_like(model.latent_mean), torch.ones_like(model.latent_std))
    return model


@torch.no_grad()
def encode_shard(
    model: torch.nn.Module,
    source: ImageSource,
    writer: LatentShardWriter,
    shard: LatentShard,
    arguments: CacheArguments,
    device: torch.device,
    bar: tqdm,
    stop: StopSignal,
) -> bool:
    """Encode one shard; `False` if a signal came first, and then nothing of it is kept."""
    loader = DataLoader(
        ImageRange(source, shard.start, shard.stop, arguments.resolution),
        batch_size=arguments.batch_size,
        num_workers=arguments.dataloader_num_workers,
    )
    batches = []
    for images, labels, indices in loader:
        if stop.received:
            return False
        images = images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)
        latents = {"latents": encode_to_latent(model, images)}
        if arguments.flip:
            latents["latents_flip"] = encode_to_latent(model, images.flip(-1))
        batches.append((indices, {name: value.float().cpu() for name, value in latents.items()}, labels))
        bar.update(len(images))
    with writer.open_shard(shard) as open_shard:
        for batch in batches:
            open_shard.add(*batch)
    return True


def write_statistics(cache: LatentCache, folder: Path) -> None:
    """
    Store the cache's statistics in the tokenizer saved in `folder`.

    Raises:
        ValueError: for an autoencoder that has no place for them.
        LatentCacheError: if a channel is dead.
    """
    model = load_autoencoder(folder)
    if not isinstance(model, AutoencoderTC):
        raise ValueError(
            f"{type(model).__name__} in {folder} keeps no per-channel statistics; only AutoencoderTC does."
        )
    dead = (cache.latent_std <= 0).nonzero().flatten().tolist()
    if dead:
        raise LatentCacheError(
            f"channels {dead} of the latent never vary; the tokenizer has collapsed, train it longer."
        )
    model.set_latent_statistics(cache.latent_mean, cache.latent_std)
    save_model(model, folder)


def main(argv: list[str] | None = None) -> None:
    arguments = HfArgumentParser(CacheArguments, description=CacheArguments.__doc__).parse_args_into_dataclasses(argv)[
        0
    ]
    accelerator = Accelerator()
    configure_logging(accelerator)
    model = without_statistics(load_autoencoder(arguments.tokenizer, accelerator.device))
    arguments.resolution = arguments.resolution or model.config.sample_size
    arguments.data_resolution = arguments.data_resolution or 2 * arguments.resolution
    check_image_size(model, arguments.resolution, arguments.resolution)
    source = build_image_source(arguments.data, resolution=arguments.data_resolution)
    example = torch.zeros(1, 3, arguments.resolution, arguments.resolution, device=accelerator.device)
    with torch.no_grad():
        latent_shape = tuple(encode_to_latent(model, example).shape[1:])

    writer = LatentShardWriter(
        arguments.output_dir,
        num_samples=len(source),
        latent_shape=latent_shape,
        tokenizer=TokenizerFingerprint.of(model),
        id2label=dict(enumerate(source.classes)),
        data_fingerprint=source.fingerprint,
        transform={"resolution": arguments.resolution, "crop": "center", "data": arguments.data},
        dtype=arguments.dtype,
        views=("latents", "latents_flip") if arguments.flip else ("latents",),
        shard_size=arguments.shard_size,
    )
    pending = writer.pending_shards(accelerator.process_index, accelerator.num_processes)
    total = sum(shard.stop - shard.start for shard in pending)
    started = time.perf_counter()
    bar = tqdm(
        total=total,
        desc="latents",
        unit="image",
        disable=not accelerator.is_local_main_process,
        mininterval=0.1 if sys.stderr.isatty() else 20,
    )
    with StopSignal() as stop, bar:
        for shard in pending:
            if not encode_shard(model, source, writer, shard, arguments, accelerator.device, bar, stop):
                break
        writer.flush()
        stopped = stop.agreed()
    if stopped:
        logger.warning("stopped; run the same command again to complete the cache")
        accelerator.end_training()
        return
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        writer.finalize()
        cache = LatentCache(arguments.output_dir)
        logger.info(
            f"{len(cache)} images, {len(cache.views)} views, latents {latent_shape} in {arguments.output_dir};"
            f" {total / max(time.perf_counter() - started, 1e-9):.0f} images/s per process"
        )
        if arguments.write_statistics:
            write_statistics(cache, Path(arguments.tokenizer))
            logger.info(f"per-channel statistics written into {arguments.tokenizer}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
