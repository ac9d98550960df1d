"""Drop path (Huang et al., 2016) for the student's encoder, as hooks: the model and its saved config know nothing."""

from typing import cast

import torch
from torch import nn


class _Branch(nn.Module):
    """Attention or MLP of a block, with a factor for the output of each image; `None` keeps them as they are."""

    drop_path_scale: torch.Tensor | None


class StochasticDepth:
    """
    Leaves out the attention or MLP branch of a block for single images, with a probability that rises linearly from 0
    at the first block to `rate` at the last, as iBOT's release does; kept branches are scaled to keep the mean.

    Attach it after the teacher was copied: a deep copy takes hooks along.

    Args:
        blocks (`list[nn.Module]`): In order; each adds the outputs of its `attn` and `ff` to its input.
        encoder (`nn.Module`): What runs them; called with a batch of images, several times per step.
        rate (`float`): Probability at the last block, in [0, 1).

    Raises:
        ValueError: `rate` out of range.
    """

    def __init__(self, encoder: nn.Module, blocks: list[nn.Module], rate: float):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate is {rate}; expected at least 0 and below 1")
        self.rates = torch.linspace(0.0, rate, len(blocks), device="cpu").tolist() if len(blocks) > 1 else [rate]
        self.branches = [[cast(_Branch, block.get_submodule(name)) for name in ("attn", "ff")] for block in blocks]
        self._scales: torch.Tensor | None = None
        self._next_image = 0
        encoder.register_forward_pre_hook(self._start_pass)
        for branches in self.branches:
            for module in branches:
                module.drop_path_scale = None
                module.register_forward_hook(_scale_branch)

    def draw(self, generators: list[torch.Generator], num_views: int, device: torch.device) -> None:
        """
        Decide for one forward pass of the student, whose encoder sees the images to reconstruct and then `num_views`
        views of each, view by view. Nothing is left out of the images: the decoder must learn from the latents that it
        will get.

        Args:
            generators (`list[torch.Generator]`): One per image.
            num_views (`int`): Views of the method over all calls of the encoder.
            device (`torch.device`): Of the model.
        """
        shape = (num_views, len(self.rates), 2)
        uniform = torch.stack([torch.rand(shape, generator=generator) for generator in generators], dim=1)
        keep = 1.0 - torch.tensor(self.rates).view(1, 1, -1, 1)
        scales = torch.cat([torch.ones_like(uniform[:1]), (uniform < keep) / keep])
        # (blocks, 2, views * images): the order in which the encoder sees them.
        self._scales = scales.flatten(0, 1).permute(1, 2, 0).to(device, non_blocking=True)
        self._next_image = 0

    def _start_pass(self, encoder: nn.Module, inputs: tuple) -> None:
        scales = None
        if self._scales is not None and encoder.training:
            count = inputs[0].shape[0]
            scales = self._scales[..., self._next_image : self._next_image + count]
            self._next_image += count
            if self._next_image >= self._scales.shape[-1]:
                # All that was drawn for is seen: nothing is left out of a pass beside the student's.
                self._scales = None
        # An attribute of each branch rather than state of this object: equal blocks then share one compiled graph.
        for index, branches in enumerate(self.branches):
            for branch, module in enumerate(branches):
                module.drop_path_scale = None if scales is None else scales[index, branch].contiguous()


def _scale_branch(module: _Branch, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    if module.drop_path_scale is None:
        return output
    return output * module.drop_path_scale.to(output.dtype)[:, None, None]
