"""Self-distillation losses: iBOT (the paper's choice), and DINO and DINOv2, which it compares with (section 3)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.distributed as dist
from torch import nn

from ..data.distributed import is_distributed
from ..models.precision import without_autocast
from .collapse import teacher_entropies
from .koleo import koleo_loss
from .masked_tokens import MaskedTokens
from .teacher_targets import centered_softmax, sinkhorn_knopp

CENTERING = ("momentum", "sinkhorn_knopp")
MIM_AVERAGES = ("images", "masked_tokens")


@dataclass
class SelfDistillationOutput:
    """
    Output of [`SelfDistillationLoss`]; all members are fp32 tensors without dimensions, on the device of the logits.

    Args:
        loss: weighted sum of the terms.
        loss_cls: L_[CLS].
        loss_mim: L_MIM without its weight; 0 where the method has none or no token was masked.
        loss_koleo: KoLeo without its weight; 0 where the method has none.
        diagnostics:
            `teacher_class_entropy`, `teacher_class_mean_entropy` and the same for `patch`, detached, in nats; NaN for
            `patch` when no token was masked. See [`collapse.collapse_warning`].
    """

    loss: torch.Tensor
    loss_cls: torch.Tensor
    loss_mim: torch.Tensor
    loss_koleo: torch.Tensor
    diagnostics: dict[str, torch.Tensor] = field(default_factory=dict)


class SelfDistillationLoss(nn.Module):
    """
    `L = L_[CLS] + mim_weight * L_MIM + koleo_weight * L_KoLeo` (iBOT, equations 1 to 3; DINOv2, section
    4).

    L_[CLS] is the cross-entropy from the teacher's class distribution of one global view to the student's of every
    other view, averaged over the pairs. L_MIM is the cross-entropy between the two distributions of the same masked
    token of the same view, averaged as `mim_average` says.

    The centres are state: save this module with the checkpoint. They are used as they stood before the step and move
    when [`update_centers`] is called, once per optimizer step, so that accumulated small batches see the same centres
    as one large batch does. The release moves the patch centre with all tokens of the teacher; here only masked tokens
    pass through the head (as in DINOv2), so those move it.

    Args:
        out_dim (`int`): class prototypes.
        patch_out_dim (`int`, *optional*): patch prototypes; equal to `out_dim` when not given.
        student_temperature (`float`, defaults to 0.1).
        center_momentum (`float`, defaults to 0.9): of the class centre.
        patch_center_momentum (`float`, *optional*): of the patch centre; equal to `center_momentum` when not given.
        centering (`str`, defaults to `"momentum"`): `"momentum"` (DINO, iBOT) or `"sinkhorn_knopp"` (DINOv2).
        mim_weight (`float`, defaults to 1.0): 0 leaves out masked tokens altogether, which makes it DINO.
        koleo_weight (`float`, defaults to 0.0): summed over the student's global views.
        mim_average (`str`, defaults to `"images"`):
            `"images"`: over the masked tokens of an image, then over the images of the global views, those without a
            mask included (as 0), as the releases of iBOT and DINOv2 do. Ranks and accumulated batches add up exactly.
            `"masked_tokens"`: over all masked tokens of all ranks: an image counts by how much of it is hidden.
            Accumulated batches are averaged one by one.

    Defaults are those of the iBOT release. Everything is computed in fp32, inside autocast too.

    Raises:
        ValueError: an option outside its set, a temperature not above 0, a momentum outside [0, 1].
    """

    class_center: torch.Tensor
    patch_center: torch.Tensor
    pending: torch.Tensor

    def __init__(
        self,
        out_dim: int,
        patch_out_dim: int | None = None,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        patch_center_momentum: float | None = None,
        centering: str = "momentum",
        mim_weight: float = 1.0,
        koleo_weight: float = 0.0,
        mim_average: str = "images",
    ):
        super().__init__()
        if centering not in CENTERING:
            raise ValueError(f"centering is {centering!r}; expected one of {', '.join(CENTERING)}")
        if mim_average not in MIM_AVERAGES:
            raise ValueError(f"mim_average is {mim_average!r}; expected one of {', '.join(MIM_AVERAGES)}")
        if student_temperature <= 0:
            raise ValueError(f"student_temperature is {student_temperature}; expected a value above 0")
        patch_center_momentum = center_momentum if patch_center_momentum is None else patch_center_momentum
        for name, value in (("center", center_momentum), ("patch_center", patch_center_momentum)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}_momentum is {value}; expected a value in [0, 1]")
        patch_out_dim = out_dim if patch_out_dim is None else patch_out_dim
        self.out_dim = out_dim
        self.patch_out_dim = patch_out_dim
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.patch_center_momentum = patch_center_momentum
        self.centering = centering
        self.mim_weight = mim_weight
        self.koleo_weight = koleo_weight
        self.mim_average = mim_average
        self.register_buffer("class_center", torch.zeros(out_dim))
        self.register_buffer("patch_center", torch.zeros(patch_out_dim))
        # Sums of the teacher's logits since the last update, class then patch, then the two counts: one all-reduce.
        # Checkpoints are written between optimizer steps, where they are all zero.
        self.register_buffer("pending", torch.zeros(out_dim + patch_out_dim + 2), persistent=False)

    @property
    def predicts_patches(self) -> bool:
        """Whether masked tokens take part."""
        return self.mim_weight != 0.0

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # Follows moves between devices but not `.half()` or `.to(torch.bfloat16)`: in bf16 a centre stops moving.
        for name, buffer in self.named_buffers():
            self._buffers[name] = buffer.to(device=fn(buffer).device)
        return self

    def forward(
        self,
        student_class_logits: torch.Tensor,
        teacher_class_logits: torch.Tensor,
        student_patch_logits: torch.Tensor | None = None,
        teacher_patch_logits: torch.Tensor | None = None,
        masked_tokens: MaskedTokens | None = None,
        *,
        teacher_temperature: float,
        patch_teacher_temperature: float | None = None,
        student_class_tokens: torch.Tensor | None = None,
        with_diagnostics: bool = True,
    ) -> SelfDistillationOutput:
        """
        Args:
            student_class_logits (`torch.Tensor` of shape `(V, B, K)`): all views, the global ones first and in the
                teacher's order.
            teacher_class_logits (`torch.Tensor` of shape `(G, B, K)`): the global views, G <= V.
            student_patch_logits (`torch.Tensor` of shape `(T, K_patch)`, *optional*): masked tokens, gathered before
                the head.
            teacher_patch_logits (`torch.Tensor` of shape `(T, K_patch)`, *optional*): the same tokens of the teacher.
            masked_tokens ([`MaskedTokens`], *optional*): where those tokens come from; `T` may be 0.
            teacher_temperature (`float`): from [`schedules.teacher_temperature`].
            patch_teacher_temperature (`float`, *optional*): equal to `teacher_temperature` when not given.
            student_class_tokens (`torch.Tensor` of shape `(G, B, D)`, *optional*): tokens before the head, for KoLeo.
            with_diagnostics (`bool`, defaults to `True`): the entropies cost two more passes over the teacher's
                outputs.

        Raises:
            ValueError: shapes that do not belong together, or an input that the configured terms need is missing.
        """
        self._check_class_logits(student_class_logits, teacher_class_logits)
        with without_autocast(student_class_logits):
            class_targets = self._targets(teacher_class_logits, self.class_center, teacher_temperature)
            loss_cls = self._class_loss(student_class_logits.float(), class_targets)
            loss, loss_mim, loss_koleo = loss_cls, loss_cls.new_zeros(()), loss_cls.new_zeros(())
            patch_targets = None
            if self.predicts_patches:
                if student_patch_logits is None or teacher_patch_logits is None or masked_tokens is None:
                    raise ValueError(
                        "mim_weight is not 0, so student_patch_logits, teacher_patch_logits and masked_tokens are "
                        "needed; pass empty ones for a batch without masks"
                    )
                self._check_patch_logits(student_patch_logits, teacher_patch_logits, masked_tokens)
                temperature = teacher_temperature if patch_teacher_temperature is None else patch_teacher_temperature
                patch_targets = self._targets(teacher_patch_logits, self.patch_center, temperature)
                loss_mim = self._mim_loss(student_patch_logits.float(), patch_targets, masked_tokens)
                loss = loss + self.mim_weight * loss_mim
            if self.koleo_weight:
                if student_class_tokens is None:
                    raise ValueError(
                        "koleo_weight is not 0, so student_class_tokens (G, B, D) of the global views are needed"
                    )
                loss_koleo = torch.stack([koleo_loss(view) for view in student_class_tokens]).sum()
                loss = loss + self.koleo_weight * loss_koleo
            diagnostics = {}
            if with_diagnostics:
                for kind, targets in (("class", class_targets), ("patch", patch_targets)):
                    if targets is not None:
                        single, mean = teacher_entropies(targets)
                        diagnostics[f"teacher_{kind}_entropy"] = single
                        diagnostics[f"teacher_{kind}_mean_entropy"] = mean
        if self.centering == "momentum":
            self._collect(teacher_class_logits, teacher_patch_logits if self.predicts_patches else None)
        return SelfDistillationOutput(loss, loss_cls, loss_mim, loss_koleo, diagnostics)

    def _check_class_logits(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        views, globals_ = student.shape[0], teacher.shape[0]
        if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
            raise ValueError(
                f"class logits have shapes {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher); "
                "expected (views, B, K) and (global views, B, K)"
            )
        if views < max(globals_, 2):
            raise ValueError(
                f"got {views} student and {globals_} teacher views; L_[CLS] compares different views, so the student "
                "needs all of the teacher's and at least two"
            )

    def _check_patch_logits(self, student: torch.Tensor, teacher: torch.Tensor, masked: MaskedTokens) -> None:
        expected = (masked.indices.shape[0], self.patch_out_dim)
        if student.shape != expected or teacher.shape != expected:
            raise ValueError(
                f"patch logits have shapes {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher); "
                f"expected {expected}, one row per masked token"
            )

    @torch.no_grad()
    def _targets(self, logits: torch.Tensor, center: torch.Tensor, temperature: float) -> torch.Tensor:
        if temperature <= 0:
            raise ValueError(f"teacher temperature is {temperature}; expected a value above 0")
        if self.centering == "momentum":
            return centered_softmax(logits, center, temperature)
        return sinkhorn_knopp(logits.flatten(0, -2), temperature).view(logits.shape)

    def _class_loss(self, student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        views, batch, _ = student.shape
        num_globals = targets.shape[0]
        log_probabilities = torch.log_softmax(student / self.student_temperature, dim=-1)
        total = targets.sum(dim=0)
        # Every global view against the other global views, every local view against all of them. The sum over local
        # views comes first: the product then has the size of one view.
        loss = -(log_probabilities[num_globals:].sum(dim=0) * total).sum()
        for view in range(num_globals):
            for other in range(num_globals):
                if other != view:
                    loss = loss - (log_probabilities[view] * targets[other]).sum()
        return loss / (num_globals * (views - 1) * batch)

    def _mim_loss(self, student: torch.Tensor, targets: torch.Tensor, masked: MaskedTokens) -> torch.Tensor:
        log_probabilities = torch.log_softmax(student / self.student_temperature, dim=-1)
        per_token = -(targets * log_probabilities).sum(dim=-1)
        if self.mim_average == "images":
            return (per_token * masked.weights).sum() / masked.num_images
        # Filled on the device, so that nothing waits for it. Gradients are averaged over ranks: hence their number.
        count, ranks = per_token.new_full((), masked.indices.shape[0]), 1
        if is_distributed():
            dist.all_reduce(count)
            ranks = dist.get_world_size()
        return ranks * per_token.sum() / count.clamp(min=1.0)

    @torch.no_grad()
    def _collect(self, class_logits: torch.Tensor, patch_logits: torch.Tensor | None) -> None:
        class_logits = class_logits.flatten(0, -2)
        self.pending[: self.out_dim] += class_logits.float().sum(dim=0)
        self.pending[-2] += class_logits.shape[0]
        if patch_logits is not None:
            self.pending[self.out_dim : -2] += patch_logits.float().sum(dim=0)
            self.pending[-1] += patch_logits.shape[0]

    @torch.no_grad()
    def update_centers(self) -> None:
        """
        Moves the centres towards the mean of the teacher's logits since the last call, over all ranks.

        Call it once per optimizer step, on every rank. A centre whose kind of token did not occur on any rank stays.
        With Sinkhorn-Knopp there is nothing to do.
        """
        if self.centering != "momentum":
            return
        if is_distributed():
            dist.all_reduce(self.pending)
        sums = (self.pending[: self.out_dim], self.pending[self.out_dim : -2])
        counts = (self.pending[-2], self.pending[-1])
        centers = (self.class_center, self.patch_center)
        momenta = (self.center_momentum, self.patch_center_momentum)
        for total, count, center, momentum in zip(sums, counts, centers, momenta, strict=True):
            moved = momentum * center + (1.0 - momentum) * total / count.clamp(min=1.0)
            center.copy_(torch.where(count > 0, moved, center))
        self.pending.zero_()

    def discard_pending(self, where: torch.Tensor) -> None:
        """
        Forgets the teacher's logits since the last update, for a step that is skipped as not finite.

        Args:
            where (`torch.BoolTensor` of shape `()`): decides on the device.
        """
        # Not a product: the sums of such a step may themselves be NaN.
        self.pending.masked_fill_(where, 0.0)
