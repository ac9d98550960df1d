"""Gradient norms by part add up to the norm before clipping."""

import pytest
import torch

from tcae_diffusers.self_supervision.self_distillation import DistillationParts
from tcae_diffusers.self_supervision.student import TokenizerStudent
from tcae_diffusers.trainer.gradient_norms import gradient_norms

from ..self_supervision.recipes import head_and_loss


@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_parts_add_up_to_the_whole_whether_it_was_clipped_or_not(tiny_tcae, max_norm):
    head, _ = head_and_loss("ibot", 32, out_dim=8)
    student = TokenizerStudent(tiny_tcae, DistillationParts(head, 32, "last"))
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    total = torch.nn.utils.clip_grad_norm_(student.parameters(), max_norm)
    parts = gradient_norms(student, total, max_norm)
    assert set(parts) == {f"train/grad_norm_{part}" for part in ("encoder", "decoder", "head")}
    torch.testing.assert_close(torch.stack(list(parts.values())).norm(), total, rtol=1e-3, atol=1e-4)
