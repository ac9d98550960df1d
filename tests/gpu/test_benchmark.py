"""The benchmark for GPUs, on a tiny tokenizer where there is none."""

import pytest
import torch

from tcae_diffusers.training import bench
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.benchmarks import gpu
from tcae_diffusers.training.benchmarks.training_cost import CLASSES, preset_arguments
from tcae_diffusers.training.count_steps import transformer_step_cost
from tcae_diffusers.training.dit_arguments import DiTArguments

from ..latent_commands import reset_accelerate


def test_every_part_is_timed_and_compared(device):
    compiled, short = device != "cpu", BenchArguments(seconds=0.0, utilisation=0.5, peak_tflops=2.0, gpus=3)
    try:
        presets = ("openmoji32", "openmoji32_decoder", "openmoji32_dit")
        table = gpu.measure(torch.device(device), short, *presets, batch_size=2, compile=compiled)
    finally:
        reset_accelerate()
    rates = {name: value for name, value in table.items() if name.endswith("(images/s)")}
    assert len(rates) == (9 if compiled else 7) and all(rate > 0 for rate in rates.values())
    assert table["encode: bf16 / fp32"] > 0 and table["tokenizer step / encode"] > 0
    assert table["rounds"] == 3
    steps = {"tokenizer step": (16, 600), "decoder step": (16, 300), "transformer step": (64, 1200)}
    for step, (batch, count) in steps.items():
        # 1e12 FLOP/s are expected, at two of them for a multiply-accumulate.
        expected, cost = table[f"{step}: images/s expected at 50% of the peak"], table[f"{step}: all (GMAC per image)"]
        assert expected == pytest.approx(1e12 / (2e9 * cost))
        assert table[f"{step}: measured / model"] == pytest.approx(table[f"{step} (images/s)"] / expected)
        share = table[f"{step}: share of 2 TFLOP/s"]
        assert share == pytest.approx(table[f"{step} (images/s)"] * 2e9 * cost / 2e12)
        # Days of the whole preset, at the rate that was measured with another batch.
        days = count * batch / table[f"{step} (images/s)"] / 86400
        assert table[f"{step}: days on 3 GPUs"] == f"{days:.2f}"
        assert table[f"{step}: steps x batch"] == f"{count} x {3 * batch}"
    # Latents of 32x32 pixels, for which openmoji32 is made.
    on_paper = transformer_step_cost(preset_arguments(DiTArguments, "openmoji32_dit"), (32, 4, 4), CLASSES)
    assert table["transformer step: all (GMAC per image)"] == pytest.approx(on_paper.total / 1e9)
    parts = {"tokenizer step: teacher", "decoder step: perceptual loss", "decoder step: discriminator"}
    assert {f"{part} (GMAC per image)" for part in parts} <= table.keys()
    cores = float(table["tokenizer step: loader cores for a GPU"])
    loader = float(table["tokenizer step: images/s of a loader's core"])
    assert cores == pytest.approx(table["tokenizer step (images/s)"] / loader, abs=0.1)
    assert "transformer step: loader cores for a GPU" not in table


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["gpu"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("== gpu: ") and len(lines) == 1 and "no GPU" in lines[0]
