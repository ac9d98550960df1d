"""Images per second of the paper's tokenizer and of a diffusion transformer on one GPU."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tcae_diffusers.metrics.latency import time_in_turns
from tcae_diffusers.models.frozen_network import without_pretrained_weights
from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder
from tcae_diffusers.trainer.reconstruction_training import ReconstructionTraining
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.benchmarks.training_cost import (
    CLASSES,
    PresetCost,
    decoder_cost,
    latent_shape,
    preset_arguments,
    tokenizer_cost,
    transformer_cost,
    what_a_rate_means,
)
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.step_cost import part_text
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

DESCRIPTION = "on a GPU, in bf16: images/s of encoding, decoding and training, and what bf16 and compilation give"

TOKENIZER, DECODER = "tc_ae_f32c128_imagenet256", "tc_ae_f32c128_imagenet256_decoder"
TRANSFORMER = "imagenet256_tc_dit_xl"
TOKENIZER_STEP, DECODER_STEP, TRANSFORMER_STEP = "tokenizer step", "decoder step", "transformer step"
# Of as many images as are cut into views for a batch of a step.
_IMAGES = 8


def run(arguments: BenchArguments) -> dict[str, Any]:
    """Nothing is measured where there is no GPU."""
    if not torch.cuda.is_available():
        return {"no GPU": "nothing to measure on this machine"}
    return measure(torch.device("cuda"), arguments)


def measure(
    device: torch.device,
    arguments: BenchArguments,
    tokenizer: str = TOKENIZER,
    decoder: str = DECODER,
    transformer: str = TRANSFORMER,
    batch_size: int = 32,
    compile: bool = True,
) -> dict[str, Any]:
    """
    Times every part once per round, in turns, for at least three rounds after one that is not counted. Steps have all
    terms of their preset, frozen networks included; these have random weights, which cost as much.

    Args:
        device: Where; accelerate must choose the same for training.
        arguments: `seconds` is the time budget, without the first round; the peak rate and utilisation of the model.
        tokenizer, decoder, transformer: Presets of train_tcae, finetune_decoder and train_dit.
        batch_size: Images of each call.
        compile: Whether to measure compiled blocks beside eager ones. Steps are eager.

    Returns:
        A flat table of images/s, medians over the rounds, of ratios of rates in the same rounds, and for each step of
        what [`training_cost`] counts and expects, of what was reached, and of what that means for loaders and days.
    """
    with tempfile.TemporaryDirectory(prefix="tcae-bench-") as folder:
        steps = _steps(Path(folder), device, tokenizer, decoder, transformer, batch_size)
        name = preset_arguments(TokenizerArguments, tokenizer).autoencoder
        parts = {**_inference(device, name, batch_size, compile), **{name: each.take for name, each in steps.items()}}
        table = _table(time_in_turns(parts, device, arguments.seconds), device, batch_size)
    for name, each in steps.items():
        table |= _against_the_model(name, each, table[f"{name} (images/s)"], arguments)
    return table


@dataclass
class Step:
    """
    Args:
        take: One step of what is measured.
        cost ([`PresetCost`]): What is measured, on paper.
        preset: What the preset says of steps and batches.
    """

    take: Callable[[], Any]
    cost: PresetCost
    preset: RunArguments


def _against_the_model(name: str, step: Step, rate: float, arguments: BenchArguments) -> dict[str, Any]:
    """
    Cost by part, images/s that follow from it at the expected utilisation, and what was reached; what the measured
    rate asks of loaders, and days of the whole preset at that rate.
    """
    cost, found = step.cost.step, dict[str, Any]()
    for part in cost.forward:
        found[f"{part} (GMAC per image)"] = part_text(cost, part)
    expected = arguments.model_rate(cost.total)
    found["all (GMAC per image)"] = cost.total / 1e9
    found[f"images/s expected at {arguments.utilisation:.0%} of the peak"] = expected
    found["measured / model"] = rate / expected
    found[f"share of {arguments.peak_tflops:g} TFLOP/s"] = arguments.utilisation * rate / expected
    found |= what_a_rate_means(step.preset, step.cost.transform, rate, arguments.gpus)
    return {f"{name}: {key}": value for key, value in found.items()}


def _table(times: dict[str, list[float]], device: torch.device, batch_size: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    table: dict[str, Any] = {"device": name, "batch size": float(batch_size)}
    table["rounds"] = float(len(next(iter(times.values()))))
    for part, values in times.items():
        table[f"{part} (images/s)"] = batch_size / statistics.median(values)

    def ratio(fast: str, slow: str) -> float:
        return statistics.median(b / a for a, b in zip(times[fast], times[slow], strict=True))

    for part in ("encode", "decode"):
        table[f"{part}: bf16 / fp32"] = ratio(part, f"{part} in fp32")
        if f"{part} compiled" in times:
            table[f"{part}: compiled / eager"] = ratio(f"{part} compiled", part)
    table["tokenizer step / encode"] = ratio(TOKENIZER_STEP, "encode")
    return table


def _inference(device: torch.device, tokenizer: str, batch_size: int, compile: bool) -> dict[str, Callable[[], Any]]:
    """Encoding and decoding in bf16, in fp32 and, of bf16, with compiled blocks."""
    from tcae_diffusers import AutoencoderTC

    full = AutoencoderTC.from_preset(tokenizer).eval().to(device)
    models = {" in fp32": full, "": AutoencoderTC.from_preset(tokenizer).eval().to(device, torch.bfloat16)}
    if compile:
        models[" compiled"] = AutoencoderTC.from_preset(tokenizer).eval().to(device, torch.bfloat16)
        models[" compiled"].compile_repeated_blocks()
    size = full.config.sample_size
    images = torch.rand(batch_size, 3, size, size, device=device) * 2 - 1

    @torch.inference_mode()
    def encode(model: AutoencoderTC, pixels: torch.Tensor) -> torch.Tensor:
        return model.encode(pixels).latent

    @torch.inference_mode()
    def decode(model: AutoencoderTC, latent: torch.Tensor) -> torch.Tensor:
        return model.decode(latent).sample

    parts: dict[str, Callable[[], Any]] = {}
    for kind, model in models.items():
        pixels = images.to(model.dtype)
        parts[f"encode{kind}"] = functools.partial(encode, model, pixels)
        parts[f"decode{kind}"] = functools.partial(decode, model, encode(model, pixels))
    return parts


def _steps(
    folder: Path, device: torch.device, tokenizer: str, decoder: str, transformer: str, batch_size: int
) -> dict[str, Step]:
    """Whole steps of the commands for images, from uint8 batches in pinned memory on; a transformer's on latents."""
    first = preset_arguments(TokenizerArguments, tokenizer)
    autoencoder = build_autoencoder(first.autoencoder, first.autoencoder_overrides)
    autoencoder.save_pretrained(folder / "autoencoder")
    _write_noise(folder / "images", autoencoder.config.sample_size)
    run = {
        "train_data": folder / "images",
        "heldout_data": folder / "images",
        "train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
        "mixed_precision": "bf16" if _takes_bf16(device) else "no",
        "compile": False,
        "report_to": "none",
        "log_steps": 10**6,
    }
    of_decoder = {"autoencoder": folder / "autoencoder", "output_dir": folder / "decoder"}
    training = preset_arguments(TokenizerArguments, tokenizer, **run, output_dir=folder / "tokenizer")
    decoding = preset_arguments(DecoderArguments, decoder, **run, **of_decoder)
    dit = preset_arguments(DiTArguments, transformer)
    with without_pretrained_weights():
        steps = {
            TOKENIZER_STEP: Step(_image_step(training), tokenizer_cost(training), first),
            DECODER_STEP: Step(
                _image_step(decoding),
                # Of the saved one, its shape: weights have no place where nothing is computed.
                decoder_cost(replace(decoding, autoencoder=str(folder / "autoencoder" / "config.json"))),
                preset_arguments(DecoderArguments, decoder, autoencoder="unused"),
            ),
        }
    take = _transformer_step(device, dit, latent_shape(autoencoder), batch_size)
    return {**steps, TRANSFORMER_STEP: Step(take, transformer_cost(dit, autoencoder), dit)}


