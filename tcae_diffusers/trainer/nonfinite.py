"""Steps whose loss or gradient is not finite: skipped on the device, counted, and fatal when they do not end."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer


class NonFiniteError(RuntimeError):
    """Too many steps in a row were not finite."""


class NonFiniteGuard:
    """
    Lets fused optimizers skip an update whose loss or gradient norm is not finite on any rank.

    The decision stays on the device: fused optimizers read `found_inf`, the mechanism of `torch.amp.GradScaler`. With
    fp16 that scaler takes the same decision itself, and this guard only counts.

    Args:
        accelerator (`Accelerator`): Of the run.
        limit (`int`): Skipped steps in a row after which [`check`] raises.
    """

    def __init__(self, accelerator: Accelerator, limit: int):
        self.accelerator = accelerator
        self.limit = limit
        self.skipped = torch.zeros((), device=accelerator.device)
        self.in_a_row = torch.zeros((), device=accelerator.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"skipped": self.skipped.cpu(), "in_a_row": self.in_a_row.cpu()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.skipped.copy_(state["skipped"])
        self.in_a_row.copy_(state["in_a_row"])

    def mark(
        self,
        optimizers: Sequence[AcceleratedOptimizer],
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
    ) -> torch.Tensor:
        """
        Call between clipping and `optimizer.step()`.

        Args:
            optimizers: Those whose update is skipped, all or none, as accelerate prepared them.
            loss (`torch.Tensor` of shape `()`): Of the step; a sum where there are several.
            grad_norm (`torch.Tensor` of shape `()`): The same.

        Returns:
            `torch.Tensor`: 1.0 where this step is skipped, else 0.0; shape `()`, on the device, equal on all ranks.
        """
        found = (~torch.isfinite(loss.detach().float() + grad_norm.detach().float())).float()
        if self.accelerator.num_processes > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        self.skipped += found
        self.in_a_row = (self.in_a_row + found) * found
        if self.accelerator.scaler is None:
            for optimizer in optimizers:
                optimizer.optimizer.found_inf = found
        return found

    def check(self) -> int:
        """
        Number of skipped steps so far. Waits for the device, so call it at log intervals.

        Raises:
            NonFiniteError: if the limit is reached.
        """
        skipped, in_a_row = torch.stack([self.skipped, self.in_a_row]).tolist()
        if in_a_row >= self.limit:
            raise NonFiniteError(
                f"the loss or gradient norm was not finite for {int(in_a_row)} steps in a row; the weights are those "
                "of the last finite step. Lower the learning rate or check the data, then resume from the last "
                "checkpoint."
            )
        return int(skipped)
