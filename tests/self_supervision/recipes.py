"""Head and loss of a self-distillation method, without the autoencoder that they train."""

import importlib

from tcae_diffusers.self_supervision.self_distillation_head import SelfDistillationHead
from tcae_diffusers.self_supervision.self_distillation_loss import SelfDistillationLoss


def head_and_loss(method, embed_dim, out_dim=8192, patch_out_dim=None, hidden_dim=8, bottleneck_dim=4, **options):
    """What `--ssl METHOD` puts on an encoder of `embed_dim` channels; `options` replace those of its recipe."""
    recipe = {**importlib.import_module(f"tcae_diffusers.self_supervision.methods.{method}").RECIPE, **options}
    sharing = recipe.pop("sharing")
    loss = SelfDistillationLoss(out_dim, patch_out_dim, **recipe)
    sizes = {"hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim}
    head = SelfDistillationHead(
        embed_dim, out_dim, patch_out_dim, **sizes, sharing=sharing, predict_patches=loss.predicts_patches
    )
    return head, loss
