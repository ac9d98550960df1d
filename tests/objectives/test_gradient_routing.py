"""Each loss term gives gradient to what it should and to nothing else: one row per term."""

import copy

import pytest
import torch
from torch import nn

from tcae_diffusers.models.discriminator import FrozenFeatureDiscriminator, PatchGANDiscriminator
from tcae_diffusers.objectives.adversarial import AdversarialLoss
from tcae_diffusers.objectives.feature_backbones import EfficientNetLiteFeatures
from tcae_diffusers.objectives.perceptual import EfficientNetFeatureLoss, LPIPSLoss
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens

from ..self_supervision.recipes import head_and_loss

BATCH, TOKENS, DIM = 2, 16, 12


class Encoder(nn.Module):
    """Images (B, 3, 32, 32) -> a class token and 16 patch tokens, each with weights of its own."""

    def __init__(self):
        super().__init__()
        self.to_class = nn.Linear(3 * 32 * 32, DIM)
        self.to_patches = nn.Conv2d(3, DIM, kernel_size=8, stride=8)

    def forward(self, images):
        return self.to_class(images.flatten(1)), self.to_patches(images).flatten(2).transpose(1, 2)


class Networks(nn.ModuleDict):
    """A miniature of everything that takes part in training, student and teacher, generator and discriminator."""

    def __init__(self, backbone, lpips, feature_distance):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.decoder = nn.ConvTranspose2d(DIM, 3, kernel_size=8, stride=8)
        head, self.ssl_loss = head_and_loss(
            "dinov2", DIM, out_dim=8, hidden_dim=16, bottleneck_dim=6, centering="momentum"
        )
        self.head = head
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(head).requires_grad_(False)
        self.patch_gan = PatchGANDiscriminator(base_channels=8)
        self.feature_gan = FrozenFeatureDiscriminator(backbone.feature_channels, hidden_channels=8)
        self.backbone = backbone
        self.lpips = lpips
        self.feature_distance = feature_distance
        self.images = torch.rand(BATCH, 3, 32, 32) * 2 - 1

    def reconstruct(self):
        _, tokens = self.encoder(self.images)
        return self.decoder(tokens.transpose(1, 2).unflatten(2, (4, 4)))

    def distill(self):
        views = torch.stack([self.images, self.images.flip(3)])
        class_tokens, patch_tokens = self.encoder(views.flatten(0, 1))
        teacher_class, teacher_patches = self.teacher(views.flatten(0, 1))
        mask = torch.zeros(2 * BATCH, TOKENS, dtype=torch.bool)
        mask[::2, ::3] = True
        masked = MaskedTokens.from_mask(mask)
        class_tokens, teacher_class = class_tokens.unflatten(0, (2, BATCH)), teacher_class.unflatten(0, (2, BATCH))
        logits, patch_logits = self.head(class_tokens, masked.gather(patch_tokens))
        # The teacher deliberately runs with gradients enabled: the loss itself must cut them off.
        self.teacher.requires_grad_(True)
        self.teacher_head.requires_grad_(True)
        targets, patch_targets = self.teacher_head(teacher_class, masked.gather(teacher_patches))
        return self.ssl_loss(
            logits,
            targets,
            patch_logits,
            patch_targets,
            masked,
            teacher_temperature=0.04,
            student_class_tokens=class_tokens,
        )

    def generator_loss(self, discriminator, **options):
        sample = self.reconstruct()
        reconstruction = (sample - self.images).abs().mean()
        loss_fn = AdversarialLoss(augment=("color", "cutout"), **options)
        generator = torch.Generator().manual_seed(0)
        return loss_fn.generator_loss(discriminator, sample, reconstruction, self.decoder.weight, generator).loss

    def discriminator_loss(self, discriminator, **options):
        loss_fn = AdversarialLoss(lecam_weight=0.1, r1_weight=1.0, **options)
        loss_fn.lecam_updates += 1
        return loss_fn.discriminator_loss(discriminator, self.images, self.reconstruct(), step=0)


