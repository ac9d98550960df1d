"""Which tokens are masked, as flat indices: gathers before the head, and no wait for the device."""

from dataclasses import dataclass

import torch


@dataclass
class MaskedTokens:
    """
    The masked tokens of a batch of images.

    Args:
        indices (`torch.LongTensor` of shape `(T,)`): places in the flattened `(images * tokens)` grid.
        weights (`torch.FloatTensor` of shape `(T,)`): 1 / number of masked tokens of the same image.
        num_images (`int`): images in the batch, those without a mask included.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    num_images: int

    @classmethod
    def from_mask(cls, token_mask: torch.Tensor) -> "MaskedTokens":
        """
        Args:
            token_mask (`torch.BoolTensor` of shape `(..., N)`):
                True where masked; all leading dimensions count as images, view-major as the tokens are (`(2, B, N)`
                for two global views). Pass a mask that is still on the CPU, then move the result with `.to(device)`:
                counting the masked tokens of one on a GPU waits for the GPU.

        Raises:
            ValueError: the mask is not boolean or has fewer than two dimensions.
        """
        if token_mask.dtype != torch.bool or token_mask.ndim < 2:
            raise ValueError(
                f"token_mask has dtype {token_mask.dtype} and shape {tuple(token_mask.shape)}; "
                "expected torch.bool and (images, tokens)"
            )
        token_mask = token_mask.flatten(0, -2)
        indices = token_mask.flatten().nonzero().squeeze(1)
        per_image = token_mask.sum(dim=1)
        weights = per_image.clamp(min=1).float().reciprocal()[indices // token_mask.shape[1]]
        return cls(indices=indices, weights=weights, num_images=token_mask.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "MaskedTokens":
        """The same on another device."""
        return MaskedTokens(
            self.indices.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
            self.num_images,
        )

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens (..., N, D)` with the leading dimensions of the mask -> `(T, D)`, in the order of `indices`."""
        if tokens.shape[:-2].numel() != self.num_images:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, that is {tokens.shape[:-2].numel()} images; "
                f"the mask was drawn for {self.num_images}"
            )
        return tokens.flatten(0, -2).index_select(0, self.indices)
