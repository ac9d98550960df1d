"""Networks that only look: in evaluation mode for good, without gradients to their own weights."""

from torch import nn


class FrozenNetwork(nn.Module):
    """
    A network in evaluation mode for good, whose weights take no gradient.

    Attributes:
        name (`str`): by which reports tell it from others.
    """

    name: str

    def freeze(self) -> None:
        """Call it once the network is complete."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenNetwork":
        # A parent's `.train()` would switch dropout and batch statistics on and change what is measured.
        return super().train(False)
