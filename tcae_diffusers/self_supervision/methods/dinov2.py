"""DINOv2 (Oquab et al., 2023): as iBOT, with separate heads, Sinkhorn-Knopp and KoLeo, its published recipe."""

from ..self_distillation import SelfDistillation

RECIPE = {"sharing": "separate", "centering": "sinkhorn_knopp", "koleo_weight": 0.1}


def build(arguments, adapter, options) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, **RECIPE)