HEAD_CLASS, HEAD_PATCH = {"head.mlp", "head.last_layer"}, {"head.patch_mlp", "head.patch_last_layer"}
AUTOENCODER = {"encoder.to_patches", "decoder"}

# Term, what it is, and every part of the networks that gets a gradient.
ROUTES = [
    ("L_[CLS]", lambda n: n.distill().loss_cls, {"encoder.to_class"} | HEAD_CLASS),
    ("L_MIM", lambda n: n.distill().loss_mim, {"encoder.to_patches"} | HEAD_PATCH),
    ("L_KoLeo", lambda n: n.distill().loss_koleo, {"encoder.to_class"}),
    ("pixel", lambda n: ReconstructionLoss()(n.reconstruct(), n.images).loss, AUTOENCODER),
    ("MSE", lambda n: ReconstructionLoss("mse")(n.reconstruct(), n.images).loss, AUTOENCODER),
    ("LPIPS", lambda n: n.lpips(n.reconstruct(), n.images), AUTOENCODER),
    ("feature distance", lambda n: n.feature_distance(n.reconstruct(), n.images), AUTOENCODER),
    ("GAN, generator", lambda n: n.generator_loss(n.patch_gan), AUTOENCODER),
    (
        "GAN, generator on features",
        lambda n: n.generator_loss(n.feature_gan, feature_backbone=n.backbone),
        AUTOENCODER,
    ),
    ("GAN, discriminator", lambda n: n.discriminator_loss(n.patch_gan).loss_gan, {"patch_gan"}),
    ("R1", lambda n: n.discriminator_loss(n.patch_gan).loss_r1, {"patch_gan"}),
    ("LeCam", lambda n: n.discriminator_loss(n.patch_gan).loss_lecam, {"patch_gan"}),
    (
        "GAN, discriminator on features",
        lambda n: n.discriminator_loss(n.feature_gan, feature_backbone=n.backbone).loss,
        {"feature_gan"},
    ),
]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return (
        EfficientNetLiteFeatures("efficientnet-lite0"),
        LPIPSLoss("squeeze", str(path)),
        EfficientNetFeatureLoss("efficientnet-lite0"),
    )


def parts_with_gradient(networks):
    parts = set()
    for name, parameter in networks.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().sum() > 0:
            first, second = name.split(".")[:2]
            parts.add(f"{first}.{second}" if first in ("encoder", "head", "teacher", "teacher_head") else first)
    return parts


@pytest.mark.parametrize(("term", "compute", "expected"), ROUTES, ids=[route[0] for route in ROUTES])
def test_term_reaches_what_it_should_and_nothing_else(term, compute, expected, frozen):
    networks = Networks(*frozen)
    compute(networks).backward()
    assert parts_with_gradient(networks) == expected
    untouched = [n for n, p in networks.named_parameters() if p.grad is not None and p.grad.isnan().any()]
    assert not untouched, f"gradients of {term} that are not numbers"


@pytest.mark.parametrize("term", ["pixel", "LPIPS", "feature distance", "GAN, generator"])
def test_a_frozen_encoder_gets_none_and_the_decoder_still_learns(term, frozen):
    networks = Networks(*frozen)
    networks.encoder.requires_grad_(False)
    compute = next(route[1] for route in ROUTES if route[0] == term)
    compute(networks).backward()
    assert parts_with_gradient(networks) == {"decoder"}
    assert all(p.grad is None for p in networks.encoder.parameters())


def test_frozen_networks_stay_frozen_inside_a_model_in_training_mode(frozen):
    networks = Networks(*frozen).train()
    for name in ("backbone", "lpips", "feature_distance"):
        assert not any(m.training for m in networks[name].modules()), name
        assert not any(p.requires_grad for p in networks[name].parameters()), name
