"""
Fine-tune the decoder of a trained tokenizer with L1, a perceptual and an adversarial term; the encoder stays as it is
(arXiv 2604.07340, section 3: phase 2).

    accelerate launch training/finetune_decoder.py --autoencoder runs/tokenizer/model --output_dir runs/decoder

The result lies in OUTPUT_DIR/model. Cached latents and diffusion models of the tokenizer stay valid: encoder and
latent statistics are proved bit-identical before it is written. Any autoencoder of diffusers works.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.models.discriminator import FrozenFeatureDiscriminator, PatchGANDiscriminator
from tcae_diffusers.objectives.adversarial import AdversarialLoss, adaptive_weight_from_squares
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer, frozen_fingerprint
from tcae_diffusers.objectives.feature_backbones import build_feature_backbone
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.objectives.schedules import cosine_with_warmup
from tcae_diffusers.trainer import (
    CheckpointManager,
    NonFiniteGuard,
    StopSignal,
    TrainingProgress,
    prepare_run_folder,
    save_model,
    start_accelerator,
    start_trackers,
)
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview
from tcae_diffusers.trainer.run import discard_new_folder_on_error, save_description
from tcae_diffusers.trainer.tokenizer_setup import (
    build_autoencoder,
    build_loader,
    build_preview,
    build_reconstruction_loss,
    build_training_images,
    checkpoint_identity,
    compile_blocks,
    require_whole_parameters,
    resolve_sizes,
    to_unit_range,
)
from tcae_diffusers.trainer.user_errors import RUN_ERRORS, exit_on_user_error
from tcae_diffusers.training.decoder_arguments import DecoderArguments

logger = get_logger(__name__)


@dataclass
class Adversary:
    """
    The other side of the game, with optimizer and average of its own.

    Args:
        discriminator: unwrapped; `model` is the same as accelerate prepared it.
    """

    loss: AdversarialLoss
    discriminator: PatchGANDiscriminator | FrozenFeatureDiscriminator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel


@dataclass
class DecoderRun:
    """Everything that the loop needs, ready to go on from `first_step`; `adversary` is `None` without one."""

    arguments: DecoderArguments
    folder: Path
    accelerator: Accelerator
    autoencoder: ModelMixin
    model: torch.nn.Module
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    guard: NonFiniteGuard
    checkpoints: CheckpointManager
    dataset: TokenizerTrainingDataset | StreamedImages
    preview: ReconstructionPreview | None
    encoder_sha256: str
    total_batch: int
    first_step: int


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def build_adversary(arguments: DecoderArguments, accelerator: Accelerator) -> Adversary | None:
    """
    Raises:
        ValueError, FileNotFoundError, ImportError: options out of range, images too small, weights not to be had.
    """
    if arguments.discriminator == "none" or arguments.adversarial_weight == 0:
        return None
    backbone = None
    if arguments.discriminator == "patchgan":
        smallest = 3 * 2**arguments.discriminator_layers
        if arguments.resolution < smallest:
            raise ValueError(
                f"--discriminator_layers {arguments.discriminator_layers} needs images of at least {smallest} pixels,"
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
    ema = EMAModel(discriminator.parameters(), decay=arguments.discriminator_ema_decay, foreach=True)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        discriminator.parameters(),
        lr=arguments.discriminator_learning_rate,
        betas=(arguments.discriminator_beta1, arguments.discriminator_beta2),
        weight_decay=arguments.discriminator_weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(discriminator, optimizer)
    accelerator.register_for_checkpointing(loss, ema)
    return Adversary(loss, discriminator, model, optimizer, ema)


def start(arguments: DecoderArguments) -> DecoderRun:
    """Build everything and load the checkpoint to go on from; whatever is wrong with the arguments shows here."""
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)
    require_whole_parameters(accelerator)
    if not Path(arguments.autoencoder).is_dir():
        raise FileNotFoundError(
            f"--autoencoder {arguments.autoencoder} is not a folder; pass a trained autoencoder's."
        )
    autoencoder = build_autoencoder(arguments.autoencoder)
    resolve_sizes(arguments, autoencoder)
    encoder_sha256 = frozen_fingerprint(autoencoder)
    tokenizer = FrozenEncoderTokenizer(autoencoder, arguments.latent_noise)
    transform = MultiCropTransform(arguments.resolution, horizontal_flip=arguments.horizontal_flip)
    dataset = build_training_images(arguments, transform)
    preview = build_preview(arguments, folder)
    reconstruction_loss = build_reconstruction_loss(arguments).to(accelerator.device)
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(tokenizer, names=tuple(autoencoder._repeated_blocks or ()))

    ema = EMAModel(trained_parameters(autoencoder), decay=arguments.ema_decay, foreach=True)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        trained_parameters(autoencoder),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(tokenizer, optimizer)
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    accelerator.register_for_checkpointing(ema, guard)
    adversary = build_adversary(arguments, accelerator)

    total_batch = arguments.train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    identity = checkpoint_identity("finetune_decoder", arguments, autoencoder, dataset.fingerprint, total_batch)
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        {
            **identity,
            "encoder": encoder_sha256,
            "losses": reconstruction_loss.description,
            "discriminator": arguments.discriminator if adversary else "none",
        },
    )
    first_step = checkpoints.resume(arguments.resume)
    return DecoderRun(
        arguments=arguments,
        folder=folder,
        accelerator=accelerator,
        autoencoder=autoencoder,
        model=model,
        reconstruction_loss=reconstruction_loss,
        adversary=adversary,
        optimizer=optimizer,
        ema=ema,
        guard=guard,
        checkpoints=checkpoints,
        dataset=dataset,
        preview=preview,
        encoder_sha256=encoder_sha256,
        total_batch=total_batch,
        first_step=first_step,
    )


def set_schedules(run: DecoderRun, step: int) -> None:
    """Learning rates are functions of the step alone; the discriminator's begins where it begins to learn."""
    arguments, total = run.arguments, run.arguments.max_train_steps
    warmup = round(arguments.lr_warmup_fraction * total)
    for group in run.optimizer.param_groups:
        peak = arguments.peak_learning_rate(run.total_batch)
        group["lr"] = cosine_with_warmup(step, total, peak, arguments.final_learning_rate, warmup)
    if run.adversary is not None:
        begin = min(run.adversary.loss.discriminator_start_step, total - 1)
        for group in run.adversary.optimizer.param_groups:
            group["lr"] = cosine_with_warmup(
                step - begin,
                total - begin,
                arguments.discriminator_learning_rate,
                arguments.final_learning_rate,
                min(warmup, total - begin),
            )


