"""iBOT (Zhou et al., 2022), the paper's choice: class tokens across views, masked tokens within one, a shared head."""

from ..self_distillation import SelfDistillation

RECIPE = {"sharing": "shared", "centering": "momentum"}


def build(arguments, adapter, options) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, **RECIPE)
