"""Adaptive weights: another loss beside the reconstruction, with a gradient as large as that of the reconstruction."""

import torch
import torch.distributed as dist
from torch import nn

from ..data.distributed import is_distributed

# VQGAN's, in the denominator.
_EPSILON = 1e-4


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    other_loss: torch.Tensor,
    reference: torch.Tensor,
    maximum: float = 1e4,
) -> torch.Tensor:
    """
    `|grad L_rec| / (|grad L| + 1e-4)` at one place of the model, clamped to [0, maximum], without gradient (VQGAN, eq.
    7).

    Over ranks the gradients are averaged first, so that all ranks use the weight of the whole batch.

    Args:
        reconstruction_loss, other_loss (`torch.Tensor`): without dimensions, with their graphs, which are kept.
        reference (`torch.Tensor`):
            The weight of a layer, such as the decoder's last (VQGAN), or what a layer returned, such as the decoder's
            output, which also works where the weight is sharded (FSDP) and saves nothing else; see
            [`adaptive_weight_from_squares`].
        maximum (`float`, defaults to 1e4): VQGAN's clamp.
    """
    if not isinstance(reference, nn.Parameter):
        squares = squared_gradients(reconstruction_loss, other_loss, reference)
        return adaptive_weight_from_squares(squares, maximum=maximum)
    gradients = _gradients(reconstruction_loss, other_loss, reference)
    if is_distributed():
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
    norms = gradients.norm(dim=1)
    return (norms[0] / (norms[1] + _EPSILON)).clamp(0.0, maximum)


def _gradients(reconstruction_loss: torch.Tensor, other_loss: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [
            torch.autograd.grad(loss, reference, retain_graph=True)[0].detach().float().flatten()
            for loss in (reconstruction_loss, other_loss)
        ]
    )


def squared_gradients(
    reconstruction_loss: torch.Tensor, other_loss: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Squared norms `(2,)` of the gradients of both losses at `reference`, on this rank; their graphs are kept."""
    return _gradients(reconstruction_loss, other_loss, reference).square().sum(dim=1)


def adaptive_weight_from_squares(squares: torch.Tensor, num_passes: int = 1, maximum: float = 1e4) -> torch.Tensor:
    """
    `|grad L_rec| / (|grad L| + 1e-4 * |grad L_rec|)` at an output of the images, over all ranks, from
    [`squared_gradients`]; clamped to [0, maximum].

    Unlike the gradient at a weight, that at an output shrinks with the number of images and pixels that the losses
    are means over. So the 1e-4 is relative here: the weight is a function of the images and not of how many there are.

    Args:
        squares (`torch.Tensor` of shape `(2,)`): Summed over the forward passes of an optimizer step on this rank.
        num_passes (`int`, defaults to 1): How many those are; the loss of the step is the mean of theirs.
        maximum (`float`, defaults to 1e4): VQGAN's clamp.
    """
    # Each pass and rank holds the gradient at its own images: the norm of them all, with the loss a mean over both.
    squares = squares / num_passes**2
    if is_distributed():
        dist.all_reduce(squares)
        squares /= dist.get_world_size() ** 2
    norms = squares.sqrt()
    # The smallest float keeps a step without any gradient at 0 instead of 0 / 0.
    floor = _EPSILON * norms[0] + torch.finfo(norms.dtype).tiny
    return (norms[0] / (norms[1] + floor)).clamp(0.0, maximum)
