"""The teacher as a moving average of the student."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def _named_tensors(modules: Iterable[nn.Module], kind: str) -> dict[str, torch.Tensor]:
    named = {}
    for index, module in enumerate(modules):
        for name, tensor in getattr(module, f"named_{kind}")():
            named[f"{index}.{name}"] = tensor
    return named


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as_modules(modules: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    return [modules] if isinstance(modules, nn.Module) else list(modules)


@torch.no_grad()
def update_teacher(
    student_modules: nn.Module | Iterable[nn.Module],
    teacher_modules: nn.Module | Iterable[nn.Module],
    momentum: float,
) -> None:
    """
    `teacher = momentum * teacher + (1 - momentum) * student` for parameters, and a copy for buffers, in place.

    Tensors are matched by name, module by module; the student may hold more of them than the teacher (a decoder, a
    mask token), the teacher none that the student lacks. Pass unwrapped modules (`accelerator.unwrap_model`). The
    student's parameters may be sharded over ranks: all must then call this, and each teacher is whole.

    Args:
        student_modules (`nn.Module` or iterable of them): for example `[encoder, head]`.
        teacher_modules (`nn.Module` or iterable of them): the same, in fp32.
        momentum (`float`): in [0, 1], from `schedules.teacher_momentum`.

    Raises:
        ValueError: momentum out of range, a teacher below fp32, or a tensor that the student lacks or has in another
            shape.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum is {momentum}; expected a value in [0, 1]")
    students, teachers = _as_modules(student_modules), _as_modules(teacher_modules)
    if len(students) != len(teachers):
        raise ValueError(f"got {len(students)} student and {len(teachers)} teacher modules; pass them in pairs")
    for kind in ("parameters", "buffers"):
        source, target = _named_tensors(students, kind), _named_tensors(teachers, kind)
        for name, tensor in target.items():
            if name not in source or source[name].shape != tensor.shape:
                found = tuple(source[name].shape) if name in source else "nothing"
                raise ValueError(
                    f"teacher has {kind} {name} of shape {tuple(tensor.shape)}, the student {found}; build the "
                    "teacher as a copy of the unwrapped student"
                )
        averaged = kind == "parameters"
        names = [n for n, t in target.items() if not averaged or t.is_floating_point()]
        targets = [target[n] for n in names]
        if not targets:
            continue
        if not averaged:
            torch._foreach_copy_(targets, [source[n] for n in names])
            continue
        for name, tensor in zip(names, targets, strict=True):
            # In bf16 at 0.9999 the step is below the spacing of the numbers and the teacher would never move.
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"teacher parameter {name} is {tensor.dtype}; keep the teacher in torch.float32")
        sources = [_whole(source[n].detach()).to(target[n].dtype) for n in names]
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
