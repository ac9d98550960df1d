"""Averaged weights in the place of a model's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from .sharding import is_sharded, whole_copy


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those with gradient: what an optimizer steps and an average follows."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def averaged_weights(model: ModelMixin, average: EMAModel) -> Iterator[ModelMixin]:
    """
    `model` with the averaged weights in eval mode inside the block, and with its own weights and modes afterwards.
    If they are sharded, all ranks must enter, and each gets a full copy.

    Args:
        average (`EMAModel`): Of the [`trained_parameters`] of `model`.
    """
    if is_sharded(model):
        yield whole_copy(model, average.shadow_params)
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
