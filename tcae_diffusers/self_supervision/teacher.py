"""The teacher as a moving average of the student."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..data.whole_tensor import whole_tensor


@torch.no_grad()
def update_teacher(
    student_modules: Iterable[nn.Module], teacher_modules: Iterable[nn.Module], momentum: float
) -> None:
    """
    `teacher = momentum * teacher + (1 - momentum) * student` for parameters, and a copy for buffers, in place.

    Tensors are matched by name, module by module; the student may hold more of them than the teacher (a decoder, a
    mask token), the teacher none that the student lacks. Pass unwrapped modules (`accelerator.unwrap_model`). The
    student's parameters may be sharded over ranks: all must then call this, and each teacher is whole.

    Args:
        student_modules (iterable of `nn.Module`): for example `[encoder, head]`.
        teacher_modules (iterable of `nn.Module`): the same, in fp32.
        momentum (`float`): in [0, 1], from `schedules.teacher_momentum`.

    Raises:
        ValueError: momentum out of range, a teacher below fp32, or a tensor that the student lacks or has in another
            shape.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum is {momentum}; expected a value in [0, 1]")
    student, teacher = nn.ModuleList(student_modules), nn.ModuleList(teacher_modules)
    if len(student) != len(teacher):
        raise ValueError(f"got {len(student)} student and {len(teacher)} teacher modules; pass them in pairs")
    parameters, buffers = dict(teacher.named_parameters()), dict(teacher.named_buffers())
    sources = _matched("parameters", dict(student.named_parameters()), parameters)
    copied = _matched("buffers", dict(student.named_buffers()), buffers)
    for name, tensor in parameters.items():
        # In bf16 at 0.9999 the step is below the spacing of the numbers and the teacher would never move.
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"teacher parameter {name} is {tensor.dtype}; keep the teacher in torch.float32")
    targets: list[torch.Tensor] = list(parameters.values())
    wholes = [whole_tensor(source).to(target.dtype) for source, target in zip(sources, targets, strict=True)]
    torch._foreach_lerp_(targets, wholes, 1.0 - momentum)
    if buffers:
        torch._foreach_copy_(list(buffers.values()), copied)


def _matched(
    kind: str, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The student's tensors in the order of the teacher's."""
    for name, tensor in teacher.items():
        if name not in student or student[name].shape != tensor.shape:
            found = tuple(student[name].shape) if name in student else "nothing"
            raise ValueError(
                f"teacher has {kind} {name} of shape {tuple(tensor.shape)}, the student {found}; build the teacher as "
                "a copy of the unwrapped student"
            )
    return [student[name] for name in teacher]
