"""From the teacher's logits to target distributions: centring with momentum, or Sinkhorn-Knopp."""

import torch
import torch.distributed as dist

from ..data.distributed import is_distributed

# Alternations of prototype and sample normalisation, as in both papers.
SINKHORN_ITERATIONS = 3


def centered_softmax(logits: torch.Tensor, center: torch.Tensor, temperature: float) -> torch.Tensor:
    """Softmax of `(logits - center) / temperature` over the last dimension, in fp32 (DINO, section 3.1)."""
    return torch.softmax((logits.float() - center) / temperature, dim=-1)


def _logsumexp_over_samples(scores: torch.Tensor) -> torch.Tensor:
    """`scores (T, K)` of every rank -> `(1, K)`: log of the sum of exponentials over the samples of all ranks."""
    # A rank without samples (no masked token) still takes part in both reductions.
    floor = scores.new_full((1, scores.shape[1]), torch.finfo(scores.dtype).min)
    maximum = torch.cat([scores, floor]).amax(dim=0, keepdim=True)
    if is_distributed():
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
    total = (scores - maximum).exp_().sum(dim=0, keepdim=True)
    if is_distributed():
        dist.all_reduce(total)
    return total.log_().add_(maximum)


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Targets that use all prototypes equally often over the samples of all ranks (SwAV; DINOv2, section 4).

    Computed with logarithms, so that no temperature underflows. The constants 1/K and 1/T of the papers cancel in the
    last normalisation. The result depends on the whole batch: accumulating gradients over small batches is not the
    same as one large batch.

    Args:
        logits (`torch.Tensor` of shape `(T, K)`): teacher's logits of this rank; `T` may be 0 and may differ over
            ranks.
        temperature (`float`): the teacher's temperature.

    Returns:
        `torch.Tensor` of shape `(T, K)`, fp32, whose rows sum to 1.
    """
    scores = logits.float() / temperature
    for _ in range(SINKHORN_ITERATIONS):
        scores = scores - _logsumexp_over_samples(scores)
        scores = torch.log_softmax(scores, dim=-1)
    return scores.exp_()
