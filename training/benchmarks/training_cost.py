"""
Multiply-accumulates of the ImageNet presets per image and step, counted on paper: what images/s to expect of a GPU,
how many cores its loader needs, and how long the preset takes.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from diffusers import ModelMixin
from PIL import Image

from tcae_diffusers.arguments import ArgumentsType, parse_arguments
from tcae_diffusers.data.images.decoding import load_rgb_image
from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.sample_randomness import sample_generator
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_text
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.self_supervision import build_method
from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.count_steps import (
    META,
    decoder_step_cost,
    tokenizer_step_cost,
    transformer_step_cost,
)
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.markdown_tables import markdown_table, with_table
from tcae_diffusers.training.step_cost import PARTS, StepCost, part_text
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

DESCRIPTION = "the ImageNet presets on paper: GMAC per image and step by part, images/s, loader cores and days"

TOKENIZERS = (
    "tc_ae_f32c128_imagenet256",
    "tc_ae_f32c128_imagenet256_nostc",
    "tc_ae_f32c128_imagenet256_nossl",
    "tc_ae_f32c128_imagenet256_nostc_nossl",
    "tc_ae_f32c128_p16_imagenet256",
    "tc_ae_f32c256_imagenet256",
    "tc_ae_f32c128_imagenet256_muon",
    "tc_ae_f32c128_imagenet256_muon_denoising",
    "tc_ae_f32c128_imagenet256_muon_nossl_aligned",
    "tc_ae_f32c128_to512",
    "tc_ae_f32c128_to1024",
)
# What comes after a tokenizer, and the preset of the autoencoder that it comes after.
DECODERS = {
    "tc_ae_f32c128_imagenet256_decoder": "tc-ae-f32c128",
    "tc_ae_f32c128_imagenet256_decoder_noise": "tc-ae-f32c128",
    "tc_ae_f32c128_imagenet256_light_decoder": "tc-ae-f32c128",
    "tc_ae_f32c128_decoder_head": "tc-ae-f32c128",
}
TRANSFORMERS = {"imagenet256_tc_dit_xl": "tc-ae-f32c128", "imagenet256_tc_dit_xl_irepa": "tc-ae-f32c128"}
PRESETS = (*TOKENIZERS, *DECODERS, *TRANSFORMERS)
CLASSES = 1000
# About an image of ImageNet.
JPEG_SIZE = (500, 375)
# Shortest measurement of a loader, in CPU seconds.
LOADER_SECONDS = 1.0


@dataclass
class PresetCost:
    """
    A preset and what it costs.

    Args:
        transform: Views of an image that its loader makes; `None` where it reads latents.
    """

    arguments: RunArguments
    step: StepCost
    transform: MultiCropTransform | None


def run(arguments: BenchArguments) -> dict[str, dict[str, Any]]:
    """
    Rows by preset. The rates of loaders are measured; everything else is counted.

    Raises:
        InputError: an unknown preset, or a page without a place for the table.
    """
    if unknown := [name for name in arguments.preset if name not in PRESETS]:
        raise InputError(f"--preset {', '.join(unknown)} is unknown; expected some of {', '.join(PRESETS)}")
    if arguments.page is not None and not arguments.page.is_file():
        raise InputError(f"--page {arguments.page} is no file; pass a page with the comments of the table")
    rows = in_order_of_parts({name: row(preset_cost(name), arguments) for name in arguments.preset or PRESETS})
    if arguments.page is not None:
        text = arguments.page.read_text()
        write_text(arguments.page, with_table(arguments.page, text, "training_cost", markdown_table(rows)))
    return rows


def preset_cost(name: str) -> PresetCost:
    """Count one of `PRESETS`."""
    if name in TRANSFORMERS:
        with META:
            autoencoder = build_autoencoder(TRANSFORMERS[name])
        return transformer_cost(preset_arguments(DiTArguments, name), autoencoder)
    if name in DECODERS:
        return decoder_cost(preset_arguments(DecoderArguments, name, autoencoder=DECODERS[name]))
    return tokenizer_cost(preset_arguments(TokenizerArguments, name))


def preset_arguments(arguments_type: type[ArgumentsType], config: str, **options: object) -> ArgumentsType:
    """What a preset says, with `options` instead; folders that nobody gives are called `unused`."""
    named = {each.name for each in fields(arguments_type)}
    folders = dict.fromkeys(named & {"output_dir", "latents", "tokenizer"}, "unused")
    options = {**folders, **options}
    argv = ["--config", config, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    return parse_arguments(arguments_type, argv)


def transformer_cost(arguments: DiTArguments, autoencoder: ModelMixin) -> PresetCost:
    """On latents of images of the size that `autoencoder` was made for."""
    shape = latent_shape(autoencoder)
    # Its own tokens, which cache_latents stores on the latent's grid.
    tokens = (adapt(autoencoder).token_width, *shape[1:])
    return PresetCost(arguments, transformer_step_cost(arguments, shape, CLASSES, tokens), None)


def latent_shape(autoencoder: ModelMixin) -> tuple[int, int, int]:
    """`(c, h, w)` of the latent of an image of the size that `autoencoder` was made for."""
    adapter = adapt(autoencoder)
    assert adapter.image_size is not None, "an AutoencoderTC has one"
    side = adapter.image_size // adapter.spatial_ratio
    return adapter.latent_channels, side, side


def decoder_cost(arguments: DecoderArguments) -> PresetCost:
    # Counting fills in the size.
    step = decoder_step_cost(arguments)
    return PresetCost(arguments, step, MultiCropTransform(arguments.image_size))


def tokenizer_cost(arguments: TokenizerArguments) -> PresetCost:
    step = tokenizer_step_cost(arguments)
    with META:
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
        crops = build_method(arguments, adapt(autoencoder)).crops()
    return PresetCost(arguments, step, MultiCropTransform(arguments.image_size, **crops))


def row(cost: PresetCost, arguments: BenchArguments) -> dict[str, Any]:
    """Columns of the table: GMAC by part, then what follows from them."""
    step = cost.step
    cells: dict[str, Any] = {part: part_text(step, part) for part in PARTS if part in step.forward}
    rate = arguments.model_rate(step.total)
    cells["all"] = f"{step.total / 1e9:.0f}"
    cells["images/s on a GPU"] = f"{rate:.0f}"
    return cells | what_a_rate_means(cost.arguments, cost.transform, rate, arguments.gpus)


def what_a_rate_means(
    preset: RunArguments, transform: MultiCropTransform | None, rate: float, gpus: int
) -> dict[str, str]:
    """Cores that feed a GPU at `rate` images/s, as measured here, and the days that all steps of `preset` take."""
    cells = {}
    if transform is not None:
        loader = loader_rate(transform)
        cells["images/s of a loader's core"] = f"{loader:.0f}"
        cells["loader cores for a GPU"] = f"{rate / loader:.1f}"
    batch = preset.train_batch_size * preset.gradient_accumulation_steps * gpus
    cells["steps x batch"] = f"{preset.max_train_steps} x {batch}"
    cells[f"days on {gpus} GPUs"] = f"{preset.max_train_steps * batch / (rate * gpus) / 86400:.2f}"
    return cells


def in_order_of_parts(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows with a cell for every part that any of them has, empty where it lacks it."""
    used = [part for part in PARTS if any(part in cells for cells in rows.values())]
    return {name: {**dict.fromkeys(used, ""), **cells} for name, cells in rows.items()}


def loader_rate(transform: MultiCropTransform, seconds: float = LOADER_SECONDS) -> float:
    """Images that one core decodes and cuts into views in a CPU second."""
    encoded = jpeg_of_natural_statistics()
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        transform(load_rgb_image(encoded), sample_generator(0, 0, count))
        count += 1
    return count / spent


def jpeg_of_natural_statistics() -> bytes:
    """A JPEG whose amplitudes fall with frequency as those of photographs do, so that it is as costly to decode."""
    width, height = JPEG_SIZE
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    frequencies[0, 0] = np.inf
    noise = np.random.default_rng(0).standard_normal((3, height, width))
    picture = np.fft.ifft2(np.fft.fft2(noise) / frequencies).real
    picture = 128 + 50 * picture / picture.std()
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
