"""int8 weights, with and without int8 activations, through diffusers' quantisation config."""

import math
import warnings

import pytest
import torch
from diffusers import TorchAoConfig

from tcae_diffusers import AutoencoderTC

torchao = pytest.importorskip("torchao", reason="torchao is not installed: pip install 'tcae-diffusers[quantization]'")
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig  # noqa: E402


def psnr(images: torch.Tensor, reconstruction: torch.Tensor) -> float:
    return 10 * math.log10(4 / float((images - reconstruction.clamp(-1, 1)).square().mean()))


@pytest.mark.parametrize(
    ("config", "most_decibels_lost", "largest_error"),
    [(Int8WeightOnlyConfig, 0.05, 0.03), (Int8DynamicActivationInt8WeightConfig, 0.2, 0.06)],
)
def test_int8_costs_little_and_survives_saving(
    tcae_of_photographs, photograph, tmp_path, record_property, config, most_decibels_lost, largest_error
):
    tcae_of_photographs.save_pretrained(tmp_path / "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = AutoencoderTC.from_pretrained(
            tmp_path / "fp32", quantization_config=TorchAoConfig(config(version=2)), dtype=torch.float32
        )
    layers = [module for module in quantised.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == 4 * 6 + 5
    assert not [layer for layer in layers if type(layer.weight) is torch.nn.Parameter]

    images = torch.cat([photograph(name, 256) for name in ("rocket.jpg", "motorcycle_left.png", "retina.jpg")])
    with torch.no_grad():
        expected = tcae_of_photographs(images).sample
        before = psnr(images, expected)
        sample = quantised(images).sample
    lost = before - psnr(images, sample)
    record_property("decibels_lost", lost)
    error = ((sample - expected).norm() / expected.norm()).item()
    record_property("relative_error", error)
    # Against what it quantises: this model is so far from the photographs that much could go wrong unseen.
    assert 0 < error < largest_error
    assert before > 14
    assert lost < most_decibels_lost

    quantised.save_pretrained(tmp_path / "int8")
    size = {
        name: (tmp_path / name / "diffusion_pytorch_model.safetensors").stat().st_size for name in ("fp32", "int8")
    }
    weights_of_layers = sum(layer.weight.numel() for layer in layers)
    assert size["int8"] < size["fp32"] - 2.8 * weights_of_layers
    loaded = AutoencoderTC.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(images).sample, sample)
