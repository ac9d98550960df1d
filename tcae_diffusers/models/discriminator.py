"""
Discriminators for the adversarial term (paper, section 3: L_GAN). Both return a tuple of logit maps, one per head;
high means real. The losses are in `objectives/adversarial.py`.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

NORM_TYPES = ("group", "batch", "none")


def _norm(norm_type: str, channels: int) -> nn.Module:
    if norm_type == "batch":
        return nn.BatchNorm2d(channels)
    # The most groups, up to 32, that divide any width.
    groups = max(groups for groups in range(1, 33) if channels % groups == 0)
    return nn.GroupNorm(groups, channels) if norm_type == "group" else nn.Identity()


class PatchGANDiscriminator(ModelMixin, ConfigMixin):
    """
    PatchGAN (Isola et al., 2017), as in VQGAN: strided 4x4 convolutions, one logit per overlapping patch.

    Args:
        in_channels (`int`, defaults to 3).
        base_channels (`int`, defaults to 64): width of the first layer; doubled at each further one, up to 8 times.
        num_layers (`int`, defaults to 3): layers of stride 2; a logit then sees 70 pixels.
        norm_type (`str`, defaults to `"group"`):
            `"group"`, `"batch"` (VQGAN's) or `"none"`. Batch statistics tie the images of a batch together, so only
            the others give one rank with a large batch what two ranks with half of it give.

    Raises:
        ValueError: fewer than one layer, or an unknown `norm_type`.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3, norm_type: str = "group"
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; expected at least 1")
        if norm_type not in NORM_TYPES:
            raise ValueError(f"norm_type is {norm_type!r}; expected one of {', '.join(NORM_TYPES)}")
        widths = [base_channels * min(2**i, 8) for i in range(num_layers + 1)]
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=4, stride=2, padding=1)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            bias = norm_type == "none"
            self.convs.append(nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=bias))
            self.norms.append(_norm(norm_type, widths[i]))
        self.conv_out = nn.Conv2d(widths[-1], 1, kernel_size=4, stride=1, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """
        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): in [-1, 1]; sides of at least `3 * 2**num_layers`.

        Returns:
            One logit map `(B, 1, h, w)`, in a tuple.
        """
        smallest = 3 * 2**self.config.num_layers
        if min(images.shape[-2:]) < smallest:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are too small for {self.config.num_layers} "
                f"layers; expected at least {smallest}, or build the discriminator with fewer num_layers"
            )
        hidden_states = F.leaky_relu(self.conv_in(images), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden_states = F.leaky_relu(norm(conv(hidden_states)), 0.2)
        return (self.conv_out(hidden_states),)


class FeatureHead(nn.Module):
    """Logits from one feature map: 1x1 convolution, a residual 3x3 one, and a 1x1 read-out, all spectrally
    normalised."""

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv_in = spectral_norm(nn.Conv2d(in_channels, hidden_channels, kernel_size=1))
        self.norm_in = _norm("group", hidden_channels)
        self.conv_mid = spectral_norm(nn.Conv2d(hidden_channels, hidden_channels, kernel_size=3, padding=1))
        self.norm_mid = _norm("group", hidden_channels)
        self.conv_out = spectral_norm(nn.Conv2d(hidden_channels, 1, kernel_size=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden_states = F.leaky_relu(self.norm_in(self.conv_in(features)), 0.2)
        residual = F.leaky_relu(self.norm_mid(self.conv_mid(hidden_states)), 0.2)
        return self.conv_out((hidden_states + residual) * 0.5**0.5)


class FrozenFeatureDiscriminator(ModelMixin, ConfigMixin):
    """
    Small trained heads on the features of a frozen network (projected GANs; StyleGAN-T; RAE and VTP use it with DINO).

    It takes features, not images, so that a checkpoint holds only what is trained and any network can supply them. See
    `objectives/feature_backbones.py`; [`AdversarialLoss`] runs the backbone.

    Args:
        feature_channels (`list[int]`): channels of each feature map, `backbone.feature_channels`.
        hidden_channels (`int`, *optional*): width of the heads; each feature map's own when not given (StyleGAN-T).

    Raises:
        ValueError: no feature map.
    """

    @register_to_config
    def __init__(self, feature_channels: list[int], hidden_channels: int | None = None) -> None:
        super().__init__()
        if not feature_channels:
            raise ValueError("feature_channels is empty; expected backbone.feature_channels")
        self.heads = nn.ModuleList(
            FeatureHead(channels, channels if hidden_channels is None else hidden_channels)
            for channels in feature_channels
        )

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """
        Args:
            features (`list[torch.Tensor]`): maps `(B, C_i, h_i, w_i)` in the order of `feature_channels`.

        Returns:
            Logit maps `(B, 1, h_i, w_i)`, one per head.
        """
        if len(features) != len(self.heads):
            raise ValueError(
                f"got {len(features)} feature maps for {len(self.heads)} heads; pass the backbone's features, and "
                "build the discriminator with that backbone's feature_channels"
            )
        return tuple(head(feature_map) for head, feature_map in zip(self.heads, features, strict=True))
