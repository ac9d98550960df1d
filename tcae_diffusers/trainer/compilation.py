"""Regional compilation of repeated blocks."""

import torch


def compile_blocks(*modules: torch.nn.Module, names: tuple[str, ...], keep_graph: bool = False) -> None:
    """
    `torch.compile` of every module whose class has one of `names`: one compilation serves all equal blocks.

    Args:
        keep_graph (`bool`, defaults to `False`): Whether gradients are taken twice of one forward pass, in which case
            the first may not reuse the memory of activations.
    """
    if keep_graph:
        torch._functorch.config.donated_buffer = False
    # Drop path is a hook of the encoder's blocks. Without this guard they would run what was compiled for those of
    # the decoder, which have none, and nothing would be dropped.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for root in modules:
        for module in root.modules():
            if type(module).__name__ in names:
                module.compile()
