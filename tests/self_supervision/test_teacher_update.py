import copy

import pytest
import torch
from torch import nn

from tcae_diffusers.self_supervision.teacher import update_teacher


def make_student():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_teacher_is_the_moving_average_over_several_steps():
    student, head = make_student(), nn.Linear(4, 2)
    teacher, teacher_head = (copy.deepcopy(m).requires_grad_(False) for m in (student, head))
    expected = {n: p.detach().double() for n, p in teacher.named_parameters()}
    for momentum in (0.9, 0.99, 0.5):
        for parameter in [*student.parameters(), *head.parameters()]:
            parameter.data.add_(torch.randn_like(parameter))
        student[1].running_mean.add_(1.0)
        student[1].num_batches_tracked.add_(1)
        update_teacher([student, head], [teacher, teacher_head], momentum)
        for name, parameter in student.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach().double()
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert parameter.grad is None and not parameter.requires_grad
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    assert teacher[1].num_batches_tracked == 3


def test_an_fp32_teacher_follows_a_bf16_student_and_a_bf16_teacher_is_refused():
    student = nn.Linear(2, 2)
    teacher = copy.deepcopy(student)
    student.to(torch.bfloat16).weight.data.add_(1.0)
    before = teacher.weight.detach().clone()
    update_teacher([student], [teacher], 0.9999)
    assert ((teacher.weight - before) > 5e-5).all()
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16; keep the teacher in torch\.float32"):
        update_teacher([student], [teacher.to(torch.bfloat16)], 0.9999)


def test_a_teacher_may_hold_less_than_the_student_but_not_more():
    student = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    teacher = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    update_teacher([student], [teacher], 0.0)
    torch.testing.assert_close(teacher["encoder"].weight, student["encoder"].weight)
    with pytest.raises(ValueError, match=r"parameters 0.decoder.weight .*, the student nothing"):
        update_teacher([teacher], [student], 0.5)
    with pytest.raises(ValueError, match="in pairs"):
        update_teacher([student], [teacher, teacher], 0.5)
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        update_teacher([student], [teacher], 1.5)
