"""AdamW, and Muon for the matrices within a network beside AdamW for all else; both skip a step on the device."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, overload

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..data.whole_tensor import whole_tensor
from ..errors import InputError
from .arguments import OptimizerArguments

# Narrower matrices are left to AdamW, such as those to and from a latent of 32 channels; Muon was not tried on them.
SMALLEST_SIDE = 64
# Layers whose weight is several matrices, one below the other, by the end of their name. Orthogonalised as one, the
# matrix with the largest gradient would set the step of all.
FUSED_LAYERS = {"to_qkv": 3, "to_kv": 2, "norm1.linear": 6, "modulation": 6, "modulation_out": 2}
# Coefficients of the quintic iteration (Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
# 2024), also the default of torch.optim.Muon.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def adamw(parameters: Any, arguments: OptimizerArguments, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW as the arguments say, fused, so that a step can be skipped on the device ([`NonFiniteGuard`])."""
    return torch.optim.AdamW(parameters, weight_decay=weight_decay, **adamw_options(arguments))


def adamw_options(arguments: OptimizerArguments) -> dict[str, Any]:
    return {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "fused": True,
    }


def build_optimizer(
    arguments: OptimizerArguments, groups: Sequence[dict[str, Any]], model: nn.Module, edges: Collection[str]
) -> torch.optim.Optimizer:
    """
    What `--optimizer` names. To be called before the model is prepared.

    Args:
        groups: Parameter groups with `weight_decay`, which holds under either optimizer.
        model (`nn.Module`): Whose parameters they are.
        edges: Names of its layers that read the input or write the output; they keep AdamW.

    Raises:
        InputError: Muon was asked for and would train nothing.
    """
    if arguments.optimizer == "adamw":
        return adamw(groups, arguments)
    stacked = {id(weight): count for weight, count in hidden_matrices(model, edges)}
    split = []
    for group in groups:
        by_count: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_count.setdefault(stacked.get(id(parameter), 0), []).append(parameter)
        split += [{**group, "params": chosen, "matrices": count} for count, chosen in by_count.items()]
    if not any(group["matrices"] for group in split):
        raise InputError(
            f"--optimizer muon trains matrices of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, and this model has none "
            "between its first and last layers; use --optimizer adamw or a wider model."
        )
    return MuonWithAdamW(split, momentum=arguments.muon_momentum, **adamw_options(arguments))


def hidden_matrices(model: nn.Module, edges: Collection[str]) -> Iterator[tuple[torch.Tensor, int]]:
    """Weights for Muon: of the linear and convolutional layers but `edges`, and how many matrices each stacks."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) or name in edges:
            continue
        count = next((count for end, count in FUSED_LAYERS.items() if f".{name}".endswith(f".{end}")), 1)
        rows, columns = module.weight.shape[0] // count, module.weight[0].numel()
        if min(rows, columns) >= SMALLEST_SIDE:
            yield module.weight, count


class MuonWithAdamW(torch.optim.AdamW):
    """
    Muon for the groups with `matrices`, AdamW for the others: one optimizer, with one state and one schedule.

    The update is that of `torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`
    (arXiv 2502.16982): `0.2 sqrt(max(rows, columns))` times the orthogonalised momentum, so that learning rate and
    weight decay mean what they mean to AdamW. Beyond it, weights that stack several matrices are taken apart,
    convolutions count as matrices, shards are gathered, equal shapes go through the iteration together, it runs in
    fp32 on CPUs, and a step can be skipped on the device.

    Args:
        params: Groups; `matrices` is the number of matrices that each weight of the group stacks, 0 for AdamW.
        momentum (`float`): Of Muon.
        options: Of AdamW.
    """

    def __init__(self, params: Any, momentum: float = 0.95, **options: Any):
        super().__init__([{"matrices": 0, "momentum": momentum, **group} for group in params], **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's would complete the state of old checkpoints, for which it must be AdamW's throughout.
        torch.optim.Optimizer.__setstate__(self, state)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all groups; none where `found_inf` is 1."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self.step_matrices(group)
        return loss

    def step_matrices(self, group: dict[str, Any]) -> None:
        found_inf = getattr(self, "found_inf", None)
        # Equal shapes are one batched product instead of many small ones.
        alike: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                update = self.momentum(parameter, parameter.grad, group["momentum"], found_inf)
                alike.setdefault(update.shape, []).append((parameter, update))
        for shape, pairs in alike.items():
            matrices = torch.stack([update for _, update in pairs]).view(
                len(pairs) * group["matrices"], shape[0] // group["matrices"], -1
            )
            scale = 0.2 * max(matrices.shape[1:]) ** 0.5
            updates = orthogonalize(matrices).view(len(pairs), *shape)
            for (parameter, _), update in zip(pairs, updates, strict=True):
                change = group["lr"] * (scale * placed_as(parameter, update) + group["weight_decay"] * parameter)
                if found_inf is not None:
                    change = torch.where(found_inf > 0, torch.zeros_like(change), change)
                parameter.sub_(change)

    def momentum(
        self, parameter: nn.Parameter, gradient: torch.Tensor, momentum: float, found_inf: torch.Tensor | None
    ) -> torch.Tensor:
        """Nesterov's average of the gradients, whole where the parameter is sharded; shape of the parameter."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        average = buffer.lerp(gradient, 1 - momentum)
        buffer.copy_(average if found_inf is None else torch.where(found_inf > 0, buffer, average))
        return whole_tensor(gradient.lerp(average, momentum))


def placed_as(parameter: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """A tensor that every rank holds whole, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return update
    return distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """
    Matrices `(n, rows, columns)` with the same singular vectors and singular values near 1 (0.7 to 1.2; those that
    were nearly 0 stay below), by five steps of a Newton-Schulz iteration.
    """
    a, b, c = NEWTON_SCHULZ
    # bf16 is enough for the iteration and the fast type of GPUs; CPUs without instructions for it crawl.
    dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
