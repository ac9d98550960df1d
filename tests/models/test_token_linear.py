"""TokenLinear computes what nn.Linear computes, whichever kernel runs, and steps aside where it must; a switch turns
models to it and back."""

import copy

import pytest
import torch
import torch.nn as nn

from tcae_diffusers.models import token_linear
from tcae_diffusers.models.token_linear import TokenLinear, disable_fast_cpu_linear, enable_fast_cpu_linear

needs_the_kernel = pytest.mark.skipif(
    not token_linear._ONEDNN_HAS_FASTER_LINEAR,
    reason="TokenLinear is nn.Linear here: no AVX-512, no oneDNN, or a processor on which MKL is as fast",
)


def twins(in_features: int, out_features: int) -> tuple[TokenLinear, nn.Linear]:
    torch.manual_seed(0)
    layer = TokenLinear(in_features, out_features)
    reference = nn.Linear(in_features, out_features)
    reference.load_state_dict(layer.state_dict())
    return layer, reference


def inputs():
    yield "contiguous", torch.randn(2, 65, 32)
    yield "without the class token", torch.randn(2, 66, 32)[:, 1:]
    yield "seen from a channels-first map", torch.randn(2, 32, 5, 13).permute(0, 2, 3, 1).flatten(1, 2)
    yield "transposed", torch.randn(2, 32, 65).transpose(1, 2)
    yield "one token", torch.randn(1, 1, 32)
    yield "no image", torch.randn(0, 65, 32)


@pytest.mark.parametrize(("name", "tokens"), list(inputs()))
def test_result_and_gradients_are_those_of_linear(name, tokens):
    layer, reference = twins(32, 48)
    with torch.no_grad():
        assert torch.allclose(layer(tokens), reference(tokens), atol=1e-5)
    leaves = tokens.detach().requires_grad_(), tokens.detach().clone().requires_grad_()
    outputs = layer(leaves[0]), reference(leaves[1])
    assert torch.allclose(*outputs, atol=1e-5)
    assert outputs[0].stride() == outputs[1].stride() or tokens.numel() == 0
    for output in outputs:
        (output.square() * torch.linspace(-1, 1, 48)).sum().backward()
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-4)
    assert torch.allclose(layer.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(layer.bias.grad, reference.bias.grad, rtol=1e-4, atol=1e-3)


def ran_linear(layer: TokenLinear, tokens: torch.Tensor, monkeypatch) -> bool:
    """Whether the call went to `nn.Linear`."""
    calls = []
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (calls.append(1), original(self, x))[1])
    layer(tokens)
    return bool(calls)


@needs_the_kernel
@pytest.mark.parametrize("grad", [False, True])
def test_the_fast_kernel_runs_in_fp32_on_a_cpu(monkeypatch, grad):
    layer, _ = twins(32, 48)
    with torch.set_grad_enabled(grad):
        assert not ran_linear(layer, torch.randn(2, 5, 32), monkeypatch)


@pytest.mark.parametrize(
    "case", ["half precision", "meta device", "two dimensions", "autocast", "quantised", "counted", "switched off"]
)
def test_everything_else_is_left_to_linear(monkeypatch, case):
    layer, _ = twins(32, 48)
    tokens = torch.randn(2, 5, 32)
    with torch.no_grad():
        if case == "half precision":
            assert ran_linear(layer.half(), tokens.half(), monkeypatch)
        elif case == "meta device":
            assert ran_linear(layer.to("meta"), tokens.to("meta"), monkeypatch)
        elif case == "two dimensions":
            assert ran_linear(layer, tokens[0], monkeypatch)
        elif case == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert ran_linear(layer, tokens, monkeypatch)
        elif case == "quantised":

            class Quantised(torch.Tensor):
                pass

            layer.weight = nn.Parameter(layer.weight.as_subclass(Quantised))
            assert ran_linear(layer, tokens, monkeypatch)
        elif case == "counted":
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                assert ran_linear(layer, tokens, monkeypatch)
            assert counter.get_total_flops() == 2 * 2 * 5 * 32 * 48
        else:
            with torch.backends.mkldnn.flags(enabled=False):
                assert ran_linear(layer, tokens, monkeypatch)


def test_a_jit_trace_holds_no_private_operator():
    layer, reference = twins(32, 48)
    tokens = torch.randn(2, 5, 32)
    with torch.no_grad():
        traced = torch.jit.trace(layer, tokens)
        assert "mkldnn" not in str(traced.inlined_graph)
        other = torch.randn(3, 7, 32)
        assert torch.allclose(traced(other), reference(other), atol=1e-5)


def test_it_is_a_linear_to_whoever_looks():
    layer, _ = twins(4, 4)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def linear_classes(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


def test_the_switch_turns_every_layer_of_a_model_and_back(tiny_tcae):
    images = torch.randn(2, 3, 64, 64)
    assert linear_classes(tiny_tcae) == {nn.Linear}
    with torch.no_grad():
        expected, names = tiny_tcae(images).sample, list(tiny_tcae.state_dict())
        enable_fast_cpu_linear(tiny_tcae)
        assert linear_classes(tiny_tcae) == {TokenLinear} and list(tiny_tcae.state_dict()) == names
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-5)
        tiny_tcae.fuse_qkv_projections()
        assert linear_classes(tiny_tcae) == {TokenLinear, nn.Linear}
        enable_fast_cpu_linear(tiny_tcae)
        assert linear_classes(tiny_tcae) == {TokenLinear}
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-5)
        tiny_tcae.unfuse_qkv_projections()
        disable_fast_cpu_linear(tiny_tcae)
        assert linear_classes(tiny_tcae) == {nn.Linear} and list(tiny_tcae.state_dict()) == names
        assert torch.equal(tiny_tcae(images).sample, expected)
