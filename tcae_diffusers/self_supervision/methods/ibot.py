"""iBOT (Zhou et al., 2022), the paper's choice: class tokens across views, masked tokens within one, a shared head."""

from ...models.adapters import AutoencoderAdapter
from ..arguments import SelfSupervisionArguments
from ..self_distillation import Recipe, SelfDistillation

RECIPE: Recipe = {"sharing": "shared", "centering": "momentum"}


def build(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, options: None) -> SelfDistillation:
    return SelfDistillation(arguments, adapter, RECIPE)
