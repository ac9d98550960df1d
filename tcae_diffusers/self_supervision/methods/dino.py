"""DINO (Caron et al., 2021): class tokens across views, and no masks."""

from ...models.adapters import AutoencoderAdapter
from ..arguments import SelfSupervisionArguments
from ..self_distillation import Recipe, SelfDistillation

RECIPE: Recipe = {"sharing": "shared", "centering": "momentum", "mim_weight": 0.0}


def build(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, options: None) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, RECIPE)