def reconstruct(run: DecoderRun, batch: dict, step: int, micro_step: int):
    """Images, their reconstructions, and the generators of their slots, which have drawn the latent noise."""
    arguments, accelerator = run.arguments, run.accelerator
    images = to_unit_range(batch["pixel_values"], accelerator.device)
    first_slot = (micro_step * accelerator.num_processes + accelerator.process_index) * arguments.train_batch_size
    generators = slot_generators(arguments.seed, step, first_slot, len(images))
    return images, run.model(images, generators), generators


def adaptive_weight_of_step(run: DecoderRun, batches: list[dict], step: int) -> torch.Tensor:
    """
    The adaptive weight of accumulated batches: it is that of all their images, so it must be known before the first
    backward. Costs one more forward pass of each, without gradients in the decoder.
    """
    adversary, squares = run.adversary, None
    for micro_step, batch in enumerate(batches):
        with torch.no_grad():
            images, sample, generators = reconstruct(run, batch, step, micro_step)
        sample = sample.requires_grad_()
        reconstruction = run.reconstruction_loss(sample, images).loss
        found = adversary.loss.squared_gradients(adversary.discriminator, sample, reconstruction, generators)
        squares = found if squares is None else squares + found
    return adaptive_weight_from_squares(squares, len(batches), adversary.loss.max_adaptive_weight)


