import pytest
import torch
from torch import nn

from tcae_diffusers.models.discriminator import FrozenFeatureDiscriminator, PatchGANDiscriminator


def test_patchgan_is_the_published_one():
    """The 70x70 PatchGAN of pix2pix with VQGAN's batch norm."""
    model = PatchGANDiscriminator(norm_type="batch")
    convs = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    biases_of_first_and_last, batch_norms = 64 + 1, 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in model.parameters()) == convs + biases_of_first_and_last + batch_norms == 2_765_633
    assert model(torch.zeros(2, 3, 256, 256))[0].shape == (2, 1, 30, 30)
    # The receptive field of one logit, by its gradient.
    images = torch.zeros(1, 3, 256, 256, requires_grad=True)
    PatchGANDiscriminator(base_channels=4, norm_type="none")(images)[0][0, 0, 15, 15].backward()
    assert images.grad.abs().sum(dim=(0, 1, 2)).count_nonzero() == 70


@pytest.mark.parametrize("norm_type", ["group", "none"])
def test_an_image_is_judged_alone_without_batch_norm(norm_type):
    model = PatchGANDiscriminator(base_channels=8, norm_type=norm_type)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images)[0][:2], model(images[:2])[0])


def test_frozen_feature_discriminator_has_one_head_per_feature_map():
    model = FrozenFeatureDiscriminator([8, 12], hidden_channels=6)
    logits = model([torch.randn(2, 8, 16, 16), torch.randn(2, 12, 8, 8)])
    assert [tuple(head.shape) for head in logits] == [(2, 1, 16, 16), (2, 1, 8, 8)]


def test_every_layer_of_a_head_is_spectrally_normalised():
    model = FrozenFeatureDiscriminator([16])
    for _ in range(30):  # the power iteration settles over forwards
        model([torch.randn(2, 16, 4, 4)])
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 3
    for conv in convs:
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (PatchGANDiscriminator(base_channels=8), torch.ones(1, 3, 24, 24)),
        (PatchGANDiscriminator(base_channels=8, num_layers=1, norm_type="batch"), torch.ones(1, 3, 8, 8)),
        (FrozenFeatureDiscriminator([8, 4]), [torch.ones(1, 8, 4, 4), torch.ones(1, 4, 2, 2)]),
    ],
)
def test_saved_and_loaded_discriminators_agree_to_the_bit(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = type(model).from_pretrained(tmp_path)
    for a, b in zip(loaded.eval()(inputs), model.eval()(inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGANDiscriminator(norm_type="layer"), "norm_type is 'layer'; expected one of group"),
        (lambda: PatchGANDiscriminator(num_layers=0), "num_layers is 0"),
        (lambda: PatchGANDiscriminator()(torch.zeros(1, 3, 16, 32)), "expected at least 24"),
        (lambda: FrozenFeatureDiscriminator([]), "feature_channels is empty"),
        (lambda: FrozenFeatureDiscriminator([4])([]), "got 0 feature maps for 1 heads"),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
