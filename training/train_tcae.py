"""
Train a TC-AE tokenizer: L = alpha * L_rec + L_iBOT (arXiv 2604.07340, section 3).

    accelerate launch training/train_tcae.py --config openmoji32 --output_dir runs/tokenizer

The finished tokenizer lies in OUTPUT_DIR/model and loads with `AutoencoderTC.from_pretrained`. Other autoencoders of
diffusers train with the same data, losses and budget: `--autoencoder FOLDER` with their config.json, and `--ssl none`.
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
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.models.adapters import spatial_ratio
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.objectives.schedules import cosine_with_warmup, teacher_momentum, teacher_temperature, weight_decay
from tcae_diffusers.self_supervision.collapse_monitor import CollapseMonitor
from tcae_diffusers.self_supervision.joint_tokenizer import JointTokenizer, JointTokenizerOutput, Teacher
from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.self_supervision.plain_tokenizer import PlainTokenizer
from tcae_diffusers.self_supervision.self_distillation import SelfDistillationLoss
from tcae_diffusers.self_supervision.stochastic_depth import StochasticDepth
from tcae_diffusers.self_supervision.teacher import update_teacher
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
from tcae_diffusers.trainer.gradient_norms import gradient_norms
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview, averaged_autoencoder
from tcae_diffusers.trainer.run import discard_new_folder_on_error, save_description
from tcae_diffusers.trainer.sharding import (
    check_sharding,
    is_sharded,
    prepare,
    register_averages,
    start_adam_state,
    whole_tensor,
)
from tcae_diffusers.trainer.tokenizer_setup import (
    build_autoencoder,
    build_loader,
    build_preview,
    build_reconstruction_loss,
    checkpoint_identity,
    compile_blocks,
    resolve_sizes,
    to_unit_range,
)
from tcae_diffusers.trainer.user_errors import RUN_ERRORS, exit_on_user_error
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments
from tcae_diffusers.training.tokenizer_student import (
    add_stochastic_depth,
    build_dataset,
    build_student,
    parameter_groups,
    resolve_crop_sizes,
    token_masks,
    view_major,
)

logger = get_logger(__name__)


@dataclass
class TokenizerRun:
    """
    Everything that the loop needs, ready to go on from `first_step`.

    Args:
        student: unwrapped; `model` is the same as accelerate prepared it.
        teacher, ssl_loss: `None` without self-supervision.
        stochastic_depth: `None` without drop path.
    """

    arguments: TokenizerArguments
    folder: Path
    accelerator: Accelerator
    autoencoder: ModelMixin
    student: JointTokenizer | PlainTokenizer
    model: torch.nn.Module
    teacher: Teacher | None
    ssl_loss: SelfDistillationLoss | None
    stochastic_depth: StochasticDepth | None
    reconstruction_loss: ReconstructionLoss
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    guard: NonFiniteGuard
    checkpoints: CheckpointManager
    dataset: TokenizerTrainingDataset | StreamedImages
    preview: ReconstructionPreview | None
    total_batch: int
    first_step: int


def start(arguments: TokenizerArguments) -> TokenizerRun:
    """Build everything and load the checkpoint to go on from; whatever is wrong with the arguments shows here."""
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)
    check_sharding(accelerator)
    autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
    if hasattr(autoencoder, "set_latent_statistics"):
        # Those of weights that were trained before: training moves the latents, cache_latents measures them anew.
        channels = autoencoder.config.latent_channels
        autoencoder.set_latent_statistics(torch.zeros(channels), torch.ones(channels))
    resolve_sizes(arguments, autoencoder)
    student, ssl_loss = build_student(arguments, autoencoder)
    if ssl_loss is not None:
        resolve_crop_sizes(arguments, spatial_ratio(autoencoder))
    dataset = build_dataset(arguments, autoencoder)
    preview = build_preview(arguments, folder)
    reconstruction_loss = build_reconstruction_loss(arguments).to(accelerator.device)
    teacher = Teacher(student).to(accelerator.device) if ssl_loss is not None else None
    stochastic_depth = add_stochastic_depth(autoencoder, arguments.ssl_drop_path)
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(student, *([teacher] if teacher else []), names=tuple(autoencoder._repeated_blocks or ()))

    optimizer = torch.optim.AdamW(
        parameter_groups(student, arguments),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=True,
    )
    # What diffusers keeps on one device is called as a whole, which is what FSDP asks of a unit.
    model, optimizer = prepare(accelerator, student, optimizer, units=autoencoder._no_split_modules or ())
    ema = EMAModel(autoencoder.parameters(), decay=arguments.ema_decay, foreach=True)
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    if is_sharded(autoencoder):
        start_adam_state(optimizer)
        accelerator.register_for_checkpointing(guard)
        register_averages(accelerator, [ema])
    else:
        accelerator.register_for_checkpointing(ema, guard)
    if ssl_loss is not None:
        ssl_loss.to(accelerator.device)
        accelerator.register_for_checkpointing(teacher, ssl_loss)

    total_batch = arguments.train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    identity = checkpoint_identity("train_tcae", arguments, autoencoder, dataset.fingerprint, total_batch)
    if ssl_loss is not None and ssl_loss.predicts_patches and ssl_loss.mim_average != "images":
        # Not named where it is the default: checkpoints from before there was a choice go on.
        identity["mim_average"] = ssl_loss.mim_average
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        {**identity, "ssl": arguments.ssl, "losses": reconstruction_loss.description},
    )
    first_step = checkpoints.resume(arguments.resume)
    return TokenizerRun(
        arguments=arguments,
        folder=folder,
        accelerator=accelerator,
        autoencoder=autoencoder,
        student=student,
        model=model,
        teacher=teacher,
        ssl_loss=ssl_loss,
        stochastic_depth=stochastic_depth,
        reconstruction_loss=reconstruction_loss,
        optimizer=optimizer,
        ema=ema,
        guard=guard,
        checkpoints=checkpoints,
        dataset=dataset,
        preview=preview,
        total_batch=total_batch,
        first_step=first_step,
    )


def set_schedules(
    optimizer: torch.optim.Optimizer, arguments: TokenizerArguments, step: int, total_batch: int
) -> None:
    """Learning rate and weight decay are functions of the step alone, so a resume needs nothing else."""
    total = arguments.max_train_steps
    learning_rate = cosine_with_warmup(
        step,
        total,
        arguments.peak_learning_rate(total_batch),
        arguments.final_learning_rate,
        round(arguments.lr_warmup_fraction * total),
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["name"] == "scheduled":
            group["weight_decay"] = weight_decay(step, total, arguments.weight_decay, arguments.final_weight_decay)


def forward_student(run: TokenizerRun, batch: dict, images: torch.Tensor, step: int, micro_step: int):
    """The student's one forward pass, and what it masked; `masked_tokens` is `None` where nothing is."""
    arguments, device = run.arguments, images.device
    rank, world_size = run.accelerator.process_index, run.accelerator.num_processes
    first_slot = (micro_step * world_size + rank) * arguments.train_batch_size
    global_crops, local_crops = (
        view_major(batch.get("global_crops"), device),
        view_major(batch.get("local_crops"), device),
    )
    if run.stochastic_depth is not None:
        views = 1 + sum(crops.shape[0] for crops in (global_crops, local_crops) if crops is not None)
        generators = slot_generators(arguments.seed, step, first_slot, len(images))
        run.stochastic_depth.draw(generators, views, device)
    if run.ssl_loss is None:
        if isinstance(run.student, PlainTokenizer):
            return run.model(images, slot_generators(arguments.seed, step, first_slot, len(images))), None, None
        return run.model(images), None, None

    token_mask, masked_tokens = token_masks(batch, run.autoencoder, arguments.ssl_features, device)
    return run.model(images, global_crops, local_crops, token_mask, masked_tokens), global_crops, masked_tokens