def forward_backward(
    run: DecoderRun, batch: dict, step: int, micro_step: int, balance: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Gradients of the decoder, then of the discriminator, for one forward pass; the loss terms for the log."""
    accelerator, adversary = run.accelerator, run.adversary
    images, sample, generators = reconstruct(run, batch, step, micro_step)
    reconstruction = run.reconstruction_loss(sample, images)
    loss = reconstruction.loss
    metrics = {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
    if adversary is not None and adversary.loss.generator_is_active(step):
        output = adversary.loss.generator_loss(
            adversary.discriminator,
            sample,
            reconstruction.loss,
            reference=sample,
            generator=generators,
            balance=balance,
        )
        loss = loss + output.loss
        metrics |= {"train/loss_gan": output.loss_gan, "train/adaptive_weight": output.adaptive_weight}
    accelerator.backward(loss)
    metrics = {"train/loss": loss, **metrics}
    if adversary is not None and adversary.loss.discriminator_is_active(step):
        output = adversary.loss.discriminator_loss(adversary.model, images, sample, step, generators)
        accelerator.backward(output.loss)
        metrics |= {
            "train/loss_discriminator": output.loss,
            "discriminator/logits_real": output.logits_real,
            "discriminator/logits_fake": output.logits_fake,
        }
    return metrics


def optimize(run: DecoderRun, batches, progress: TrainingProgress, step: int) -> None:
    """One optimizer step of each side, and the moving averages that follow it."""
    arguments, accelerator, adversary = run.arguments, run.accelerator, run.adversary
    set_schedules(run, step)
    plays = adversary is not None and adversary.loss.discriminator_is_active(step)
    optimizers = [run.optimizer, adversary.optimizer] if plays else [run.optimizer]
    started = time.perf_counter()
    micro_batches = [next(batches) for _ in range(arguments.gradient_accumulation_steps)]
    progress.waited(time.perf_counter() - started)
    balance = None
    is_balanced = adversary is not None and adversary.loss.adaptive and adversary.loss.generator_is_active(step)
    if is_balanced and len(micro_batches) > 1:
        balance = adaptive_weight_of_step(run, micro_batches, step)
    for micro_step, batch in enumerate(micro_batches):
        with accelerator.accumulate(*([run.model, adversary.model] if plays else [run.model])):
            metrics = forward_backward(run, batch, step, micro_step, balance)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(trained_parameters(run.autoencoder), arguments.max_grad_norm)
                metrics["train/grad_norm"], loss = norm, metrics["train/loss"]
                if plays:
                    other = accelerator.clip_grad_norm_(adversary.model.parameters(), arguments.max_grad_norm)
                    metrics["train/grad_norm_discriminator"] = other
                    norm, loss = norm + other, loss + metrics["train/loss_discriminator"]
                # One side alone would go on against an opponent that stood still, so both skip or neither does.
                skipped = run.guard.mark(optimizers, loss, norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        progress.add(metrics)
    run.ema.step(trained_parameters(run.autoencoder))
    if plays:
        adversary.loss.discard_pending(skipped > 0)
        adversary.loss.update_statistics()
        adversary.ema.step(adversary.discriminator.parameters())


def train(run: DecoderRun) -> None:
    """From `first_step` to the end, or to a signal; then the checkpoint, and the model once it is finished."""
    arguments, accelerator = run.arguments, run.accelerator
    progress = TrainingProgress(
        accelerator, "decoder", arguments.max_train_steps, run.first_step, run.total_batch, arguments.log_steps
    )
    run.model.train()
    batches = iter(build_loader(run.dataset, arguments, accelerator, run.first_step))
    step = run.first_step
    with StopSignal() as stop:
        while step < arguments.max_train_steps and not stop.agreed():
            optimize(run, batches, progress, step)
            step += 1

            logged = progress.step(step, {"train/learning_rate": run.optimizer.param_groups[0]["lr"]})
            if logged is not None and (skipped := run.guard.check()):
                logger.warning(f"{skipped} steps so far were skipped because loss or gradient was not finite")
            started = time.perf_counter()
            if run.preview is not None and (step % arguments.heldout_steps == 0 or step == arguments.max_train_steps):
                run.preview.log(accelerator, run.autoencoder, run.ema, step)
            if step % arguments.checkpointing_steps == 0 and step < arguments.max_train_steps:
                run.checkpoints.save(step, samples_seen=step * run.total_batch)
            progress.pause(time.perf_counter() - started)
        run.checkpoints.save(step, samples_seen=step * run.total_batch)
    progress.close()
    if step == arguments.max_train_steps:
        if accelerator.is_main_process:
            save_result(run)
        logger.info(
            f"finished; the tokenizer is in {run.folder / 'model'}, its encoder bit-identical to the one given"
        )
    else:
        logger.warning(f"{stop.reason}: saved at step {step}; continue with --resume latest")
    accelerator.end_training()


def save_result(run: DecoderRun) -> None:
    """
    Write the averaged decoder with the encoder that was given.

    Raises:
        RuntimeError: the encoder changed, which is a defect of this script; nothing is written.
    """
    run.ema.copy_to(trained_parameters(run.autoencoder))
    if frozen_fingerprint(run.autoencoder) != run.encoder_sha256:
        raise RuntimeError("the encoder changed during decoder fine-tuning; please report this as a defect.")
    save_model(run.autoencoder, run.folder / "model")
    if run.adversary is not None:
        run.adversary.ema.copy_to(run.adversary.discriminator.parameters())
        save_model(run.adversary.discriminator, run.folder / "discriminator")


def describe(run: DecoderRun) -> dict:
    """The run in words, for its log and its folder; a run without a perceptual or adversarial loss says so."""
    arguments = run.arguments
    if run.adversary is None:
        adversarial = ", without an adversarial loss"
    else:
        adversarial = (
            f" + {arguments.adversarial_weight:g} {'adaptive ' if arguments.adversarial_adaptive_weight else ''}"
            f"{arguments.adversarial_loss} ({arguments.discriminator})"
        )
    return {
        "losses": run.reconstruction_loss.description + adversarial,
        "autoencoder": type(run.autoencoder).__name__,
        "parameters": sum(parameter.numel() for parameter in trained_parameters(run.autoencoder)),
        "encoder_sha256": run.encoder_sha256,
        "data": f"{arguments.train_data}: {run.dataset.description}",
        "total_batch": run.total_batch,
    }


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(DecoderArguments, argv)
    with exit_on_user_error(), discard_new_folder_on_error(arguments.output_dir):
        run = start(arguments)
        start_trackers(run.accelerator, arguments, "finetune_decoder", run.first_step)
        description = describe(run)
        save_description(run.accelerator, run.folder, description)
    logger.info(
        f"{description['parameters'] / 1e6:.2f} M parameters of the decoder, {description['data']}, batch"
        f" {run.total_batch}, steps {run.first_step} to {arguments.max_train_steps}; {description['losses']}"
    )
    with exit_on_user_error(RUN_ERRORS):
        train(run)


if __name__ == "__main__":
    main()
