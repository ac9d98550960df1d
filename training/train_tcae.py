"""
Train a TC-AE tokenizer: L = alpha * L_rec + L_iBOT (arXiv 2604.07340, section 3).

    accelerate launch training/train_tcae.py --config openmoji32 --output_dir runs/tokenizer

The finished tokenizer lies in OUTPUT_DIR/model and loads with `AutoencoderTC.from_pretrained`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.logging import get_logger
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from tcae_diffusers.data.image_sources import build_image_source
from tcae_diffusers.data.multi_crop import MultiCropTransform
from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
from tcae_diffusers.data.token_masks import expand_mask
from tcae_diffusers.data.tokenizer_training_dataset import TokenizerTrainingDataset, collate_training_views
from tcae_diffusers.models import AutoencoderTC
from tcae_diffusers.objectives.collapse import collapse_warning
from tcae_diffusers.objectives.joint_tokenizer import JointTokenizer, Teacher
from tcae_diffusers.objectives.masked_tokens import MaskedTokens
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss, ReconstructionOutput
from tcae_diffusers.objectives.schedules import cosine_with_warmup, teacher_momentum, teacher_temperature, weight_decay
from tcae_diffusers.objectives.self_distillation import build_self_distillation
from tcae_diffusers.objectives.teacher import update_teacher
from tcae_diffusers.trainer import (
    CheckpointManager,
    NonFiniteGuard,
    RunArguments,
    StopSignal,
    TrainingProgress,
    parse_arguments,
    prepare_run_folder,
    save_model,
    start_accelerator,
    start_trackers,
)
from tcae_diffusers.trainer.arguments import option
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview

logger = get_logger(__name__)


@dataclass
class TokenizerArguments(RunArguments):
    """Train a TC-AE tokenizer jointly with self-supervision."""

    autoencoder: str = option(
        "tc-ae-f32c128", "Preset name, or folder with a config.json (and weights to start from)."
    )
    autoencoder_overrides: dict = option(
        {}, 'Config arguments that replace the preset\'s, as JSON: {"patch_size": 4}.'
    )
    train_data: str = option(
        "openmoji:train", "openmoji:train, a folder root/class/img.png, or datasets:NAME[:SPLIT]."
    )
    heldout_data: str | None = option(None, "Images for held-out PSNR and pictures, never trained on; same forms.")
    data_resolution: int | None = option(None, "Size at which vector images are drawn; twice the resolution if unset.")
    resolution: int | None = option(None, "Side of the reconstructed images; the model's sample_size if unset.")
    horizontal_flip: bool = option(True, "Reconstruct randomly mirrored images.")
    max_broken_images: int = option(100, "Stop after this many images that cannot be decoded; each is named.")

    reconstruction_weight: float = option(1.0, "alpha of the paper: weight of L_rec.")
    pixel_loss: Literal["l1", "charbonnier", "mse"] = option("l1", "Distance of pixels inside L_rec.")
    pixel_weight: float = option(1.0, "Its weight.")
    mse_weight: float = option(0.0, "Weight of a squared error beside it; helps short runs to start.")

    ssl: Literal["ibot", "dino", "dinov2", "none"] = option("ibot", "Self-supervision; none is the paper's ablation.")
    ssl_weight: float = option(1.0, "Weight of the self-supervised loss.")
    ssl_features: Literal["last", "first_stage"] = option(
        "last", "Tokens that the head reads: of the last encoder block, or before the intermediate bottleneck."
    )
    ssl_out_dim: int = option(8192, "Prototypes of the head.")
    ssl_hidden_dim: int = option(2048, "Hidden width of the head.")
    ssl_bottleneck_dim: int = option(256, "Bottleneck width of the head.")
    global_crop_size: int | None = option(None, "Side of the two global crops; the resolution if unset.")
    local_crop_size: int | None = option(None, "Side of the local crops; half the resolution if unset.")
    num_local_crops: int = option(2, "Local crops per image (the paper's setting allows up to 10).")
    global_crop_min_scale: float = option(0.25, "Global crops cover this share of the image up to all of it.")
    local_crop_min_scale: float = option(0.05, "Local crops cover this share up to global_crop_min_scale.")
    mask_probability: float = option(0.5, "Share of global crops with masked patches.")
    mask_ratio_min: float = option(0.1, "Least share of masked token groups.")
    mask_ratio_max: float = option(0.5, "Largest share of masked token groups.")
    mask_shape: Literal["random", "block"] = option("random", "How groups are chosen.")
    student_temperature: float = option(0.1, "Temperature of the student.")
    teacher_temperature_start: float = option(0.04, "Teacher temperature at the start.")
    teacher_temperature: float = option(0.07, "Teacher temperature after the warm-up.")
    teacher_temperature_warmup_fraction: float = option(0.3, "Share of the steps over which it rises.")
    teacher_momentum: float = option(
        0.996, "Teacher momentum at the start, rising to 1; 0.9995 for batches below 512."
    )
    center_momentum: float = option(0.9, "Momentum of the centres.")
    freeze_last_layer_steps: int = option(0, "Steps during which the head's last layer stays as it is.")
    weight_decay: float = option(0.04, "Weight decay of encoder and head at the start, and of the decoder throughout.")
    final_weight_decay: float = option(0.4, "Weight decay of encoder and head at the end (cosine).")

    eval_steps: int = option(500, "Steps between two looks at held-out images.")
    num_eval_images: int = option(256, "Held-out images for the PSNR.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("eval_steps", self.eval_steps >= 1, "at least 1")
        self._require("num_local_crops", self.num_local_crops >= 0, "0 or more")
        self._require("mask_probability", 0 <= self.mask_probability <= 1, "between 0 and 1")
        self._require(
            "mask_ratio_max", 0 < self.mask_ratio_min <= self.mask_ratio_max < 1, "below 1, above the minimum"
        )


def build_autoencoder(arguments: TokenizerArguments) -> AutoencoderTC:
    """A preset by name, or a saved model to go on from."""
    if Path(arguments.autoencoder).is_dir():
        return AutoencoderTC.from_pretrained(arguments.autoencoder, **arguments.autoencoder_overrides)
    return AutoencoderTC.from_preset(arguments.autoencoder, **arguments.autoencoder_overrides)


def build_dataset(arguments: TokenizerArguments, autoencoder: AutoencoderTC) -> TokenizerTrainingDataset:
    source = build_image_source(arguments.train_data, resolution=arguments.data_resolution)
    ratio = autoencoder.spatial_compression_ratio
    for name in ("resolution", "global_crop_size", "local_crop_size"):
        if getattr(arguments, name) % ratio:
            raise ValueError(
                f"--{name} {getattr(arguments, name)} is not a multiple of the compression ratio {ratio}."
            )
    use_ssl = arguments.ssl != "none"
    # Masks are drawn on groups of patches that one token of the last stage stands for, so they survive the reduction.
    grid = arguments.global_crop_size // mask_group_pixels(autoencoder)
    transform = MultiCropTransform(
        arguments.resolution,
        global_crop_size=arguments.global_crop_size if use_ssl else None,
        local_crop_size=arguments.local_crop_size,
        num_local_crops=arguments.num_local_crops if use_ssl else 0,
        mask_grid=(grid, grid) if use_ssl else None,
        horizontal_flip=arguments.horizontal_flip,
        global_crop_scale=(arguments.global_crop_min_scale, 1.0),
        local_crop_scale=(arguments.local_crop_min_scale, arguments.global_crop_min_scale),
        mask_probability=arguments.mask_probability if arguments.ssl != "dino" else 0.0,
        mask_ratio=(arguments.mask_ratio_min, arguments.mask_ratio_max),
        mask_shape=arguments.mask_shape,
    )
    return TokenizerTrainingDataset(
        source, transform, seed=arguments.seed, max_broken_images=arguments.max_broken_images
    )


def mask_group_pixels(autoencoder: AutoencoderTC) -> int:
    """Side in pixels of a mask group: a patch, or 2x2 patches with staged compression."""
    return autoencoder.config.patch_size * (2 if autoencoder.config.staged_compression else 1)


def parameter_groups(model: JointTokenizer, arguments: TokenizerArguments) -> list[dict]:
    """Encoder and head follow the weight decay schedule, the decoder keeps its start; vectors have none."""
    groups = {name: [] for name in ("scheduled", "constant", "none")}
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or name.endswith(("class_token", "mask_token")):
            groups["none"].append(parameter)
        elif name.startswith("autoencoder.decoder."):
            groups["constant"].append(parameter)
        else:
            groups["scheduled"].append(parameter)
    decay = {"scheduled": arguments.weight_decay, "constant": arguments.weight_decay, "none": 0.0}
    return [{"params": parameters, "name": name, "weight_decay": decay[name]} for name, parameters in groups.items()]


def to_unit_range(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [0, 255] -> float [-1, 1], converted on the device: a byte travels, not four."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)


def view_major(crops: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """Crops `(B, V, 3, h, w)` in uint8 -> `(V, B, 3, h, w)` in [-1, 1]."""
    return None if crops is None else to_unit_range(crops, device).transpose(0, 1).contiguous()


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(TokenizerArguments, argv)
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)

    autoencoder = build_autoencoder(arguments)
    resolve_sizes(arguments, autoencoder)
    dataset = build_dataset(arguments, autoencoder)
    preview = ReconstructionPreview.from_spec(
        arguments.heldout_data, arguments.data_resolution, arguments.resolution, arguments.num_eval_images
    )
    head = ssl_loss = None
    if arguments.ssl != "none":
        head, ssl_loss = build_self_distillation(
            arguments.ssl,
            autoencoder.config.hidden_size,
            out_dim=arguments.ssl_out_dim,
            hidden_dim=arguments.ssl_hidden_dim,
            bottleneck_dim=arguments.ssl_bottleneck_dim,
            student_temperature=arguments.student_temperature,
            center_momentum=arguments.center_momentum,
        )
    student = JointTokenizer(autoencoder, head, arguments.ssl_features)
    teacher = Teacher(student).to(accelerator.device) if head is not None else None
    ema = EMAModel(autoencoder.parameters(), decay=arguments.ema_decay, foreach=True)
    ema.to(accelerator.device)
    reconstruction_loss = ReconstructionLoss(arguments.pixel_loss, arguments.pixel_weight, arguments.mse_weight)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, arguments),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=True,
    )
    model, optimizer = accelerator.prepare(student, optimizer)
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    accelerator.register_for_checkpointing(ema, guard)
    if head is not None:
        ssl_loss.to(accelerator.device)
        accelerator.register_for_checkpointing(teacher, ssl_loss)

    total_batch = arguments.train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        identity={
            "script": "train_tcae",
            "model": {key: value for key, value in autoencoder.config.items() if not key.startswith("_")},
            "ssl": arguments.ssl,
            "seed": arguments.seed,
            "total batch": total_batch,
            "max_train_steps": arguments.max_train_steps,
            "data": dataset.source.fingerprint,
        },
    )
    first_step = checkpoints.resume(arguments.resume)
    start_trackers(accelerator, arguments, "train_tcae", first_step)
    loader = DataLoader(
        dataset,
        batch_sampler=StepIndexedBatchSampler(
            num_samples=len(dataset),
            batch_size_per_rank=arguments.train_batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=arguments.seed,
            start_step=first_step,
            num_steps=arguments.max_train_steps - first_step,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        ),
        collate_fn=collate_training_views,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=False,
    )
    progress = TrainingProgress(
        accelerator, "tokenizer", arguments.max_train_steps, first_step, total_batch, arguments.log_steps
    )
    logger.info(
        f"{autoencoder.num_parameters() / 1e6:.2f} M parameters, {len(dataset)} images of"
        f" {len(dataset.source.classes)} classes, batch {total_batch}, steps {first_step} to"
        f" {arguments.max_train_steps}"
    )

    model.train()
    batches = iter(loader)
    step = first_step
    with StopSignal() as stop:
        while step < arguments.max_train_steps and not stop.agreed():
            set_schedules(optimizer, arguments, step, total_batch)
            for _ in range(arguments.gradient_accumulation_steps):
                started = time.perf_counter()
                batch = next(batches)
                progress.waited(time.perf_counter() - started)
                with accelerator.accumulate(model):
                    loss, metrics = compute_loss(batch, model, teacher, ssl_loss, reconstruction_loss, arguments, step)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        if head is not None and step < arguments.freeze_last_layer_steps:
                            student.head.cancel_last_layer_gradients()
                        grad_norm = accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                        skipped = guard.mark(optimizer, loss, grad_norm)
                        metrics["train/grad_norm"] = grad_norm
                    optimizer.step()
                    optimizer.zero_grad()
                progress.add(metrics)
            ema.step(autoencoder.parameters())
            if head is not None:
                ssl_loss.discard_pending(skipped > 0)
                ssl_loss.update_centers()
                momentum = teacher_momentum(step, arguments.max_train_steps, arguments.teacher_momentum)
                update_teacher([autoencoder.encoder, student.head], [teacher.encoder, teacher.head], momentum)
            step += 1

            logged = progress.step(step, {"train/learning_rate": optimizer.param_groups[0]["lr"]})
            if logged is not None:
                report(logged, guard, arguments)
            started = time.perf_counter()
            if preview is not None and (step % arguments.eval_steps == 0 or step == arguments.max_train_steps):
                preview.log(accelerator, autoencoder, ema, step)
            if step % arguments.checkpointing_steps == 0 and step < arguments.max_train_steps:
                checkpoints.save(step, samples_seen=step * total_batch)
            progress.pause(time.perf_counter() - started)

    checkpoints.save(step, samples_seen=step * total_batch)
    progress.close()
    if step == arguments.max_train_steps:
        if accelerator.is_main_process:
            ema.copy_to(autoencoder.parameters())
            save_model(autoencoder, folder / "model")
        logger.info(f"finished; the tokenizer is in {folder / 'model'}")
    else:
        logger.warning(f"{stop.received or 'another rank'}: saved at step {step}; continue with --resume latest")
    accelerator.end_training()


def resolve_sizes(arguments: TokenizerArguments, autoencoder: AutoencoderTC) -> None:
    """Fill in the sizes that follow from the model."""
    ratio = autoencoder.spatial_compression_ratio
    arguments.resolution = arguments.resolution or autoencoder.config.sample_size
    arguments.data_resolution = arguments.data_resolution or 2 * arguments.resolution
    arguments.global_crop_size = arguments.global_crop_size or arguments.resolution
    arguments.local_crop_size = arguments.local_crop_size or max(ratio, arguments.resolution // 2 // ratio * ratio)


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


def compute_loss(batch, model, teacher, ssl_loss, reconstruction_loss, arguments, step) -> tuple[torch.Tensor, dict]:
    """One forward pass of student and teacher: the loss, and its terms for the log."""
    student = model.module if hasattr(model, "module") else model
    device = next(student.parameters()).device
    images = to_unit_range(batch["pixel_values"], device)
    if teacher is None:
        output = model(images)
        reconstruction = reconstruction_loss(output.reconstruction, images)
        loss = arguments.reconstruction_weight * reconstruction.loss
        return loss, {"train/loss": loss, **reconstruction_metrics(reconstruction)}

    global_crops = view_major(batch["global_crops"], device)
    local_crops = view_major(batch.get("local_crops"), device)
    group_mask = batch["masks"].transpose(0, 1)
    group_size = mask_group_pixels(student.autoencoder) // student.autoencoder.config.patch_size
    token_mask = expand_mask(group_mask, group_size)
    head_mask = group_mask if arguments.ssl_features == "last" else token_mask
    masked_tokens = MaskedTokens.from_mask(head_mask.flatten(-2)).to(device)

    output = model(images, global_crops, local_crops, token_mask.to(device, non_blocking=True), masked_tokens)
    teacher_class_logits, teacher_patch_logits = teacher(global_crops, masked_tokens)
    reconstruction = reconstruction_loss(output.reconstruction, images)
    ssl = ssl_loss(
        output.class_logits,
        teacher_class_logits,
        output.patch_logits,
        teacher_patch_logits,
        masked_tokens,
        teacher_temperature=teacher_temperature(
            step,
            arguments.max_train_steps,
            arguments.teacher_temperature_start,
            arguments.teacher_temperature,
            arguments.teacher_temperature_warmup_fraction,
        ),
        student_class_tokens=output.class_tokens,
        with_diagnostics=(step + 1) % arguments.log_steps == 0,
    )
    loss = arguments.reconstruction_weight * reconstruction.loss + arguments.ssl_weight * ssl.loss
    metrics = {
        "train/loss": loss,
        **reconstruction_metrics(reconstruction),
        "train/loss_cls": ssl.loss_cls,
        "train/loss_mim": ssl.loss_mim,
        "latent/std": output.latent.detach().std(),
        **{f"ssl/{name}": value for name, value in ssl.diagnostics.items()},
    }
    return loss, metrics


def reconstruction_metrics(reconstruction: ReconstructionOutput) -> dict[str, torch.Tensor]:
    terms = {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
    return {"train/loss_rec": reconstruction.loss, **terms}


def report(logged: dict[str, float], guard: NonFiniteGuard, arguments: TokenizerArguments) -> None:
    """Say what a reader of the log must not miss."""
    skipped = guard.check()
    if skipped:
        logger.warning(f"{skipped} steps so far were skipped because loss or gradient was not finite")
    diagnostics = {name[4:]: value for name, value in logged.items() if name.startswith("ssl/")}
    if diagnostics:
        warning = collapse_warning(diagnostics, arguments.ssl_out_dim)
        if warning:
            logger.warning(f"the teacher may be collapsing: {warning}")


if __name__ == "__main__":
    main()
