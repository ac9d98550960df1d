"""
What a step of training costs for each image, by part: the losses and backward passes of the training commands run on
the `meta` device, where nothing is computed and no weights are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from PIL import Image
from torch import nn

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.training_dataset import collate_training_views
from tcae_diffusers.data.sample_randomness import sample_generator
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.macs_by_part import MacsByPart
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.frozen_network import without_pretrained_weights
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer
from tcae_diffusers.objectives.latent_equivariance import LatentEquivariance
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.objectives.representation_alignment import AlignedTransformer
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
from tcae_diffusers.training.dit_objectives import build_alignment, build_objective, compute_losses
from tcae_diffusers.training.dit_transformers import (
    LATENT_LAYERS,
    build_transformer,
    choose_null_class_id,
    set_training_mode,
)
from tcae_diffusers.training.finetune_decoder import DecoderTraining
from tcae_diffusers.training.step_cost import (
    DECODER,
    DISCRIMINATOR,
    HEAD,
    LOCAL_CROPS,
    OPTIMIZER,
    OTHER,
    PERCEPTUAL,
    PROJECTOR,
    SHAPING,
    TEACHER,
    TRANSFORMER,
    VIEWS,
    StepCost,
)
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments
from tcae_diffusers.training.train_tcae import TokenizerTraining, freeze_layers, parameter_groups

# Images of the counted batch: how many tokens are masked differs from image to image, and this is their mean.
BATCH = 8
# Steps at the end of a run that tell how often each kind of step occurs.
LAST_STEPS = 1000
META = torch.device("meta")
Batch = dict[str, torch.Tensor]


@dataclass
class CountingAccelerator:
    """What the losses ask of an accelerator, for one process on the `meta` device."""

    device: torch.device = META
    num_processes: int = 1
    process_index: int = 0
    distributed_type: DistributedType = field(default=DistributedType.NO)
    mixed_precision: str = "no"

    def autocast(self) -> AbstractContextManager[None]:
        # Precision changes no count.
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        return objects


def counting_accelerator() -> Accelerator:
    return cast(Any, CountingAccelerator())


def tokenizer_step_cost(
    arguments: TokenizerArguments, batch: Batch | None = None, of_whole_run: bool = False
) -> StepCost:
    """
    Mean cost of a step of train_tcae with every term that its arguments ask for, between two log entries.

    Args:
        batch: From the loader, with as many images as shall be counted; drawn if unset.
        of_whole_run: The mean over all steps, also those before a discriminator begins.

    Raises:
        InputError: arguments that train_tcae refuses as well.
    """
    with META, without_pretrained_weights():
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
        resolve_sizes(arguments, autoencoder)
        freeze_layers(autoencoder, arguments)
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
    return count_step(macs, training, batch, of_whole_run)


def decoder_step_cost(arguments: DecoderArguments, batch: Batch | None = None) -> StepCost:
    """
    Mean cost of a step of finetune_decoder once all of its terms are on, between two log entries.

    Args:
        arguments: `autoencoder` may name a preset, since nothing of a trained one but its shape matters.
        batch: See [`tokenizer_step_cost`].

    Raises:
        InputError: arguments that finetune_decoder refuses as well.
    """
    with META, without_pretrained_weights():
        autoencoder = build_autoencoder(arguments.autoencoder)
        resolve_sizes(arguments, autoencoder)
        if arguments.new_decoder:
            autoencoder = with_new_decoder(autoencoder, arguments.new_decoder)
        tokenizer = FrozenEncoderTokenizer(autoencoder, arguments.latent_noise).train()
        if arguments.trained_layers == "head":
            adapt(autoencoder).train_only(adapt(autoencoder).decoder_head)
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
        unused, unused, "",
    )  # fmt: skip
    macs = MacsByPart(OTHER)
    watch_autoencoder(macs, autoencoder)
    watch_losses(macs, losses, adversary)
    return count_step(macs, training, batch)


def transformer_step_cost(
    arguments: DiTArguments,
    latent_shape: tuple[int, int, int],
    num_classes: int,
    token_shape: tuple[int, int, int] | None = None,
) -> StepCost:
    """
    Cost of a step of train_dit for each latent.

    Args:
        token_shape: `(D, h, w)` of the cached tokens that `--repa_weight` aligns with.

    Raises:
        InputError: `--repa_weight` without tokens, or arguments that train_dit refuses as well.
    """
    objective = build_objective(arguments, [latent_shape])
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
        trained: nn.Module = transformer
        alignment = build_alignment(arguments, cast(Any, transformer.config).num_layers, [latent_shape])
        if alignment is not None:
            if token_shape is None:
                raise InputError(f"--repa_weight {arguments.repa_weight:g} needs tokens to align with; expected 0")
            trained = alignment.attach(transformer, token_shape[0])
        groups = [{"params": list(trained.parameters()), "weight_decay": arguments.weight_decay}]
        optimizer = build_optimizer(arguments, groups, transformer, LATENT_LAYERS)
        set_training_mode(transformer)
        latents = torch.randn(BATCH, *latent_shape)
        labels = torch.zeros(BATCH, dtype=torch.long)
        # Where random numbers are to be had: which levels they are changes no count, but their type must be theirs.
        levels = objective.draw_levels(BATCH, torch.Generator(), torch.device("cpu")).to(META)
        randomness = {"noise": latents, "levels": levels, "drop": torch.zeros(BATCH).bool()}
        tokens = None if token_shape is None else torch.randn(BATCH, *token_shape)
    macs = MacsByPart(OTHER)
    macs.watch(transformer, TRANSFORMER)
    if isinstance(trained, AlignedTransformer):
        macs.watch(trained.projector, PROJECTOR)
    with macs:
        losses = compute_losses(
            trained, objective, latents, labels, null_class_id, randomness, alignment, tokens if alignment else None
        )
        losses["loss"].backward()
    step = StepCost.of(macs, BATCH)
    return StepCost.weighted_sum([(1.0, step), (1.0, optimizer_cost(macs, optimizer, arguments))])


def counted_run(arguments: RunArguments, batch_size: int) -> Run:
    unused = cast(Any, None)
    return Run("count", arguments, Path(), counting_accelerator(), unused, unused, batch_size, first_step=0)


def draw_batch(arguments: Any, crops: dict[str, Any]) -> Batch:
    """
    A batch with the sizes and masks of the training command, of images that show nothing.

    Raises:
        InputError: arguments that ask for several sizes, whose shares only the images could tell.
    """
    if arguments.has_several_sizes:
        raise InputError(
            "the cost of a step is counted for images of one size; omit --extra_resolutions and"
            " --aspect_ratio_buckets."
        )
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


def count_step(
    macs: MacsByPart, training: ReconstructionTraining, batch: Batch, of_whole_run: bool = False
) -> StepCost:
    """The mean over the kinds of steps of forward and backward passes of all sides, and the optimizer."""
    batches = [batch] * training.arguments.gradient_accumulation_steps
    costs = []
    for step, share in kinds_of_steps(training, of_whole_run).items():
        macs.clear()
        with macs:
            for micro_step in range(len(batches)):
                training.backward(batches, step, micro_step)
        costs.append((share, StepCost.of(macs, len(batch["pixel_values"]) * len(batches))))
    return StepCost.weighted_sum([*costs, (1.0, optimizer_cost(macs, training.side.optimizer, training.arguments))])


def optimizer_cost(macs: MacsByPart, optimizer: torch.optim.Optimizer, arguments: RunArguments) -> StepCost:
    """Of Muon's products, once there are gradients. Every process does all of them, for the images of its own."""
    macs.clear()
    if isinstance(optimizer, MuonWithAdamW):
        with macs, macs.part(OPTIMIZER), torch.no_grad():
            for group in optimizer.param_groups:
                if group["matrices"]:
                    optimizer.step_matrices(group)
    return StepCost.of(macs, arguments.train_batch_size * arguments.gradient_accumulation_steps)