def _takes_bf16(device: torch.device) -> bool:
    """Whether steps are in bf16. Most CPUs emulate it, and take several times as long for a step as in fp32."""
    return device.type == "cuda"


def _write_noise(folder: Path, side: int) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    (folder / "noise").mkdir(parents=True)
    for index in range(_IMAGES):
        pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "noise" / f"{index}.png")


def _image_step(arguments: TokenizerArguments | DecoderArguments) -> Callable[[], Any]:
    """One near the end of the schedule, where every term is on, and without an entry in the log."""
    from tcae_diffusers.training import finetune_decoder, train_tcae
    from tcae_diffusers.training.single_steps import SteppedTraining

    start: Callable[[Any], ReconstructionTraining] = train_tcae.start
    if isinstance(arguments, DecoderArguments):
        start = finetune_decoder.start
    stepped = SteppedTraining(start, arguments)
    batch = next(stepped.batches)
    step = arguments.max_train_steps - 2
    return lambda: stepped.step(step, iter([batch]))


def _transformer_step(
    device: torch.device, arguments: DiTArguments, shape: tuple[int, int, int], batch_size: int
) -> Callable[[], Any]:
    """Forward, backward and optimizer step on latents in memory."""
    from tcae_diffusers.training.dit_objectives import build_objective, compute_losses
    from tcae_diffusers.training.dit_transformers import build_transformer

    sizes = (arguments.num_layers, arguments.num_attention_heads, arguments.attention_head_dim, arguments.patch_size)
    model = build_transformer(arguments.transformer, shape, CLASSES, CLASSES, *sizes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    objective, generator = build_objective(arguments, [shape]), torch.Generator(device).manual_seed(0)
    latents = torch.randn(batch_size, *shape, generator=generator, device=device)
    labels = torch.randint(CLASSES, (batch_size,), generator=generator, device=device)

    def step() -> None:
        randomness = {
            "noise": torch.randn(latents.shape, generator=generator, device=device),
            "levels": objective.draw_levels(batch_size, generator, device),
            "drop": torch.rand(batch_size, generator=generator, device=device) < 0.1,
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=_takes_bf16(device)):
            loss = compute_losses(model, objective, latents, labels, CLASSES, randomness)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
