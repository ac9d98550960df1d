"""The discriminator of a run: what the arguments ask for, with optimizer and average of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..errors import InputError
from ..models.discriminator import FrozenFeatureDiscriminator, PatchGANDiscriminator
from ..objectives.adaptive_weight import adaptive_weight_from_squares
from ..objectives.adversarial import AdversarialLoss
from ..objectives.feature_backbones import build_feature_backbone
from ..objectives.reconstruction import ReconstructionLoss
from ..objectives.schedules import cosine_with_warmup
from .averages import WeightAverage, trained_parameters
from .fit import Side
from .run import save_model
from .sharding import require_whole_parameters
from .tokenizer_arguments import AdversarialArguments

Generators = list[torch.Generator]


@dataclass
class Pass:
    """
    One forward pass as both sides see it.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): What was to be reconstructed, in [-1, 1].
        sample (`torch.Tensor` of shape `(B, 3, H, W)`): What the decoder made, in about [-1, 1].
        generators (`list[torch.Generator]`): Of the images' slots.
    """

    images: torch.Tensor
    sample: torch.Tensor
    generators: Generators


@dataclass
class Adversary:
    """
    For each optimizer step call [`begin_step`], then for each forward pass [`generator_loss`] and, once the decoder
    has its gradients, [`backward`].

    Args:
        loss ([`AdversarialLoss`]): Of both sides.
        discriminator: Unwrapped.
        side ([`Side`]): The discriminator, for [`fit`].
        average ([`WeightAverage`]): Of its weights.
    """

    accelerator: Accelerator
    loss: AdversarialLoss
    discriminator: PatchGANDiscriminator | FrozenFeatureDiscriminator
    side: Side
    average: WeightAverage
    # The adaptive weight of the step at hand, where it is not each pass's own.
    balance: torch.Tensor | None = None

    def schedule(self, step: int, arguments: AdversarialArguments) -> None:
        """Its learning rate is a function of the step alone, and begins where it begins to learn."""
        total = arguments.max_train_steps
        begin = min(self.side.first_step, total - 1)
        warmup = min(round(arguments.lr_warmup_fraction * total), total - begin)
        peak = arguments.discriminator_learning_rate
        for group in self.side.optimizer.param_groups:
            group["lr"] = cosine_with_warmup(step - begin, total - begin, peak, arguments.final_learning_rate, warmup)

    def begin_step(
        self, passes: Iterable[Pass], num_passes: int, reconstruction_loss: ReconstructionLoss, step: int
    ) -> None:
        """
        Find the adaptive weight of accumulated batches: it is that of all their images, so it must be known before the
        first backward.

        Args:
            passes: Of the step's batches, without a graph. Only looked at where there are several and a weight is
                wanted, since they cost one more forward pass of each.
        """
        self.balance = None
        if num_passes == 1 or not (self.loss.adaptive and self.loss.generator_is_active(step)):
            return
        squares = []
        for each in passes:
            sample = each.sample.detach().requires_grad_()
            reconstruction = reconstruction_loss(sample, each.images).loss
            with self.accelerator.autocast():
                squares.append(
                    self.loss.squared_gradients(self.discriminator, sample, reconstruction, each.generators)
                )
        self.balance = adaptive_weight_from_squares(
            sum(squares[1:], squares[0]), num_passes, self.loss.max_adaptive_weight
        )

    def generator_loss(
        self, seen: Pass, reconstruction: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted term of the decoder, 0 before its time, and what is logged of it."""
        if not self.loss.generator_is_active(step):
            return torch.zeros_like(reconstruction), {}
        with self.accelerator.autocast():
            output = self.loss.generator_loss(
                self.discriminator,
                seen.sample,
                reconstruction,
                reference=seen.sample,
                generator=seen.generators,
                balance=self.balance,
            )
        return output.loss, {"train/loss_gan": output.loss_gan, "train/adaptive_weight": output.adaptive_weight}

    def backward(self, seen: Pass, step: int) -> dict[str, torch.Tensor]:
        """Gradients of the discriminator, none before its time; what is logged of them."""
        if not self.loss.discriminator_is_active(step):
            return {}
        with self.accelerator.autocast():
            output = self.loss.discriminator_loss(self.side.model, seen.images, seen.sample, step, seen.generators)
        self.accelerator.backward(output.loss)
        return {
            self.side.loss: output.loss,
            "discriminator/logits_real": output.logits_real,
            "discriminator/logits_fake": output.logits_fake,
        }

    def after_step(self, step: int, skipped: torch.Tensor) -> None:
        if self.loss.discriminator_is_active(step):
            self.loss.discard_pending(skipped > 0)
            self.loss.update_statistics()

    def save(self, folder: Path) -> None:
        """Write the averaged discriminator."""
        self.average.copy_to(trained_parameters(self.discriminator))
        save_model(self.discriminator, folder)

    def describe(self, arguments: AdversarialArguments) -> str:
        adaptive = "adaptive " if arguments.adversarial_adaptive_weight else ""
        return f"{arguments.adversarial_weight:g} {adaptive}{arguments.adversarial_loss} ({arguments.discriminator})"


def build_adversary(arguments: AdversarialArguments, accelerator: Accelerator) -> Adversary | None:
    """
    `None` where the arguments ask for no discriminator.

    Raises:
        ValueError, FileNotFoundError, ImportError: options out of range, images too small, weights not to be had, or
            fp16.
    """
    if not arguments.has_discriminator:
        return None
    require_whole_parameters(accelerator)
    if accelerator.mixed_precision == "fp16":
        # Its scaler unscales the gradients of one optimizer in a step.
        raise InputError("--mixed_precision fp16 cannot be combined with --discriminator; use bf16.")
    backbone = None
    discriminator: PatchGANDiscriminator | FrozenFeatureDiscriminator
    if arguments.discriminator == "patchgan":
        needed = arguments.discriminator_min_resolution
        if arguments.image_size < needed:
            raise InputError(
                f"--discriminator_layers {arguments.discriminator_layers} needs images of at least {needed} pixels,"
                f" --resolution is {arguments.resolution}; use fewer layers."
            )
        discriminator = PatchGANDiscriminator(
            base_channels=arguments.discriminator_channels, num_layers=arguments.discriminator_layers
        )
    else:
        backbone = build_feature_backbone(arguments.discriminator, arguments.discriminator_weights_path)
        discriminator = FrozenFeatureDiscriminator(backbone.feature_channels)
    loss = AdversarialLoss(
        kind=arguments.adversarial_loss,
        weight=arguments.adversarial_weight,
        start_step=arguments.adversarial_start_step,
        discriminator_start_step=arguments.discriminator_start_step,
        adaptive=arguments.adversarial_adaptive_weight,
        max_adaptive_weight=arguments.adversarial_max_adaptive_weight,
        augment=tuple(arguments.discriminator_diff_augment),
        r1_weight=arguments.discriminator_r1_weight,
        r1_interval=arguments.discriminator_r1_interval,
        lecam_weight=arguments.discriminator_lecam_weight,
        feature_backbone=backbone,
    ).to(accelerator.device)
    average = WeightAverage(discriminator, arguments.discriminator_ema_decay)
    average.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        discriminator.parameters(),
        lr=arguments.discriminator_learning_rate,
        betas=(arguments.discriminator_beta1, arguments.discriminator_beta2),
        weight_decay=arguments.discriminator_weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(discriminator, optimizer)
    side = Side(discriminator, model, optimizer, [average], "_discriminator", loss.discriminator_start_step)
    return Adversary(accelerator, loss, discriminator, side, average)
