"""Averaged weights in the place of a model's own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch.nn.modules.batchnorm import _BatchNorm

from .sharding import is_sharded, whole_copy


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those with gradient: what an optimizer steps and an average follows."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def batch_statistics(module: torch.nn.Module) -> list[torch.Tensor]:
    """Running means and variances of the batch norms of a module, such as those in the decoder of AutoencoderDC."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]


class WeightAverage(EMAModel):
    """
    Exponential moving average of the [`trained_parameters`] of a module, and of its [`batch_statistics`], which belong
    to them: DC-AE's authors average both.

    Args:
        module (`nn.Module`): On the device where [`step`] will find it, unless [`to`] is called in between.
        decay (`float`): Largest decay.
    """

    def __init__(self, module: torch.nn.Module, decay: float):
        super().__init__(trained_parameters(module), decay=decay, foreach=True)
        self.module = module
        self.shadow_statistics = [value.detach().clone() for value in batch_statistics(module)]
        self._stored_statistics: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().step(parameters)
        for average, value in zip(self.shadow_statistics, batch_statistics(self.module), strict=True):
            average.lerp_(value, 1 - self.cur_decay_value)

    def to(self, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False) -> None:
        super().to(device, dtype, non_blocking)
        self.shadow_statistics = [value.to(device) for value in self.shadow_statistics]

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().copy_to(parameters)
        _copy(self.shadow_statistics, batch_statistics(self.module))

    def store(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().store(parameters)
        self._stored_statistics = [value.clone() for value in batch_statistics(self.module)]

    @torch.no_grad()
    def restore(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().restore(parameters)
        _copy(self._stored_statistics, batch_statistics(self.module))

    def state_dict(self) -> dict[str, Any]:
        statistics = {"shadow_statistics": self.shadow_statistics} if self.shadow_statistics else {}
        return {**super().state_dict(), **statistics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Of checkpoints without them, those that the weights had, which are loaded before.
        _copy(state_dict.get("shadow_statistics", batch_statistics(self.module)), self.shadow_statistics)


def _copy(sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


@contextmanager
def kept_batch_statistics(module: torch.nn.Module) -> Iterator[None]:
    """For forward passes that are only looked at: [`batch_statistics`] afterwards are those of before."""
    before = [value.clone() for value in batch_statistics(module)]
    try:
        yield
    finally:
        with torch.no_grad():
            _copy(before, batch_statistics(module))


@contextmanager
def averaged_weights(model: ModelMixin, average: EMAModel) -> Iterator[ModelMixin]:
    """
    `model` with the averaged weights in eval mode inside the block, and with its own weights and modes afterwards.
    If they are sharded, all ranks must enter, and each gets a full copy.

    Args:
        average (`EMAModel`): Of the [`trained_parameters`] of `model`.
    """
    if is_sharded(model):
        whole = whole_copy(model, average.shadow_params)
        if isinstance(average, WeightAverage):
            _copy(average.shadow_statistics, batch_statistics(whole))
        yield whole
        return
    parameters = trained_parameters(model)
    # Module by module: a frozen encoder stays in evaluation mode.
    training = {module: module.training for module in model.modules()}
    average.store(parameters)
    average.copy_to(parameters)
    model.eval()
    try:
        yield model
    finally:
        average.restore(parameters)
        for module, mode in training.items():
            module.training = mode
