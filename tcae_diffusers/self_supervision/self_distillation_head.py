"""Projection heads of DINO, iBOT and DINOv2: an MLP to a normalised bottleneck, then unit prototypes."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from ..models.precision import without_autocast

HEAD_SHARING = ("shared", "semi_shared", "separate")


class PrototypeLayer(nn.Module):
    """
    The weight-normed last layer with its gain fixed at 1: cosine similarities to `out_dim` prototypes.

    Only the direction of each row of `weight` counts, which is what `weight_norm` with a frozen gain means. Written
    out, it is one plain parameter: it deep-copies, saves to safetensors and averages into a teacher like any other.

    Args:
        bottleneck_dim (`int`): width of the normalised input.
        out_dim (`int`): number of prototypes.
    """

    def __init__(self, bottleneck_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, bottleneck_dim))
        # The release leaves this layer at the default of nn.Linear, and so do we: with AdamW the length of the rows
        # sets how far one step turns them.
        bound = bottleneck_dim**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states (..., bottleneck_dim)` of unit length -> fp32 logits `(..., out_dim)` in [-1, 1]."""
        # A teacher temperature of 0.04 multiplies a bf16 rounding of the logits by 25, so this one product is fp32.
        with without_autocast(hidden_states):
            return F.linear(hidden_states.float(), F.normalize(self.weight.float(), dim=-1))


class ProjectionMLP(nn.Module):
    """Three linear layers with GELU between them, to an L2-normalised bottleneck; truncated normal weights."""

    def __init__(self, embed_dim: int, hidden_dim: int, bottleneck_dim: int):
        super().__init__()
        widths = [embed_dim, hidden_dim, hidden_dim, bottleneck_dim]
        layers = [nn.Linear(*sizes) for sizes in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            hidden_states = F.gelu(layer(hidden_states))
        return F.normalize(self.layers[-1](hidden_states).float(), dim=-1)


class SelfDistillationHead(nn.Module):
    """
    Head of iBOT (defaults), DINO (`predict_patches=False`) and DINOv2 (`sharing="separate"`).

    Args:
        embed_dim (`int`): width of the encoder's tokens.
        out_dim (`int`, defaults to 8192): prototypes for class tokens.
        patch_out_dim (`int`, *optional*): prototypes for patch tokens; equal to `out_dim` when not given.
        hidden_dim (`int`, defaults to 2048): hidden width of the MLP.
        bottleneck_dim (`int`, defaults to 256): width of the L2-normalised bottleneck.
        sharing (`str`, defaults to `"shared"`):
            What class and patch tokens share: `"shared"` everything (the best of iBOT's ablation), `"semi_shared"` the
            MLP but not the prototypes (the release with `shared_head=False`), `"separate"` nothing (DINOv2).
        predict_patches (`bool`, defaults to `True`): whether patch tokens go through the head at all.

    Defaults are those of the iBOT release. The class is the same for student and teacher; the teacher's is
    `copy.deepcopy(head).requires_grad_(False)`.

    Raises:
        ValueError: unknown `sharing`, sizes below 1, or two different output sizes for a shared last layer.
    """

    def __init__(
        self,
        embed_dim: int,
        out_dim: int = 8192,
        patch_out_dim: int | None = None,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        sharing: str = "shared",
        predict_patches: bool = True,
    ):
        super().__init__()
        patch_out_dim = out_dim if patch_out_dim is None else patch_out_dim
        sizes = {"embed_dim": embed_dim, "out_dim": out_dim, "patch_out_dim": patch_out_dim, "hidden_dim": hidden_dim}
        sizes["bottleneck_dim"] = bottleneck_dim
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if sharing not in HEAD_SHARING:
            raise ValueError(f"sharing is {sharing!r}; expected one of {', '.join(HEAD_SHARING)}")
        if predict_patches and sharing == "shared" and patch_out_dim != out_dim:
            raise ValueError(
                f"patch_out_dim is {patch_out_dim} and out_dim is {out_dim}, but a shared head has one last layer; "
                'make them equal or pass sharing="semi_shared" or "separate"'
            )
        self.out_dim = out_dim
        self.patch_out_dim = patch_out_dim if predict_patches else None
        self.mlp = ProjectionMLP(embed_dim, hidden_dim, bottleneck_dim)
        self.last_layer = PrototypeLayer(bottleneck_dim, out_dim)
        self.patch_mlp = None
        self.patch_last_layer = None
        if predict_patches and sharing == "separate":
            self.patch_mlp = ProjectionMLP(embed_dim, hidden_dim, bottleneck_dim)
        if predict_patches and sharing != "shared":
            self.patch_last_layer = PrototypeLayer(bottleneck_dim, patch_out_dim)

    def forward(
        self, class_tokens: torch.Tensor, patch_tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            class_tokens (`torch.Tensor` of shape `(..., embed_dim)`): class tokens of any number of views.
            patch_tokens (`torch.Tensor` of shape `(T, embed_dim)`, *optional*):
                Masked patch tokens only, gathered before the head; `T` may be 0. Every parameter then still takes
                part, which DDP needs.

        Returns:
            fp32 logits `(..., out_dim)` and `(T, patch_out_dim)`, each in [-1, 1]; the second is `None` without
            `patch_tokens`.
        """
        if patch_tokens is None:
            return self.last_layer(self.mlp(class_tokens)), None
        if self.patch_out_dim is None:
            raise ValueError("this head was built with predict_patches=False; pass no patch_tokens")
        patch_last_layer = self.last_layer if self.patch_last_layer is None else self.patch_last_layer
        if self.patch_mlp is not None:
            return self.last_layer(self.mlp(class_tokens)), patch_last_layer(self.patch_mlp(patch_tokens))
        # One pass through the shared MLP for both kinds of tokens: fewer, larger products.
        flat = class_tokens.flatten(0, -2)
        bottleneck = self.mlp(torch.cat([flat, patch_tokens.to(flat.dtype)]))
        class_logits = self.last_layer(bottleneck[: flat.shape[0]])
        return class_logits.unflatten(0, class_tokens.shape[:-1]), patch_last_layer(bottleneck[flat.shape[0] :])

    def cancel_last_layer_gradients(self) -> None:
        """
        Drops the gradients of the prototypes; call it in the first epoch, after the last backward of an accumulation
        and before clipping.

        DINO and iBOT freeze the last layer this way. `requires_grad` stays on, so DDP's buckets and the set of trained
        parameters never change, and an optimizer skips a parameter whose gradient is None, weight decay included.
        """
        for layer in (self.last_layer, self.patch_last_layer):
            if layer is not None:
                layer.weight.grad = None
