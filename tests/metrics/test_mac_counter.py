"""Multiply-accumulates: known modules, every attention kernel, and the two autoencoders whose cost is published."""

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.mac_counter import FlopCounter, count_macs
from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.named_models import AUTOENCODER_DC_F32C128, build_named_autoencoder


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 7 * 5),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 10), 2 * 8 * 10 * 4 * 6 * 9),
        (nn.Conv2d(4, 6, 3, stride=2), (1, 4, 9, 9), 4 * 4 * 4 * 6 * 9),
        (nn.Conv2d(8, 8, 3, groups=8, padding=1), (1, 8, 5, 5), 25 * 8 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
        (nn.Conv1d(3, 4, 5), (2, 3, 12), 2 * 8 * 3 * 4 * 5),
        (nn.LayerNorm(8), (3, 8), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_known_modules(module, shape, expected, device):
    assert count_macs(module.to(device), torch.empty(shape, device=device)).total == expected


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(8, 5),
        nn.Conv2d(8, 6, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
    ],
    ids=str,
)
def test_a_backward_pass_costs_as_much_for_each_of_input_and_weight_as_the_forward_pass(module, device):
    module = module.to(device)
    for wanted in (True, False):
        inputs = torch.zeros(2, 8, 6, 8, device=device, requires_grad=wanted)
        forward = count_macs(module, inputs).total
        with FlopCounter() as counter:
            module(inputs).sum().backward()
        assert counter.get_total_flops() / 2 == (3 if wanted else 2) * forward


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda: torch.mv(torch.ones(3, 4), torch.ones(4)), 12),
        (lambda: torch.dot(torch.ones(5), torch.ones(5)), 5),
        (lambda: torch.addmv(torch.ones(3), torch.ones(3, 4), torch.ones(4)), 12),
        (lambda: torch._addmm_activation(torch.ones(6), torch.ones(3, 4), torch.ones(4, 6)), 72),
        (lambda: torch._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)), 4096),
    ],
    ids=["mv", "dot", "addmv", "_addmm_activation", "_int_mm"],
)
def test_products_without_a_formula_in_torch_are_counted(product, expected):
    count = count_macs(product)
    assert count.total == expected and count.by_operator == {"matmul": expected}


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_products_are_counted_whichever_kernel_runs(device, grad_mode):
    query = torch.zeros(2, 3, 10, 8, device=device)
    key = torch.zeros(2, 3, 20, 8, device=device)
    with grad_mode():
        count = count_macs(F.scaled_dot_product_attention, query, key, key)
    assert count.total == 2 * 3 * 10 * 20 * (8 + 8)


def test_attention_written_by_hand_costs_the_same():
    query = torch.zeros(2, 3, 10, 8)
    by_hand = count_macs(lambda q: torch.einsum("bhqk,bhkd->bhqd", (q @ q.mT).softmax(-1), q), query)
    assert by_hand.total == count_macs(F.scaled_dot_product_attention, query, query, query).total


def test_dc_ae_costs_607_gmac_and_has_its_published_size():
    cost = autoencoder_cost(build_named_autoencoder("dc-ae-f32c128"))
    assert cost.total_macs / 1e9 == pytest.approx(607, abs=1)
    with torch.device("meta"):
        published = diffusers.AutoencoderDC(**{**AUTOENCODER_DC_F32C128, "latent_channels": 32})
    assert sum(p.numel() for p in published.parameters()) / 1e6 == pytest.approx(323, abs=1)


def test_tc_ae_costs_164_gmac():
    cost = autoencoder_cost(build_named_autoencoder("tc-ae-f32c128"))
    assert cost.total_macs / 1e9 == pytest.approx(164, rel=0.02)
    assert cost.latent_shape == (128, 8, 8)


def test_a_model_with_weights_is_counted_on_a_weightless_twin(tiny_autoencoder):
    cost = autoencoder_cost(tiny_autoencoder, 32, 64)
    assert cost.latent_shape == (4, 4, 8)
    assert cost.parameters == sum(p.numel() for p in tiny_autoencoder.parameters())
    assert not any(p.is_meta for p in tiny_autoencoder.parameters())
    pixels = torch.zeros(1, 3, 32, 64)
    assert cost.encode_macs == count_macs(tiny_autoencoder.encode, pixels).total


def test_a_size_that_does_not_fit_is_named(tiny_autoencoder):
    with pytest.raises(InputError, match="height 250 is not a multiple of 8"):
        autoencoder_cost(tiny_autoencoder, 250, 256)
