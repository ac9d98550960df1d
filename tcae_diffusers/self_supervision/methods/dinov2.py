"""DINOv2 (Oquab et al., 2023): as iBOT, with separate heads, Sinkhorn-Knopp and KoLeo, its published recipe."""

from ...models.adapters import AutoencoderAdapter
from ..arguments import SelfSupervisionArguments
from ..self_distillation import Recipe, SelfDistillation

RECIPE: Recipe = {"sharing": "separate", "centering": "sinkhorn_knopp", "koleo_weight": 0.1}


def build(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, options: None) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, RECIPE)
