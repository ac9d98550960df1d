"""Multiply-accumulates of a training step for each image, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tcae_diffusers.metrics.macs_by_part import MacsByPart

# Parts, in the order of a table.
VIEWS, LOCAL_CROPS, HEAD, TEACHER = "encoder: images, global crops", "encoder: local crops", "SSL head", "teacher"
DECODER, PERCEPTUAL, DISCRIMINATOR = "decoder", "perceptual loss", "discriminator"
SHAPING, TRANSFORMER, PROJECTOR = "latent shaping", "transformer", "projector of REPA"
OPTIMIZER, OTHER = "optimizer", "other"
PARTS = (
    VIEWS,
    LOCAL_CROPS,
    HEAD,
    TEACHER,
    SHAPING,
    DECODER,
    PERCEPTUAL,
    DISCRIMINATOR,
    TRANSFORMER,
    PROJECTOR,
    OPTIMIZER,
    OTHER,
)


@dataclass
class StepCost:
    """
    Multiply-accumulates per image of one optimizer step, by part.

    Args:
        forward, backward (`dict[str, float]`): In the forward pass, and in the backward pass for the same part.
    """

    forward: dict[str, float]
    backward: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.forward.values()) + sum(self.backward.values())

    @classmethod
    def of(cls, macs: MacsByPart, images: int) -> StepCost:
        return cls.weighted_sum([(1 / images, cls(dict(macs.forward), dict(macs.backward)))])

    @classmethod
    def weighted_sum(cls, weighted: Iterable[tuple[float, StepCost]]) -> StepCost:
        """Of costs, each after its weight."""
        forward: Counter[str] = Counter()
        backward: Counter[str] = Counter()
        for weight, cost in weighted:
            forward.update({part: weight * macs for part, macs in cost.forward.items()})
            backward.update({part: weight * macs for part, macs in cost.backward.items()})
        passes: list[dict[str, float]] = [
            {part: macs[part] for part in PARTS if macs[part]} for macs in (forward, backward)
        ]
        return cls(passes[0], passes[1])


def part_text(cost: StepCost, part: str) -> str:
    """GMAC per image of a part: forward, `+` backward where there is one."""
    forward, backward = cost.forward[part] / 1e9, cost.backward.get(part, 0.0) / 1e9
    return f"{forward:.3g} + {backward:.3g}" if backward else f"{forward:.3g}"
