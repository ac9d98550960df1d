"""Gradient norms by part, and how gradients are clipped."""

from types import SimpleNamespace

import torch

from tcae_diffusers.objectives.latent_shaping import ShapingChain
from tcae_diffusers.self_supervision.self_distillation import DistillationParts
from tcae_diffusers.self_supervision.student import TokenizerStudent
from tcae_diffusers.trainer.fit import Side, clip_gradients
from tcae_diffusers.trainer.gradient_norms import gradient_norms

from ..self_supervision.recipes import head_and_loss


def test_parts_add_up_to_the_whole(tiny_tcae):
    head, _ = head_and_loss("ibot", 32, out_dim=8)
    student = TokenizerStudent(tiny_tcae, DistillationParts(head, 32, "last"), ShapingChain())
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    parts = gradient_norms(student)
    total = torch.nn.utils.get_total_norm([parameter.grad for parameter in student.parameters()])
    assert set(parts) == {f"train/grad_norm_{part}" for part in ("encoder", "decoder", "head")}
    torch.testing.assert_close(torch.stack(list(parts.values())).norm(), total, rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped_together_or_each_by_itself(tiny_tcae):
    side = Side(tiny_tcae, tiny_tcae, torch.optim.AdamW(tiny_tcae.parameters()))
    given = [torch.randn_like(parameter) for parameter in tiny_tcae.parameters()]
    total = torch.nn.utils.get_total_norm(given)
    for clipping in ("norm", "per_tensor"):
        for parameter, gradient in zip(tiny_tcae.parameters(), given, strict=True):
            parameter.grad = gradient.clone()
        norm = clip_gradients(side, SimpleNamespace(grad_clipping=clipping, max_grad_norm=2.0))
        torch.testing.assert_close(norm, total)
        for parameter, gradient in zip(tiny_tcae.parameters(), given, strict=True):
            scale = 2.0 / (total if clipping == "norm" else gradient.norm())
            torch.testing.assert_close(parameter.grad, gradient * scale.clamp(max=1.0), rtol=1e-4, atol=1e-6)