def kinds_of_steps(training: ReconstructionTraining, of_whole_run: bool = False) -> dict[int, float]:
    """
    A step of every kind that has a cost of its own, and the share of steps that are of this kind once every term is
    on, or of all steps: equivariance gives the decoder fewer positions in some steps, and R1 is the penalty of some.
    """
    arguments, kinds = training.arguments, dict[tuple[int | None, tuple[bool, ...]], list[int]]()
    end, begin = arguments.max_train_steps, 0
    if training.adversary is not None:
        begin = max(training.adversary.loss.start_step, training.adversary.side.first_step)
    steps = range(0 if of_whole_run else max(0, end - LAST_STEPS, min(begin, end - 1)), end)
    for step in steps:
        terms: tuple[bool, ...] = ()
        if training.adversary is not None:
            loss = training.adversary.loss
            terms = loss.takes_r1(step), loss.discriminator_is_active(step), loss.generator_is_active(step)
        kinds.setdefault((scaled_side(training, step), terms), []).append(step)
    return {ordinary_step(found, arguments): len(found) / len(steps) for found in kinds.values()}


def scaled_side(training: ReconstructionTraining, step: int) -> int | None:
    """Positions along a side of the latents that equivariance makes of those of a step; `None` if it does nothing."""
    if isinstance(training, TokenizerTraining):
        side = training.arguments.image_size // adapt(training.autoencoder).spatial_ratio
        for shaping in training.student.shaping.shapings:
            if isinstance(shaping, LatentEquivariance):
                return shaping.scaled_side(side, step)
    return None


def ordinary_step(steps: Sequence[int], arguments: RunArguments) -> int:
    """The last of them without an entry in the log, if there is one."""
    return next((step for step in reversed(steps) if not is_log_step(step, arguments)), steps[-1])
