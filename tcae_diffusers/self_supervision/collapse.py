"""Collapse indicators of a self-distillation teacher, in nats."""

import math
from collections.abc import Mapping

import torch

# Share of log K under which the mean output has become one prototype, and over which single outputs are uniform.
ONE_HOT_BELOW, UNIFORM_ABOVE = 0.05, 0.99
# Nats under which outputs no longer depend on the image.
INFORMATION_BELOW = 0.01


@torch.no_grad()
def teacher_entropies(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        probabilities (`torch.Tensor` of shape `(..., K)`): the teacher's target distributions.

    Returns:
        Mean entropy of the single outputs, and entropy of the mean output, both in [0, log K] and without a wait for
        the device; NaN when there is no output at all. Their difference is the mutual information between image and
        prototype: 0 when the teacher says the same whatever it sees.
    """
    probabilities = probabilities.flatten(0, -2)
    single = torch.special.entr(probabilities).sum(dim=-1).mean()
    mean = torch.special.entr(probabilities.mean(dim=0)).sum()
    return single, mean


def collapse_warning(diagnostics: Mapping[str, float], out_dim: int, patch_out_dim: int | None = None) -> str | None:
    """
    Says which collapse the teacher's entropies show, if any.

    Only meaningful after the first few hundred steps: the class tokens of a network that has seen nothing yet are all
    alike, which looks like a collapse and is not one. Average the diagnostics over a logging interval, since a batch
    of B outputs cannot show more than log B nats of information.

    Args:
        diagnostics (`Mapping[str, float]`): `SelfDistillationOutput.diagnostics`, moved to the CPU; NaN values are
            ignored.
        out_dim (`int`): class prototypes K.
        patch_out_dim (`int`, *optional*): patch prototypes; equal to `out_dim` when not given.

    Returns:
        A sentence for the log, or `None`.
    """
    sentences = []
    for kind, prototypes in (("class", out_dim), ("patch", patch_out_dim or out_dim)):
        single = diagnostics.get(f"teacher_{kind}_entropy", math.nan)
        mean = diagnostics.get(f"teacher_{kind}_mean_entropy", math.nan)
        highest = math.log(prototypes)
        if math.isnan(single) or math.isnan(mean) or prototypes == 1:
            continue
        if mean < ONE_HOT_BELOW * highest:
            sentences.append(
                f"one-hot collapse of the {kind} tokens: all of them choose the same prototype (entropy of the mean "
                f"output {mean:.3f} of at most {highest:.3f} nats); raise the teacher temperature "
                "or lower center_momentum"
            )
        elif single > UNIFORM_ABOVE * highest:
            sentences.append(
                f"uniform collapse of the {kind} tokens: no prototype is preferred (mean entropy {single:.3f} of at "
                f"most {highest:.3f} nats); lower the teacher temperature or the learning rate"
            )
        elif mean - single < INFORMATION_BELOW:
            sentences.append(
                f"constant collapse of the {kind} tokens: the output does not depend on the image (entropy of the "
                f"mean output {mean:.3f}, mean entropy {single:.3f} nats); lower the learning rate or raise "
                "the teacher's momentum"
            )
    return "; ".join(sentences) or None
