"""Images per second of the paper's tokenizer and of a diffusion transformer on one GPU."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.metrics.latency import time_in_turns
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.count_steps import tokenizer_step_cost, transformer_step_cost
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.step_cost import StepCost, part_text
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

DESCRIPTION = "on a GPU, in bf16: images/s of encoding, decoding and training, and what bf16 and compilation give"

_CLASSES = 1000
TOKENIZER_STEP = "tokenizer step with iBOT"


def run(arguments: BenchArguments) -> dict[str, Any]:
    """Nothing is measured where there is no GPU."""
    if not torch.cuda.is_available():
        return {"no GPU": "nothing to measure on this machine"}
    return measure(torch.device("cuda"), arguments)


def measure(
    device: torch.device,
    arguments: BenchArguments,
    tokenizer: str = "tc-ae-f32c128",
    transformer: str = "tc-dit-b",
    batch_size: int = 32,
    compile: bool = True,
) -> dict[str, Any]:
    """
    Times every part once per round, in turns, for at least three rounds after one that is not counted.

    Args:
        device: Where; accelerate must choose the same for training.
        arguments: `seconds` is the time budget, without the first round; the peak rate and utilisation of the model.
        tokenizer, transformer: Presets. Images have the tokenizer's `sample_size`.
        batch_size: Images of each call.
        compile: Whether to measure compiled blocks beside eager ones.

    Returns:
        A flat table of images/s, medians over the rounds, of ratios of rates in the same rounds, and of what the steps
        were expected to do, see [`training_cost`].
    """
    with tempfile.TemporaryDirectory(prefix="tcae-bench-") as folder:
        training = _tokenizer_arguments(Path(folder), tokenizer, batch_size)
        parts = {
            **_inference(device, tokenizer, batch_size, compile),
            TOKENIZER_STEP: _tokenizer_step(training),
            f"{transformer} step": _transformer_step(device, tokenizer, transformer, batch_size),
        }
        costs = {
            TOKENIZER_STEP: tokenizer_step_cost(training),
            f"{transformer} step": _transformer_cost(tokenizer, transformer),
        }
        times = time_in_turns(parts, device, arguments.seconds)
    table = _table(times, device, batch_size)
    return table | _against_the_model(table, costs, arguments)


def _against_the_model(table: dict[str, Any], costs: dict[str, StepCost], arguments: BenchArguments) -> dict[str, Any]:
    """Cost of each step by part, images/s that follow from it at the expected utilisation, and what was reached."""
    found: dict[str, Any] = {}
    for name, cost in costs.items():
        measured, expected = table[f"{name} (images/s)"], arguments.model_rate(cost.total)
        for part in cost.forward:
            found[f"{name}: {part} (GMAC per image)"] = part_text(cost, part)
        found[f"{name}: all (GMAC per image)"] = cost.total / 1e9
        found[f"{name}: images/s expected at {arguments.utilisation:.0%} of the peak"] = expected
        found[f"{name}: measured / model"] = measured / expected
        found[f"{name}: share of {arguments.peak_tflops:g} TFLOP/s"] = arguments.utilisation * measured / expected
    return found


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


def _tokenizer_arguments(folder: Path, tokenizer: str, batch_size: int) -> TokenizerArguments:
    """Arguments of `train_tcae` with iBOT, on images of noise in `folder`."""
    import numpy as np
    from PIL import Image

    from tcae_diffusers.models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS

    size = AUTOENCODER_TC_PRESETS[tokenizer]["sample_size"]
    noise = np.random.default_rng(0)
    (folder / "images" / "noise").mkdir(parents=True)
    for index in range(8):
        pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "noise" / f"{index}.png")
    options = {
        "autoencoder": tokenizer,
        "train_data": folder / "images",
        "output_dir": folder / "run",
        "train_batch_size": batch_size,
        "mixed_precision": "bf16",
        "report_to": "none",
        "log_steps": 10**6,
        "max_train_steps": 10**6,
    }
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return parse_arguments(TokenizerArguments, argv)


def _tokenizer_step(arguments: TokenizerArguments) -> Callable[[], Any]:
    """`train_tcae`'s whole step, from uint8 batches in pinned memory to weights, average and teacher."""
    from tcae_diffusers.training.single_steps import SteppedTraining

    stepped = SteppedTraining(arguments)
    batch = next(stepped.batches)
    return lambda: stepped.step(0, iter([batch]))


def _latent_shape(tokenizer: str) -> tuple[int, int, int]:
    from tcae_diffusers.models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS

    preset = AUTOENCODER_TC_PRESETS[tokenizer]
    side = preset["sample_size"] // preset["spatial_compression_ratio"]
    return preset["latent_channels"], side, side


def _transformer_cost(tokenizer: str, transformer: str) -> StepCost:
    options = ["--transformer", transformer, "--latents", "unused", "--tokenizer", "unused", "--output_dir", "unused"]
    arguments = parse_arguments(DiTArguments, options)
    return transformer_step_cost(arguments, _latent_shape(tokenizer), _CLASSES)


def _transformer_step(device: torch.device, tokenizer: str, transformer: str, batch_size: int) -> Callable[[], Any]:
    """Forward, backward and optimizer step of flow matching on latents in memory."""
    from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective
    from tcae_diffusers.training.dit_objectives import compute_losses
    from tcae_diffusers.training.dit_transformers import build_transformer

    shape = _latent_shape(tokenizer)
    model = build_transformer(transformer, shape, _CLASSES, _CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    objective, generator = FlowMatchingObjective(), torch.Generator(device).manual_seed(0)
    latents = torch.randn(batch_size, *shape, generator=generator, device=device)
    labels = torch.randint(_CLASSES, (batch_size,), generator=generator, device=device)

    def step() -> None:
        randomness = {
            "noise": torch.randn(latents.shape, generator=generator, device=device),
            "levels": objective.draw_levels(batch_size, generator, device),
            "drop": torch.rand(batch_size, generator=generator, device=device) < 0.1,
        }
        with torch.autocast(device.type, torch.bfloat16):
            loss = compute_losses(model, objective, latents, labels, _CLASSES, randomness)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
