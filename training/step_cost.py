"""
What a step of training costs for each image, by part: the losses and backward passes of the training commands run on
the `meta` device, where nothing is computed and no weights are needed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from PIL import Image

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.training_dataset import collate_training_views
from tcae_diffusers.data.sample_randomness import sample_generator
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.macs_by_part import MacsByPart
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.frozen_network import without_pretrained_weights
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.self_supervision import build_method
from tcae_diffusers.self_supervision.method import SelfSupervision
from tcae_diffusers.self_supervision.student import TokenizerStudent
from tcae_diffusers.trainer.adversary import Adversary, build_adversary
from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, resolve_sizes, with_new_decoder
from tcae_diffusers.trainer.fit import Side, is_log_step
from tcae_diffusers.trainer.latent_shaping import build_latent_shaping
from tcae_diffusers.trainer.optimizers import MuonWithAdamW, build_optimizer
from tcae_diffusers.trainer.reconstruction_terms import build_reconstruction_loss
from tcae_diffusers.trainer.reconstruction_training import ReconstructionTraining
from tcae_diffusers.trainer.run import Run
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.dit_objectives import build_objective, compute_losses
from tcae_diffusers.training.dit_transformers import build_transformer, choose_null_class_id, set_training_mode
from tcae_diffusers.training.finetune_decoder import DecoderTraining
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments
from tcae_diffusers.training.train_tcae import TokenizerTraining, parameter_groups

# Parts, in the order of a table.
VIEWS, LOCAL_CROPS, HEAD, TEACHER = "encoder: images, global crops", "encoder: local crops", "SSL head", "teacher"
DECODER, PERCEPTUAL, DISCRIMINATOR = "decoder", "perceptual loss", "discriminator"
SHAPING, TRANSFORMER, OPTIMIZER, OTHER = "latent shaping", "transformer", "optimizer", "other"
PARTS = (
    VIEWS,
    LOCAL_CROPS,
    HEAD,
    TEACHER,
    SHAPING,
    DECODER,
    PERCEPTUAL,
    DISCRIMINATOR,
    TRANSFORMER,
    OPTIMIZER,
    OTHER,
)

# Images of the counted batch: how many tokens are masked differs from image to image, and this is their mean.
BATCH = 8
META = torch.device("meta")
Batch = dict[str, torch.Tensor]


@dataclass
class StepCost:
    """
    Multiply-accumulates per image of one optimizer step, by part.

    Args:
        forward, backward (`dict[str, float]`): In the forward pass, and in the backward pass for the same part.
        batch_size (`int`): Images of the batch that was counted.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    batch_size: int

    @property
    def total(self) -> float:
        return sum(self.forward.values()) + sum(self.backward.values())

    @classmethod
    def of(cls, macs: MacsByPart, batch_size: int) -> StepCost:
        forward, backward = (
            {part: counted[part] / batch_size for part in PARTS if counted[part]}
            for counted in (macs.forward, macs.backward)
        )
        return cls(forward, backward, batch_size)


def part_text(cost: StepCost, part: str) -> str:
    """GMAC per image of a part: forward, `+` backward where there is one."""
    forward, backward = cost.forward[part] / 1e9, cost.backward.get(part, 0.0) / 1e9
    return f"{forward:.3g} + {backward:.3g}" if backward else f"{forward:.3g}"


@dataclass
class CountingAccelerator:
    """What the losses ask of an accelerator, for one process on the `meta` device."""

    device: torch.device = META
    num_processes: int = 1
    process_index: int = 0
    distributed_type: DistributedType = field(default=DistributedType.NO)

    def autocast(self) -> AbstractContextManager[None]:
        # Precision changes no count.
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        return objects


def counting_accelerator() -> Accelerator:
    return cast(Any, CountingAccelerator())


