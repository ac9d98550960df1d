"""Adversarial loss of the decoder (paper, section 3: L_GAN) and of its discriminator."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.distributed import is_distributed
from ..models.frozen_network import FrozenNetworkHolder
from .adaptive_weight import adaptive_weight, squared_gradients
from .diff_augment import DIFF_AUGMENT_POLICIES, diff_augment

ADVERSARIAL_LOSSES = ("hinge", "non_saturating")

Logits = tuple[torch.Tensor, ...]
Generators = torch.Generator | list[torch.Generator]


def _mean_over_heads(function: Callable[[torch.Tensor], torch.Tensor], logits: Logits) -> torch.Tensor:
    """Mean within each head, then over heads, so that a fine feature map does not outvote a coarse one; fp32."""
    return torch.stack([function(head.float()).mean() for head in logits]).mean()


def discriminator_criterion(kind: str, real: Logits, fake: Logits) -> torch.Tensor:
    """Hinge or logistic loss of the discriminator, halved as in VQGAN."""
    if kind == "hinge":
        terms = _mean_over_heads(lambda x: F.relu(1 - x), real) + _mean_over_heads(lambda x: F.relu(1 + x), fake)
    else:
        terms = _mean_over_heads(lambda x: F.softplus(-x), real) + _mean_over_heads(F.softplus, fake)
    return 0.5 * terms


def generator_criterion(kind: str, fake: Logits) -> torch.Tensor:
    """`-D(x)` for hinge, `softplus(-D(x))` for the non-saturating loss."""
    return _mean_over_heads(torch.neg if kind == "hinge" else lambda x: F.softplus(-x), fake)


@dataclass
class GeneratorOutput:
    """
    Args:
        loss: the weighted term to add to the decoder's loss.
        loss_gan: the term without weights.
        adaptive_weight: detached; 1 when it is off.
    """

    loss: torch.Tensor
    loss_gan: torch.Tensor
    adaptive_weight: torch.Tensor


@dataclass
class DiscriminatorOutput:
    """
    Args:
        loss: sum of the weighted terms, for the discriminator's own backward.
        loss_gan, loss_r1, loss_lecam: the terms without weights; 0 where a term is off in this step.
        logits_real, logits_fake: mean logits, detached. Far apart for long means that the discriminator has won.
    """

    loss: torch.Tensor
    loss_gan: torch.Tensor
    loss_r1: torch.Tensor
    loss_lecam: torch.Tensor
    logits_real: torch.Tensor
    logits_fake: torch.Tensor


class AdversarialLoss(FrozenNetworkHolder):
    """
    Both sides of the adversarial game. The discriminator is passed to each call, since the script owns its wrapper,
    optimizer, schedule and moving average. With LeCam this module has state: save it with the checkpoint.

    Args:
        kind (`str`, defaults to `"hinge"`): `"hinge"` or `"non_saturating"`.
        weight (`float`, defaults to 0.75): lambda_q (RAE).
        start_step (`int`, defaults to 0): optimizer step at which the decoder begins to see the discriminator.
        discriminator_start_step (`int`, *optional*):
            Step at which the discriminator begins to learn; `start_step` when not given. Earlier gives it a lead
            (RAE).
        adaptive (`bool`, defaults to `True`): balance against the reconstruction loss, see [`adaptive_weight`].
        max_adaptive_weight (`float`, defaults to 1e4).
        augment (`tuple[str, ...]`, defaults to `()`): DiffAugment policy, of `"color"`, `"translation"`, `"cutout"`.
        r1_weight (`float`, defaults to 0.0): gamma of `gamma / 2 * E |grad D(x)|^2` on real images (Mescheder et al.,
            2018).
        r1_interval (`int`, defaults to 16):
            R1 in every so many steps, multiplied by as much (StyleGAN2's lazy regularisation): it costs a second
                backward.
        lecam_weight (`float`, defaults to 0.0): of LeCam (Tseng et al., 2021), for little data; 0.001 in MAGVIT.
        lecam_decay (`float`, defaults to 0.99): of the moving averages of the logits.
        feature_backbone (`nn.Module`, *optional*):
            From `objectives/feature_backbones.py`, for a [`FrozenFeatureDiscriminator`]: it then gets features, not
            images.

    Raises:
        ValueError: an unknown loss or policy, a negative weight, an interval below 1.
    """

    lecam_logits: torch.Tensor
    lecam_updates: torch.Tensor
    pending: torch.Tensor

    def __init__(
        self,
        kind: str = "hinge",
        weight: float = 0.75,
        start_step: int = 0,
        discriminator_start_step: int | None = None,
        adaptive: bool = True,
        max_adaptive_weight: float = 1e4,
        augment: tuple[str, ...] = (),
        r1_weight: float = 0.0,
        r1_interval: int = 16,
        lecam_weight: float = 0.0,
        lecam_decay: float = 0.99,
        feature_backbone: nn.Module | None = None,
    ):
        super().__init__(feature_backbone)
        if kind not in ADVERSARIAL_LOSSES:
            raise ValueError(f"adversarial loss is {kind!r}; expected one of {', '.join(ADVERSARIAL_LOSSES)}")
        for name in augment:
            if name not in DIFF_AUGMENT_POLICIES:
                raise ValueError(f"augment has {name!r}; expected any of {', '.join(DIFF_AUGMENT_POLICIES)}")
        for name, value in {"weight": weight, "r1_weight": r1_weight, "lecam_weight": lecam_weight}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
        if r1_interval < 1:
            raise ValueError(f"r1_interval is {r1_interval}; expected at least 1 step")
        self.kind = kind
        self.weight = weight
        self.start_step = start_step
        self.discriminator_start_step = start_step if discriminator_start_step is None else discriminator_start_step
        self.adaptive = adaptive
        self.max_adaptive_weight = max_adaptive_weight
        self.augment = tuple(augment)
        self.r1_weight = r1_weight
        self.r1_interval = r1_interval
        self.lecam_weight = lecam_weight
        self.lecam_decay = lecam_decay
        # Moving averages of the mean logits (real, fake), and the number of updates that they have seen.
        self.register_buffer("lecam_logits", torch.zeros(2))
        self.register_buffer("lecam_updates", torch.zeros(()))
        # Sums of mean logits since the last update (real, fake) and how many: see `update_statistics`.
        self.register_buffer("pending", torch.zeros(3), persistent=False)

    def generator_is_active(self, step: int) -> bool:
        """Whether the decoder sees the discriminator at this optimizer step."""
        return self.weight > 0 and step >= self.start_step

    def discriminator_is_active(self, step: int) -> bool:
        """Whether the discriminator learns at this optimizer step."""
        return self.weight > 0 and step >= self.discriminator_start_step

    def takes_r1(self, step: int) -> bool:
        """Whether the discriminator's loss has its gradient penalty at this optimizer step."""
        return self.r1_weight > 0 and step % self.r1_interval == 0

    def squared_gradients(
        self,
        discriminator: nn.Module,
        sample: torch.Tensor,
        reconstruction_loss: torch.Tensor,
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """
        Squared norms of the gradients of the reconstruction and of the adversarial loss at `sample`, `(2,)`: what
        [`adaptive_weight_from_squares`] makes the adaptive weight of several forward passes from. `sample` may be a
        leaf. Other arguments as in [`generator_loss`].
        """
        loss_gan = self._generator_criterion(discriminator, sample, generator)
        return squared_gradients(reconstruction_loss, loss_gan, sample)

    def generator_loss(
        self,
        discriminator: nn.Module,
        sample: torch.Tensor,
        reconstruction_loss: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        generator: Generators | None = None,
        balance: torch.Tensor | None = None,
    ) -> GeneratorOutput:
        """
        Term of the decoder; call it only where [`generator_is_active`] says so, since it costs two backwards of its
        own.

        Args:
            discriminator (`nn.Module`):
                Unwrapped (`accelerator.unwrap_model`): its weights take part as constants, so there is nothing to
                    reduce.
            sample (`torch.Tensor` of shape `(B, 3, H, W)`): the decoder's output, with its graph.
            reconstruction_loss (`torch.Tensor`, *optional*): needed when adaptive and without `balance`.
            reference (`torch.Tensor`, *optional*): needed in the same case; see [`adaptive_weight`].
            generator (`torch.Generator` or list of them, *optional*): needed with DiffAugment.
            balance (`torch.Tensor`, *optional*):
                The adaptive weight, where it is known: that of a step of several forward passes
                ([`adaptive_weight_from_squares`]).
        """
        loss_gan = self._generator_criterion(discriminator, sample, generator)
        if not self.adaptive:
            balance = loss_gan.new_ones(())
        elif balance is None:
            if reconstruction_loss is None or reference is None:
                raise ValueError(
                    "the adaptive weight needs reconstruction_loss and reference (the weight of the decoder's last "
                    "layer or its output); pass both, or build with adaptive=False"
                )
            balance = adaptive_weight(reconstruction_loss, loss_gan, reference, self.max_adaptive_weight)
        return GeneratorOutput(self.weight * balance * loss_gan, loss_gan, balance)

    def _generator_criterion(
        self, discriminator: nn.Module, sample: torch.Tensor, generator: Generators | None
    ) -> torch.Tensor:
        constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        inputs = self._discriminator_input(self._augmented(sample, generator))
        return generator_criterion(self.kind, torch.func.functional_call(discriminator, constants, (inputs,)))

    def discriminator_loss(
        self,
        discriminator: nn.Module,
        target: torch.Tensor,
        sample: torch.Tensor,
        step: int,
        generator: Generators | None = None,
    ) -> DiscriminatorOutput:
        """
        Loss of the discriminator.

        Args:
            discriminator (`nn.Module`): as prepared (wrapped), so that its gradients are reduced; run once, on both
                halves.
            target (`torch.Tensor` of shape `(B, 3, H, W)`): real images in [-1, 1].
            sample (`torch.Tensor` of shape `(B, 3, H, W)`): the decoder's output; detached here.
            step (`int`): optimizer step, which decides about lazy R1.
            generator (`torch.Generator` or list of them, *optional*): needed with DiffAugment.
        """
        with_r1 = self.takes_r1(step)
        target = target.detach().requires_grad_(with_r1)
        images = torch.cat([self._augmented(target, generator), self._augmented(sample.detach(), generator)])
        # The fused kernels of attention, in a transformer's frozen features, have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if with_r1 else nullcontext():
            logits = discriminator(self._discriminator_input(images))
        count = target.shape[0]
        real, fake = tuple(head[:count] for head in logits), tuple(head[count:] for head in logits)
        loss_gan = discriminator_criterion(self.kind, real, fake)
        loss, loss_r1, loss_lecam = loss_gan, loss_gan.new_zeros(()), loss_gan.new_zeros(())
        if with_r1:
            # The sum over images of an image's mean logit: its gradient holds each image's own.
            score = count * _mean_over_heads(lambda x: x, real)
            gradient = torch.autograd.grad(score, target, create_graph=True)[0]
            loss_r1 = gradient.float().square().sum(dim=(1, 2, 3)).mean()
            loss = loss + 0.5 * self.r1_weight * self.r1_interval * loss_r1
        if self.lecam_weight:
            loss_lecam = self._lecam(real, fake)
            loss = loss + self.lecam_weight * loss_lecam
        with torch.no_grad():
            means = torch.stack([_mean_over_heads(lambda x: x, half) for half in (real, fake)])
            self.pending[:2] += means
            self.pending[2] += 1
        return DiscriminatorOutput(loss, loss_gan, loss_r1, loss_lecam, means[0], means[1])

    def _lecam(self, real: Logits, fake: Logits) -> torch.Tensor:
        average_real, average_fake = self.lecam_logits
        distance = _mean_over_heads(lambda x: F.relu(x - average_fake).square(), real)
        distance = distance + _mean_over_heads(lambda x: F.relu(average_real - x).square(), fake)
        # Before the first update there is no average to be near to.
        return distance * (self.lecam_updates > 0)

    @torch.no_grad()
    def update_statistics(self) -> None:
        """
        Moves LeCam's averages to the logits since the last call, over all ranks. Call it once per optimizer step of
        the discriminator, on every rank; [`discard_pending`] instead for a step that is skipped as not finite.
        """
        if not self.lecam_weight:
            self.pending.zero_()
            return
        if is_distributed():
            dist.all_reduce(self.pending)
        means = self.pending[:2] / self.pending[2].clamp(min=1.0)
        # The first observation is taken whole: starting from 0 would pull the logits there.
        decay = torch.where(self.lecam_updates > 0, self.lecam_decay, 0.0)
        seen = self.pending[2] > 0
        self.lecam_logits.copy_(torch.where(seen, decay * self.lecam_logits + (1 - decay) * means, self.lecam_logits))
        self.lecam_updates += seen
        self.pending.zero_()

    def discard_pending(self, where: torch.Tensor | None = None) -> None:
        """Forgets the logits since the last update; `where`, a boolean without dimensions, decides on the device."""
        if where is None:
            self.pending.zero_()
        else:
            self.pending.masked_fill_(where, 0.0)

    def _augmented(self, images: torch.Tensor, generator: Generators | None) -> torch.Tensor:
        if not self.augment:
            return images
        if generator is None:
            raise ValueError("DiffAugment is on, so a torch.Generator is needed; pass generator=")
        return diff_augment(images, self.augment, generator)

    def _discriminator_input(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return images if self.frozen_network is None else self.frozen_network(images)
