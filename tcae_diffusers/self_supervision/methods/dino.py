"""DINO (Caron et al., 2021): class tokens across views, and no masks."""

from ..self_distillation import SelfDistillation

RECIPE = {"sharing": "shared", "centering": "momentum", "mim_weight": 0.0}


def build(arguments, adapter, options) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, **RECIPE)