def tokenizer_step_cost(arguments: TokenizerArguments, batch: Batch | None = None) -> StepCost:
    """
    Cost of a step of train_tcae with every term that its arguments ask for, between two log entries.

    Args:
        batch: From the loader, with as many images as shall be counted; drawn if unset.

    Raises:
        InputError: arguments that train_tcae refuses as well.
    """
    with META, without_pretrained_weights():
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
        resolve_sizes(arguments, autoencoder)
        adapter = adapt(autoencoder)
        method = build_method(arguments, adapter)
        shaping = build_latent_shaping(arguments, adapter, counting_accelerator())
        student = TokenizerStudent(autoencoder, method.parts, shaping).train()
        losses = build_reconstruction_loss(arguments).to(META)
        adversary = build_adversary(arguments, counting_accelerator())
        edges = [f"autoencoder.{name}" for name in adapter.pixel_layers]
        optimizer = build_optimizer(arguments, parameter_groups(student, arguments), student, edges)
    batch = draw_batch(arguments, method.crops()) if batch is None else batch
    count = len(batch["pixel_values"])
    side = Side(autoencoder, student, optimizer)
    unused = cast(Any, None)
    training = TokenizerTraining(
        counted_run(arguments, count), arguments, autoencoder, side, unused, losses, adversary, unused, unused,
        student, method,
    )  # fmt: skip
    macs = MacsByPart(OTHER)
    watch_autoencoder(macs, autoencoder, local_crop_size(arguments, batch))
    watch_losses(macs, losses, adversary)
    watch_method(macs, method)
    macs.watch(shaping, SHAPING)
    return count_step(macs, training, batch)


def decoder_step_cost(arguments: DecoderArguments, batch: Batch | None = None) -> StepCost:
    """
    Cost of a step of finetune_decoder once all of its terms are on, between two log entries.

    Args:
        arguments: `autoencoder` may name a preset, since nothing of a trained one but its shape matters.
        batch: See [`tokenizer_step_cost`].

    Raises:
        InputError: arguments that finetune_decoder refuses as well.
    """
    with META, without_pretrained_weights():
        autoencoder = build_autoencoder(arguments.autoencoder)
        resolve_sizes(arguments, autoencoder)
        teacher = autoencoder.eval().requires_grad_(False) if arguments.distillation_weight else None
        if arguments.new_decoder:
            autoencoder = with_new_decoder(autoencoder, arguments.new_decoder)
        tokenizer = FrozenEncoderTokenizer(autoencoder, arguments.latent_noise).train()
        losses = build_reconstruction_loss(arguments).to(META)
        adversary = build_adversary(arguments, counting_accelerator())
        trained = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "weight_decay": arguments.weight_decay}]
        optimizer = build_optimizer(arguments, groups, autoencoder, adapt(autoencoder).pixel_layers)
    batch = draw_batch(arguments, {}) if batch is None else batch
    side = Side(autoencoder, tokenizer, optimizer)
    unused = cast(Any, None)
    training = DecoderTraining(
        counted_run(arguments, len(batch["pixel_values"])), arguments, autoencoder, side, unused, losses, adversary,
        unused, unused, "", teacher,
    )  # fmt: skip
    macs = MacsByPart(OTHER)
    watch_autoencoder(macs, autoencoder)
    watch_losses(macs, losses, adversary)
    if teacher is not None:
        for name in adapt(teacher).decoder_parts:
            if hasattr(teacher, name):
                macs.watch(getattr(teacher, name), TEACHER)
    return count_step(macs, training, batch)


