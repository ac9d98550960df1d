import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrizations import weight_norm

from tcae_diffusers.self_supervision.self_distillation_head import SelfDistillationHead

SIZES = {"embed_dim": 8, "out_dim": 16, "hidden_dim": 12, "bottleneck_dim": 6}


def test_the_defaults_are_those_of_the_ibot_release():
    with torch.device("meta"):
        head = SelfDistillationHead(768)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "mlp.layers.0.weight": (2048, 768),
        "mlp.layers.0.bias": (2048,),
        "mlp.layers.1.weight": (2048, 2048),
        "mlp.layers.1.bias": (2048,),
        "mlp.layers.2.weight": (256, 2048),
        "mlp.layers.2.bias": (256,),
        "last_layer.weight": (8192, 256),
    }


def test_the_last_layer_is_torch_weight_norm_with_a_gain_of_one():
    head = SelfDistillationHead(**SIZES)
    reference = weight_norm(torch.nn.Linear(6, 16, bias=False))
    reference.parametrizations.weight.original0.data.fill_(1.0)
    reference.parametrizations.weight.original1.data.copy_(head.last_layer.weight)
    bottleneck = torch.nn.functional.normalize(torch.randn(5, 6), dim=-1)
    torch.testing.assert_close(head.last_layer(bottleneck), reference(bottleneck))
    cotangent = torch.randn(5, 16)
    head.last_layer(bottleneck).backward(cotangent)
    reference(bottleneck).backward(cotangent)
    torch.testing.assert_close(head.last_layer.weight.grad, reference.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("sharing", ["shared", "semi_shared", "separate"])
def test_sharing_decides_which_parameters_patch_tokens_train(sharing):
    head = SelfDistillationHead(**SIZES, sharing=sharing)
    class_logits, patch_logits = head(torch.randn(2, 3, 8), torch.randn(5, 8))
    assert class_logits.shape == (2, 3, 16) and patch_logits.shape == (5, 16)
    assert class_logits.abs().max() <= 1 + 1e-6
    patch_logits.sum().backward()
    trained = {n.split(".")[0] for n, p in head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {
        "shared": {"mlp", "last_layer"},
        "semi_shared": {"mlp", "patch_last_layer"},
        "separate": {"patch_mlp", "patch_last_layer"},
    }
    assert trained == expected[sharing]


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_class_logits_do_not_depend_on_the_patch_tokens_beside_them(sharing):
    head = SelfDistillationHead(**SIZES, sharing=sharing)
    class_tokens, patch_tokens = torch.randn(2, 3, 8), torch.randn(5, 8)
    together, patches = head(class_tokens, patch_tokens)
    torch.testing.assert_close(together, head(class_tokens)[0])
    torch.testing.assert_close(patches, head(class_tokens[:1], patch_tokens)[1])


def test_head_copies_and_saves_like_plain_parameters(tmp_path):
    head = SelfDistillationHead(**SIZES, sharing="semi_shared")
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    restored = SelfDistillationHead(**SIZES, sharing="semi_shared")
    restored.load_state_dict(load_file(tmp_path / "head.safetensors"))
    tokens = torch.randn(4, 8)
    for other in (restored, copy.deepcopy(head)):
        torch.testing.assert_close(other(tokens)[0], head(tokens)[0], rtol=0, atol=0)


def test_logits_stay_fp32_under_autocast():
    head = SelfDistillationHead(**SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        class_logits, patch_logits = head(torch.randn(3, 8), torch.randn(2, 8))
    assert class_logits.dtype == patch_logits.dtype == torch.float32


def test_a_frozen_last_layer_stays_while_the_rest_learns():
    head = SelfDistillationHead(**SIZES, sharing="semi_shared")
    before = copy.deepcopy(head.state_dict())
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.4)
    for frozen in (True, False):
        for _ in range(2):  # two accumulated backwards a step
            class_logits, patch_logits = head(torch.randn(3, 8), torch.randn(2, 8))
            (class_logits.square().sum() + patch_logits.square().sum()).backward()
        if frozen:
            head.cancel_last_layer_gradients()
        optimizer.step()
        optimizer.zero_grad()
        moved = {n for n, p in head.named_parameters() if not torch.equal(p, before[n])}
        last_layers = {"last_layer.weight", "patch_last_layer.weight"}
        assert moved == set(before) - (last_layers if frozen else set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "both"}, "sharing is 'both'; expected one of shared"),
        ({"patch_out_dim": 4}, "a shared head has one last layer"),
        ({"bottleneck_dim": 0}, "bottleneck_dim is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillationHead(**{**SIZES, **options})
    with pytest.raises(ValueError, match="predict_patches=False"):
        SelfDistillationHead(**SIZES, predict_patches=False)(torch.zeros(1, 8), torch.zeros(1, 8))
