"""No loss waits for the device: on a GPU each of these operations would stall the step until all before it is done."""

import copy

import pytest
import torch

from tcae_diffusers.models.discriminator import PatchGANDiscriminator
from tcae_diffusers.objectives.adversarial import AdversarialLoss
from tcae_diffusers.objectives.perceptual import build_perceptual_loss
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.self_supervision.teacher import update_teacher

from ..waiting import ForbidReadingBack
from .recipes import head_and_loss


def images():
    return torch.rand(2, 3, 32, 32) * 2 - 1


@pytest.mark.parametrize("method", ["ibot", "dino", "dinov2"])
def test_self_distillation_step(method):
    head, loss_fn = head_and_loss(method, 8, out_dim=6, hidden_dim=8, bottleneck_dim=4)
    teacher_head = copy.deepcopy(head).requires_grad_(False)
    # The mask is counted where it is drawn: on the CPU, beside the data.
    masked = MaskedTokens.from_mask(torch.rand(2, 3, 16) < 0.5)
    tokens, patches = torch.randn(3, 3, 8), torch.randn(2, 3, 16, 8)
    with ForbidReadingBack():
        gathered = masked.to("cpu").gather(patches) if head.patch_out_dim else None
        logits, patch_logits = head(tokens, gathered)
        targets, patch_targets = teacher_head(tokens[:2], gathered)
        output = loss_fn(
            logits,
            targets,
            patch_logits,
            patch_targets,
            masked,
            teacher_temperature=0.04,
            student_class_tokens=tokens[:2],
        )
        output.loss.backward()
        loss_fn.discard_pending(torch.tensor(False))
        loss_fn.update_centers()
        update_teacher([head], [teacher_head], 0.9)


def test_reconstruction_step():
    loss_fn = ReconstructionLoss("charbonnier", mse_weight=1.0, perceptual=build_perceptual_loss("efficientnet-lite0"))
    sample, target = images().requires_grad_(), images()
    with ForbidReadingBack():
        loss_fn(sample, target).loss.backward()


def test_adversarial_step():
    discriminator = PatchGANDiscriminator(base_channels=4)
    loss_fn = AdversarialLoss(lecam_weight=0.1, r1_weight=1.0, augment=("color", "translation", "cutout"))
    sample, target, generator = images().requires_grad_(), images(), torch.Generator().manual_seed(0)
    with ForbidReadingBack():
        loss_fn.generator_loss(
            discriminator, sample, (sample - target).abs().mean(), sample, generator
        ).loss.backward()
        loss_fn.discriminator_loss(discriminator, target, sample, 0, generator).loss.backward()
        loss_fn.update_statistics()