def transformer_step_cost(
    arguments: DiTArguments, latent_shape: tuple[int, int, int], num_classes: int, batch_size: int = BATCH
) -> StepCost:
    """
    Cost of a step of train_dit for each latent.

    Raises:
        InputError: with `--repa_weight`: what it aligns with is known once tokens are cached.
    """
    if arguments.repa_weight:
        raise InputError(f"--repa_weight {arguments.repa_weight:g}: its cost is not counted; expected 0")
    objective = build_objective(arguments, latent_shape)
    null_class_id = choose_null_class_id(arguments.null_class_id, num_classes, objective.prediction_type)
    with META:
        transformer = build_transformer(
            arguments.transformer,
            latent_shape,
            num_classes,
            null_class_id,
            arguments.num_layers,
            arguments.num_attention_heads,
            arguments.attention_head_dim,
            arguments.patch_size,
        )
        set_training_mode(transformer)
        latents = torch.randn(batch_size, *latent_shape)
        labels = torch.zeros(batch_size, dtype=torch.long)
        randomness = {"noise": latents, "levels": torch.rand(batch_size), "drop": torch.zeros(batch_size).bool()}
    macs = MacsByPart(OTHER)
    macs.watch(transformer, TRANSFORMER)
    with macs:
        compute_losses(transformer, objective, latents, labels, null_class_id, randomness)["loss"].backward()
    return StepCost.of(macs, batch_size)


def counted_run(arguments: RunArguments, batch_size: int) -> Run:
    unused = cast(Any, None)
    return Run("count", arguments, Path(), counting_accelerator(), unused, unused, batch_size, first_step=0)


def draw_batch(arguments: Any, crops: dict[str, Any]) -> Batch:
    """A batch with the sizes and masks of the training command, of images that show nothing."""
    transform = MultiCropTransform(arguments.image_size, horizontal_flip=arguments.horizontal_flip, **crops)
    side = 2 * arguments.image_size
    samples = [
        {**transform(Image.new("RGB", (side, side)), sample_generator(arguments.seed, 0, index)), "indices": index}
        for index in range(BATCH)
    ]
    return collate_training_views(samples)


def local_crop_size(arguments: TokenizerArguments, batch: Batch) -> int | None:
    """Side of the local crops, if they can be told from the other views by it."""
    if "local_crops" not in batch:
        return None
    side = batch["local_crops"].shape[-1]
    return None if side in (arguments.image_size, batch["global_crops"].shape[-1]) else side


def watch_autoencoder(macs: MacsByPart, autoencoder: ModelMixin, local_size: int | None = None) -> None:
    def encoder(images: torch.Tensor, *_: Any) -> str:
        return LOCAL_CROPS if images.shape[-1] == local_size else VIEWS

    for name, module in autoencoder.named_children():
        macs.watch(module, DECODER if adapt(autoencoder).is_decoder(name) else encoder)


def watch_losses(macs: MacsByPart, losses: ReconstructionLoss, adversary: Adversary | None) -> None:
    macs.watch(losses, PERCEPTUAL)
    if adversary is not None:
        macs.watch(adversary.discriminator, DISCRIMINATOR)
        if adversary.loss.frozen_network is not None:
            macs.watch(adversary.loss.frozen_network, DISCRIMINATOR)


def watch_method(macs: MacsByPart, method: SelfSupervision) -> None:
    macs.watch(method.parts, HEAD)
    teacher = getattr(method, "teacher", None)
    if teacher is not None:
        macs.watch(teacher, TEACHER)


def count_step(macs: MacsByPart, training: ReconstructionTraining, batch: Batch) -> StepCost:
    """One forward and backward pass of all sides, and the products of Muon, which are those of a step."""
    arguments, count = training.arguments, len(batch["pixel_values"])
    step = ordinary_step(arguments)
    with macs:
        training.backward([batch], step, 0)
    optimizer = training.side.optimizer
    if isinstance(optimizer, MuonWithAdamW):
        with macs, macs.part(OPTIMIZER), torch.no_grad():
            for group in optimizer.param_groups:
                if group["matrices"]:
                    optimizer.step_matrices(group)
        # Every process does all of it, for its own images.
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
        macs.forward[OPTIMIZER] = macs.forward[OPTIMIZER] * count // per_step
    return StepCost.of(macs, count)


def ordinary_step(arguments: RunArguments) -> int:
    """The last step without an entry in the log: by then all terms are on."""
    step = max(arguments.max_train_steps - 2, 0)
    while step and is_log_step(step, arguments):
        step -= 1
    return step
