"""The benchmark for GPUs, on a tiny tokenizer where there is none."""

import torch

from tcae_diffusers.training import bench
from tcae_diffusers.training.benchmarks import gpu

from ..latent_commands import reset_accelerate


def test_every_part_is_timed_and_compared(device):
    compiled = device != "cpu"
    try:
        table = gpu.measure(torch.device(device), 0.0, "tc-ae-xs-f8c32", "tc-dit-s", batch_size=2, compile=compiled)
    finally:
        reset_accelerate()
    rates = {name: value for name, value in table.items() if name.endswith("(images/s)")}
    assert len(rates) == (8 if compiled else 6) and all(rate > 0 for rate in rates.values())
    assert table["encode: bf16 / fp32"] > 0 and table["tokenizer step / encode"] > 0
    assert table["rounds"] == 3


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["gpu"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("== gpu: ") and len(lines) == 1 and "no GPU" in lines[0]
