"""KoLeo regulariser of DINOv2: spreads the class tokens of a batch."""

import torch
import torch.nn.functional as F

from ..models.precision import without_autocast

# Keeps the logarithm finite for equal tokens.
EPS = 1e-8


def koleo_loss(class_tokens: torch.Tensor) -> torch.Tensor:
    """
    `-mean_i log min_{j != i} |x_i - x_j|` over L2-normalised tokens (DINOv2, section 4), in fp32.

    Neighbours are searched inside this rank's batch, as in the release. The view of an image must not be its own
    neighbour, so pass one view at a time.

    Args:
        class_tokens (`torch.Tensor` of shape `(B, D)`): the student's class tokens of one global view, before the
            head.

    Raises:
        ValueError: fewer than two tokens.
    """
    if class_tokens.ndim != 2 or class_tokens.shape[0] < 2:
        raise ValueError(
            f"class_tokens have shape {tuple(class_tokens.shape)}; expected (B, D) with B at least 2, "
            "since the loss needs a neighbour; raise the batch size or set koleo_weight=0"
        )
    with without_autocast(class_tokens):
        tokens = F.normalize(class_tokens.float(), dim=-1, eps=EPS)
        with torch.no_grad():
            similarity = (tokens @ tokens.T).fill_diagonal_(-2.0)
            nearest = similarity.argmax(dim=1)
        distance = F.pairwise_distance(tokens, tokens.index_select(0, nearest), eps=EPS)
        return -torch.log(distance + EPS).mean()