def compute_loss(run: TokenizerRun, batch: dict, step: int, micro_step: int) -> tuple[torch.Tensor, dict]:
    """One forward pass of student and teacher: the loss, and its terms for the log."""
    arguments = run.arguments
    images = to_unit_range(batch["pixel_values"], run.accelerator.device)
    output, global_crops, masked_tokens = forward_student(run, batch, images, step, micro_step)
    reconstruction = run.reconstruction_loss(output.reconstruction, images)
    loss = arguments.reconstruction_weight * reconstruction.loss
    metrics = {"train/loss_rec": reconstruction.loss}
    metrics |= {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
    if output.kl is not None:
        loss = loss + arguments.kl_weight * output.kl
        metrics["train/loss_kl"] = output.kl
    if run.ssl_loss is not None:
        ssl, ssl_metrics = compute_ssl_loss(run, output, global_crops, masked_tokens, step)
        loss = loss + arguments.ssl_weight * ssl
        metrics |= ssl_metrics
    if is_log_step(step, arguments):
        channels = output.latent.detach().float().transpose(0, 1).flatten(1).std(dim=1)
        metrics |= {"latent/channel_std": channels.mean(), "latent/min_channel_std": channels.min()}
    return loss, {"train/loss": loss, **metrics}


def compute_ssl_loss(
    run: TokenizerRun,
    output: JointTokenizerOutput,
    global_crops: torch.Tensor,
    masked_tokens: MaskedTokens | None,
    step: int,
) -> tuple[torch.Tensor, dict]:
    arguments = run.arguments
    teacher_class_logits, teacher_patch_logits = run.teacher(global_crops, masked_tokens)
    temperature, patch_temperature = teacher_temperatures(arguments, step)
    ssl = run.ssl_loss(
        output.class_logits,
        teacher_class_logits,
        output.patch_logits,
        teacher_patch_logits,
        masked_tokens,
        teacher_temperature=temperature,
        patch_teacher_temperature=patch_temperature,
        student_class_tokens=output.class_tokens,
        with_diagnostics=is_log_step(step, arguments),
    )
    metrics = {"train/loss_ssl": ssl.loss, "train/loss_cls": ssl.loss_cls}
    if run.ssl_loss.predicts_patches:
        metrics["train/loss_mim"] = ssl.loss_mim
    if run.ssl_loss.koleo_weight:
        metrics["train/loss_koleo"] = ssl.loss_koleo
    return ssl.loss, {**metrics, **{f"ssl/{name}": value for name, value in ssl.diagnostics.items()}}


def teacher_temperatures(arguments: TokenizerArguments, step: int) -> tuple[float, float]:
    """Of class and of patch tokens; they warm up over the same steps."""
    ends = (arguments.ssl_teacher_temperature_start, arguments.ssl_teacher_temperature)
    patch_ends = (arguments.ssl_patch_teacher_temperature_start, arguments.ssl_patch_teacher_temperature)
    patch_ends = (own if patch is None else patch for patch, own in zip(patch_ends, ends, strict=True))
    return tuple(
        teacher_temperature(
            step, arguments.max_train_steps, first, last, arguments.ssl_teacher_temperature_warmup_fraction
        )
        for first, last in (ends, patch_ends)
    )


def is_log_step(step: int, arguments: TokenizerArguments) -> bool:
    """Whether the step that starts with `step` done ends with a log entry, which wants what is too dear for others."""
    return (step + 1) % arguments.log_steps == 0 or step + 1 == arguments.max_train_steps


def optimize(run: TokenizerRun, batches, progress: TrainingProgress, step: int) -> None:
    """One optimizer step, and the moving averages that follow it."""
    arguments, accelerator, optimizer = run.arguments, run.accelerator, run.optimizer
    set_schedules(optimizer, arguments, step, run.total_batch)
    for micro_step in range(arguments.gradient_accumulation_steps):
        started = time.perf_counter()
        batch = next(batches)
        progress.waited(time.perf_counter() - started)
        with accelerator.accumulate(run.model):
            loss, metrics = compute_loss(run, batch, step, micro_step)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                if run.ssl_loss is not None and step < arguments.ssl_freeze_last_layer_steps:
                    run.student.head.cancel_last_layer_gradients()
                grad_norm = whole_tensor(accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm))
                skipped = run.guard.mark(optimizer, loss, grad_norm)
                metrics["train/grad_norm"] = grad_norm
                if is_log_step(step, arguments):
                    metrics |= gradient_norms(run.student, grad_norm, arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        progress.add(metrics)
    run.ema.step(run.autoencoder.parameters())
    if run.ssl_loss is not None:
        run.ssl_loss.discard_pending(skipped > 0)
        run.ssl_loss.update_centers()
        momentum = teacher_momentum(step, arguments.max_train_steps, arguments.ssl_teacher_momentum)
        student = [run.autoencoder.encoder, run.student.head]
        update_teacher(student, [run.teacher.encoder, run.teacher.head], momentum)


def train(run: TokenizerRun) -> None:
    """From `first_step` to the end, or to a signal; then the checkpoint, and the model once it is finished."""
    arguments, accelerator = run.arguments, run.accelerator
    progress = TrainingProgress(
        accelerator, "tokenizer", arguments.max_train_steps, run.first_step, run.total_batch, arguments.log_steps
    )
    collapse = CollapseMonitor(
        arguments.ssl_out_dim,
        arguments.ssl_patch_out_dim,
        first_step=max(300, round(arguments.lr_warmup_fraction * arguments.max_train_steps)),
    )
    run.model.train()
    batches = iter(build_loader(run.dataset, arguments, accelerator, run.first_step))
    step = run.first_step
    with StopSignal() as stop:
        while step < arguments.max_train_steps and not stop.agreed():
            optimize(run, batches, progress, step)
            step += 1

            logged = progress.step(step, {"train/learning_rate": run.optimizer.param_groups[0]["lr"]})
            if logged is not None:
                warn(run, collapse, logged, step)
            started = time.perf_counter()
            if run.preview is not None and (step % arguments.heldout_steps == 0 or step == arguments.max_train_steps):
                run.preview.log(accelerator, run.autoencoder, run.ema, step)
            if step % arguments.checkpointing_steps == 0 and step < arguments.max_train_steps:
                run.checkpoints.save(step, samples_seen=step * run.total_batch)
            progress.pause(time.perf_counter() - started)
        run.checkpoints.save(step, samples_seen=step * run.total_batch)
    progress.close()
    if step == arguments.max_train_steps:
        with averaged_autoencoder(run.autoencoder, run.ema) as averaged:
            if accelerator.is_main_process:
                save_model(averaged, run.folder / "model")
        logger.info(f"finished; the tokenizer is in {run.folder / 'model'}")
    else:
        logger.warning(f"{stop.reason}: saved at step {step}; continue with --resume latest")
    accelerator.end_training()


def warn(run: TokenizerRun, collapse: CollapseMonitor, logged: dict[str, float], step: int) -> None:
    """Say what a reader of the log must not miss."""
    skipped = run.guard.check()
    if skipped:
        logger.warning(f"{skipped} steps so far were skipped because loss or gradient was not finite")
    warning = collapse.add(step, {name[4:]: value for name, value in logged.items() if name.startswith("ssl/")})
    if warning:
        logger.warning(f"the teacher may be collapsing: {warning}")


def describe(run: TokenizerRun) -> dict:
    """The run in words, for its log and its folder; a run without a perceptual loss says so."""
    arguments = run.arguments
    losses = f"{arguments.reconstruction_weight:g} * ({run.reconstruction_loss.description})"
    if run.ssl_loss is None:
        losses += ", without self-supervision"
    else:
        losses += f" + {arguments.ssl_weight:g} * {arguments.ssl} on the tokens {arguments.ssl_features}"
    return {
        "losses": losses,
        "autoencoder": type(run.autoencoder).__name__,
        "parameters": run.autoencoder.num_parameters(),
        "data": f"{arguments.train_data}: {run.dataset.description}",
        "total_batch": run.total_batch,
    }


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(TokenizerArguments, argv)
    with exit_on_user_error(), discard_new_folder_on_error(arguments.output_dir):
        run = start(arguments)
        start_trackers(run.accelerator, arguments, "train_tcae", run.first_step)
        description = describe(run)
        save_description(run.accelerator, run.folder, description)
    logger.info(
        f"{description['parameters'] / 1e6:.2f} M parameters; {description['data']}; batch {run.total_batch}, steps"
        f" {run.first_step} to {arguments.max_train_steps}; {description['losses']}"
    )
    with exit_on_user_error(RUN_ERRORS):
        train(run)


if __name__ == "__main__":
    main()
