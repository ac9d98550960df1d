"""Activation memory on modules whose answer is known; the table of published autoencoders and transformers."""

import json

import pytest
import torch
from torch import nn

from tcae_diffusers.metrics.activation_memory import peak_inference_bytes, saved_training_bytes
from tcae_diffusers.metrics.latency import measure_latency
from tcae_diffusers.metrics.model_cost import autoencoder_cost, transformer_cost
from tcae_diffusers.models.named_models import build_named_autoencoder, build_transformer

from .conftest import evaluate


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_activations_of_known_modules(device):
    wide = nn.Sequential(nn.Linear(10, 100), nn.GELU(), nn.Linear(100, 10)).to(device)
    x = torch.zeros(4, 10, device=device)
    # The two wide tensors live together while GELU runs; the input and the weights do not count.
    assert peak_inference_bytes(wide, wide, x) == 2 * 4 * 100 * 4
    # Kept for the backward pass: the input, GELU's input and its output.
    assert saved_training_bytes(wide, wide, x) == 4 * (10 + 100 + 100) * 4
    assert not any(p.grad is not None for p in wide.parameters())


def test_a_tensor_that_is_let_go_does_not_count_twice():
    def chain(x):
        for _ in range(20):
            x = x * 2
        return x

    x = torch.zeros(1000, device="meta")
    assert peak_inference_bytes(nn.Identity(), chain, x) == 2 * 4000


def test_attention_keeps_its_inputs_and_output_and_no_matrix_of_pairs():
    query, key = torch.zeros(1, 2, 500, 8, device="meta"), torch.zeros(1, 2, 700, 8, device="meta")

    def attend(query, key):
        return torch.nn.functional.scaled_dot_product_attention(query * 1, key * 1, key * 1, scale=0.5)

    assert peak_inference_bytes(nn.Identity(), attend, query, key) == 2 * 8 * 4 * (500 + 700 + 700 + 500)


def test_memory_grows_with_the_number_of_pixels_not_with_its_square(tiny_autoencoder):
    small, large = (autoencoder_cost(tiny_autoencoder, size, size) for size in (32, 64))
    assert 3 < large.saved_training_bytes / small.saved_training_bytes < 6
    assert large.decode_peak_bytes > 2 * small.decode_peak_bytes
    assert small.saved_training_bytes > small.decode_peak_bytes


@pytest.mark.parametrize(
    ("name", "latent", "parameters"),
    [("dc-ae-f64c128", (128, 4, 4), 677e6), ("kl-f8", (4, 32, 32), 83.7e6), ("rae-dinov2-b", (768, 16, 16), None)],
)
def test_published_autoencoders_have_their_shapes(name, latent, parameters):
    cost = autoencoder_cost(build_named_autoencoder(name))
    assert cost.latent_shape == latent
    if parameters:
        assert cost.parameters == pytest.approx(parameters, rel=0.01)
    assert cost.encode_macs > 1e9
    assert cost.decode_macs > 1e9


def test_transformers_are_counted_by_name_and_from_a_folder(pipeline_folder, tmp_path, capsys):
    ours = transformer_cost(build_transformer("tc-dit-xl", (128, 8, 8)), (128, 8, 8))
    stock = transformer_cost(build_transformer("dit-xl", (128, 8, 8)), (128, 8, 8))
    # DiT-XL/2 is published with 118.6 GFLOP (MAC) on 256 tokens and 675 M parameters; 64 tokens cost about a quarter.
    assert stock.macs == pytest.approx(118.6e9 / 4, rel=0.05)
    assert ours.parameters == pytest.approx(stock.parameters, rel=0.1)
    command = ["cost", "tc-ae-xs-f8c32", "--height", "32", "--width", "32", "--latency", "--batch_size", "2"]
    command += ["--transformer", str(pipeline_folder), "--latent_shape", "4", "4", "4"]
    assert evaluate(*command, "--output", str(tmp_path / "cost.json")) == 0
    result = json.loads((tmp_path / "cost.json").read_text())
    assert result["transformers"][str(pipeline_folder)]["macs"] > 0
    latency = result["autoencoders"]["tc-ae-xs-f8c32"]["latency"]
    assert latency["encode_images_per_second"] == pytest.approx(2 / latency["encode_s"])
    assert {"command", "versions", "machine"} <= set(result)
    assert evaluate("report", "--results", str(tmp_path / "cost.json"), "--output", str(tmp_path / "r.html")) == 0
    page = (tmp_path / "r.html").read_text()
    assert "kept for training" in page and str(pipeline_folder) in page
    # What has no figures to set side by side is not left out without a word.
    costs = [f"{name}={tmp_path / 'cost.json'}" for name in ("a", "b")]
    assert evaluate("compare", "--results", *costs, "--output", str(tmp_path / "c")) == 2
    assert "--results a holds cost, whose figures cannot be set side by side" in capsys.readouterr().err
    assert evaluate("cost", "kl-f8", "--transformer", str(pipeline_folder)) == 2
    assert "takes 4 channels, --latent_shape has 128" in capsys.readouterr().err
    assert evaluate("cost", "kl-f8", "--transformer", "nothing") == 2
    assert "unknown transformer 'nothing'" in capsys.readouterr().err


def test_a_light_decoder_costs_less_than_a_quarter_behind_the_same_encoder():
    full, light = (autoencoder_cost(build_named_autoencoder(f"tc-ae-f32c128{variant}")) for variant in ("", "-light"))
    assert light.encode_macs == full.encode_macs
    assert round(full.decode_macs / 1e9, 1) == 82.0 and round(light.decode_macs / 1e9, 1) == 12.4


def test_throughput_is_per_part(tiny_autoencoder):
    latency = measure_latency(tiny_autoencoder, 32, 32, batch_size=3, repeats=1)
    together = 3 / (latency["encode_s"] + latency["decode_s"])
    assert latency["images_per_second"] == pytest.approx(together)
    assert latency["decode_images_per_second"] > latency["images_per_second"]
