"""
Train a diffusion transformer on cached latents, by flow matching or noise prediction, with class labels.

    accelerate launch training/train_dit.py --config openmoji32_dit --latents runs/latents \
        --tokenizer runs/tokenizer/model --output_dir runs/dit

The finished pipeline lies in OUTPUT_DIR/pipeline: `import tcae_diffusers`, then
`DiffusionPipeline.from_pretrained("OUTPUT_DIR/pipeline")`.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from tcae_diffusers import TCDiTPipeline
from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
from tcae_diffusers.models.adapters import load_autoencoder, pipeline_scaling, spatial_ratio
from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective, resolution_shift
from tcae_diffusers.objectives.noise_prediction import NoisePredictionObjective
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
from tcae_diffusers.trainer.posthoc_ema import PowerFunctionEMA
from tcae_diffusers.trainer.run import discard_new_folder_on_error, save_description
from tcae_diffusers.trainer.sharding import (
    check_sharding,
    is_sharded,
    model_class,
    prepare,
    register_averages,
    whole_tensor,
)
from tcae_diffusers.trainer.tokenizer_setup import compile_blocks
from tcae_diffusers.trainer.user_errors import RUN_ERRORS, exit_on_user_error
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.dit_transformers import (
    BLOCKS,
    SHARDED_UNITS,
    build_transformer,
    check_latent_shape,
    choose_null_class_id,
    drop_labels,
    set_training_mode,
)
from tcae_diffusers.training.online_frechet import OnlineFrechet
from tcae_diffusers.training.sample_preview import SamplePreview, averaged_weights

logger = get_logger(__name__)


def build_objective(
    arguments: DiTArguments, latent_shape: tuple[int, int, int]
) -> FlowMatchingObjective | NoisePredictionObjective:
    if arguments.objective != "flow_matching":
        return NoisePredictionObjective(arguments.objective, arguments.min_snr_gamma)
    shift = arguments.timestep_shift
    if arguments.timestep_shift_base is not None:
        shift *= resolution_shift(latent_shape, arguments.timestep_shift_base)
    return FlowMatchingObjective(arguments.timestep_distribution, shift, arguments.direction_weight)


def open_cache(arguments: DiTArguments, tokenizer: torch.nn.Module) -> LatentCache:
    """The cache, with latents as diffusers pipelines want them: `(encode(x) - shift_factor) * scaling_factor`."""
    cache = LatentCache(arguments.latents, expected_tokenizer=tokenizer, seed=arguments.seed)
    scaling, shift = pipeline_scaling(tokenizer)
    if (scaling, shift) != (1.0, 0.0):
        channels = cache.latent_shape[0]
        cache.normalize_with(torch.full((channels,), shift), torch.full((channels,), 1.0 / scaling))
    return cache


def draw_step_randomness(
    seed: int,
    step: int,
    total_batch: int,
    latent_shape: tuple[int, int, int],
    objective: FlowMatchingObjective | NoisePredictionObjective,
    label_dropout: float,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    Noise, noise levels and label drops of a whole optimizer step, a function of (seed, step) alone. Each rank and
    forward pass takes its slots, so the result does not depend on how a step is divided.
    """
    generator = torch.Generator(device).manual_seed((seed << 32) + step)
    return {
        "noise": torch.randn((total_batch, *latent_shape), generator=generator, device=device),
        "levels": objective.draw_levels(total_batch, generator, device),
        "drop": torch.rand(total_batch, generator=generator, device=device) < label_dropout,
    }


def compute_losses(
    model: torch.nn.Module,
    objective: FlowMatchingObjective | NoisePredictionObjective,
    latents: torch.Tensor,
    labels: torch.Tensor,
    null_class_id: int,
    randomness: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Scalars, the objective's `loss` among them."""
    labels = drop_labels(labels, randomness["drop"], null_class_id)

    def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model(noisy, timestep=timestep, class_labels=labels, return_dict=False)[0]

    return objective.losses(predict, latents, randomness["noise"], randomness["levels"])


@dataclass
class DiTRun:
    """
    Everything that the loop needs, ready to go on from `first_step`.

    Args:
        pipeline: holds the unwrapped transformer; `model` is the same as accelerate prepared it.
        averages: the first is the pipeline's.
        online_frechet: `None` unless asked for.
    """

    arguments: DiTArguments
    folder: Path
    accelerator: Accelerator
    cache: LatentCache
    objective: FlowMatchingObjective | NoisePredictionObjective
    pipeline: TCDiTPipeline
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    averages: list[EMAModel]
    posthoc_averages: list[PowerFunctionEMA]
    guard: NonFiniteGuard
    checkpoints: CheckpointManager
    preview: SamplePreview
    online_frechet: OnlineFrechet | None
    total_batch: int
    first_step: int


def build_pipeline(
    arguments: DiTArguments,
    tokenizer: torch.nn.Module,
    cache: LatentCache,
    objective: FlowMatchingObjective | NoisePredictionObjective,
    null_class_id: int,
) -> TCDiTPipeline:
    """The pipeline around a transformer with random weights."""
    id2label = class_names(arguments, cache)
    transformer = build_transformer(
        arguments.transformer,
        cache.latent_shape,
        len(id2label),
        null_class_id,
        arguments.num_layers,
        arguments.num_attention_heads,
        arguments.attention_head_dim,
        arguments.patch_size,
    )
    if arguments.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(transformer, names=BLOCKS)
    return TCDiTPipeline(tokenizer, transformer, objective.build_scheduler(), id2label=id2label)


def class_names(arguments: DiTArguments, cache: LatentCache) -> dict[int, str]:
    return {0: "image"} if arguments.unconditional else cache.id2label


def build_online_frechet(arguments: DiTArguments, pipeline: TCDiTPipeline, cache: LatentCache) -> OnlineFrechet | None:
    if not arguments.gfd_steps:
        return None
    counts = [len(cache)] if arguments.unconditional else cache.labels.bincount(minlength=len(cache.id2label)).tolist()
    return OnlineFrechet(
        pipeline,
        arguments.gfd_reference,
        arguments.gfd_extractor,
        arguments.gfd_samples,
        counts,
        arguments.seed,
        resolution=cache.latent_shape[1] * spatial_ratio(pipeline.vae),
        sampling={"num_inference_steps": arguments.sample_num_inference_steps, "guidance_scale": 1.0},
    )


def start(arguments: DiTArguments) -> DiTRun:
    """Build everything and load the checkpoint to go on from; whatever is wrong with the arguments shows here."""
    # What the user names is opened before anything is written.
    tokenizer = load_autoencoder(arguments.tokenizer)
    cache = open_cache(arguments, tokenizer)
    check_latent_shape(arguments.transformer, cache.latent_shape, arguments.patch_size)
    objective = build_objective(arguments, cache.latent_shape)
    num_classes = len(class_names(arguments, cache))
    null_class_id = choose_null_class_id(arguments.null_class_id, num_classes, objective.prediction_type)

    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)
    check_sharding(accelerator)
    pipeline = build_pipeline(arguments, tokenizer, cache, objective, null_class_id)
    transformer = pipeline.transformer
    optimizer = torch.optim.AdamW(
        transformer.parameters(),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
        fused=True,
    )
    model, optimizer = prepare(accelerator, transformer, optimizer, SHARDED_UNITS)
    tokenizer.to(accelerator.device)
    averages = [
        EMAModel(transformer.parameters(), decay=decay, foreach=True)
        for decay in (arguments.ema_decay, *arguments.extra_ema_decays)
    ]
    posthoc_averages = [PowerFunctionEMA(transformer.parameters(), sigma) for sigma in arguments.posthoc_ema_sigmas]
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    if is_sharded(transformer):
        accelerator.register_for_checkpointing(guard)
        register_averages(accelerator, [*averages, *posthoc_averages])
    else:
        accelerator.register_for_checkpointing(averages[0], guard, *averages[1:], *posthoc_averages)

    total_batch = arguments.train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        identity={
            "script": "train_dit",
            "model": {key: value for key, value in transformer.config.items() if not key.startswith("_")},
            "objective": {"name": arguments.objective, **asdict(objective), "label_dropout": arguments.label_dropout},
            "unconditional": arguments.unconditional,
            "EMA decays": [average.decay for average in averages],
            "post-hoc EMA": arguments.posthoc_ema_sigmas,
            "seed": arguments.seed,
            "total batch": total_batch,
            "max_train_steps": arguments.max_train_steps,
            "data": cache.fingerprint,
        },
    )
    first_step = checkpoints.resume(arguments.resume)
    return DiTRun(
        arguments=arguments,
        folder=folder,
        accelerator=accelerator,
        cache=cache,
        objective=objective,
        pipeline=pipeline,
        model=model,
        optimizer=optimizer,
        averages=averages,
        posthoc_averages=posthoc_averages,
        guard=guard,
        checkpoints=checkpoints,
        preview=SamplePreview(
            pipeline,
            arguments.samples_per_class,
            arguments.sample_num_inference_steps,
            arguments.sample_guidance_scale,
            arguments.seed,
        ),
        online_frechet=build_online_frechet(arguments, pipeline, cache),
        total_batch=total_batch,
        first_step=first_step,
    )


def build_loader(run: DiTRun) -> DataLoader:
    """Batches of this rank from `first_step` to the end of the run."""
    arguments, accelerator = run.arguments, run.accelerator
    sampler = StepIndexedBatchSampler(
        num_samples=len(run.cache),
        batch_size_per_rank=arguments.train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=arguments.seed,
        start_step=run.first_step,
        num_steps=arguments.max_train_steps - run.first_step,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )
    return DataLoader(
        run.cache,
        batch_sampler=sampler,
        collate_fn=LatentCache.collate,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def optimize(run: DiTRun, batches: Iterator, progress: TrainingProgress, step: int) -> None:
    """One optimizer step, and the moving averages that follow it."""
    arguments, accelerator, optimizer = run.arguments, run.accelerator, run.optimizer
    for group in optimizer.param_groups:
        group["lr"] = cosine_with_warmup(
            step,
            arguments.max_train_steps,
            arguments.peak_learning_rate(run.total_batch),
            arguments.final_learning_rate,
            round(arguments.lr_warmup_fraction * arguments.max_train_steps),
        )
    randomness = draw_step_randomness(
        arguments.seed,
        step,
        run.total_batch,
        run.cache.latent_shape,
        run.objective,
        arguments.label_dropout,
        accelerator.device,
    )
    rank_batch = arguments.train_batch_size
    for micro_step in range(arguments.gradient_accumulation_steps):
        started = time.perf_counter()
        batch = next(batches)
        progress.waited(time.perf_counter() - started)
        first_slot = (micro_step * accelerator.num_processes + accelerator.process_index) * rank_batch
        mine = {name: value[first_slot : first_slot + rank_batch] for name, value in randomness.items()}
        labels = torch.zeros_like(batch["labels"]) if arguments.unconditional else batch["labels"]
        with accelerator.accumulate(run.model):
            losses = compute_losses(
                run.model,
                run.objective,
                batch["latents"].to(accelerator.device, non_blocking=True),
                labels.to(accelerator.device, non_blocking=True),
                run.pipeline.null_class_id,
                mine,
            )
            accelerator.backward(losses["loss"])
            metrics = {f"train/{name}": value for name, value in losses.items()}
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm)
                metrics["train/grad_norm"] = whole_tensor(grad_norm)
                run.guard.mark(optimizer, losses["loss"], metrics["train/grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
        progress.add(metrics)
    for average in (*run.averages, *run.posthoc_averages):
        average.step(run.pipeline.transformer.parameters())


def look_and_save(run: DiTRun, step: int) -> None:
    """What is due after `step`: pictures, the online distance, snapshots of the averages, a pipeline, a checkpoint."""
    arguments = run.arguments
    is_last = step == arguments.max_train_steps
    if is_last or step % arguments.sample_steps == 0:
        run.preview.log(run.accelerator, run.averages[0], step)
    if run.online_frechet is not None and (is_last or step % arguments.gfd_steps == 0):
        run.online_frechet.log(run.accelerator, run.averages[0], step)
    if is_last or step % arguments.posthoc_ema_steps == 0:
        names = [name for name, _ in run.pipeline.transformer.named_parameters()]
        for average in run.posthoc_averages:
            average.save_snapshot(run.folder / "ema_snapshots", names, run.accelerator.is_main_process)
    if arguments.pipeline_steps and step % arguments.pipeline_steps == 0 and not is_last:
        # As the pipeline would be if training ended here, but for the learning rate.
        save_averaged(run, run.averages[0], run.folder / "pipelines" / f"step-{step:08d}")
    if step % arguments.checkpointing_steps == 0 and not is_last:
        run.checkpoints.save(step, samples_seen=step * run.total_batch)


def save_averaged(run: DiTRun, average: EMAModel, folder: Path, whole_pipeline: bool = True) -> None:
    """The pipeline, or its transformer alone, with averaged weights; training can go on. All ranks must call this."""
    with averaged_weights(run.pipeline, average):
        if run.accelerator.is_main_process:
            folder.parent.mkdir(exist_ok=True)
            save_model(run.pipeline if whole_pipeline else run.pipeline.transformer, folder)


def save_results(run: DiTRun) -> None:
    """The pipeline with the first of the averaged weights, and one transformer for each further one."""
    for average in run.averages[1:]:
        save_averaged(run, average, run.folder / "ema" / f"{average.decay:g}", whole_pipeline=False)
    save_averaged(run, run.averages[0], run.folder / "pipeline")


def train(run: DiTRun) -> None:
    """From `first_step` to the end, or to a signal; then the checkpoint, and the pipeline once it is finished."""
    arguments, accelerator = run.arguments, run.accelerator
    progress = TrainingProgress(
        accelerator, "dit", arguments.max_train_steps, run.first_step, run.total_batch, arguments.log_steps
    )
    set_training_mode(run.pipeline.transformer)
    batches = iter(build_loader(run))
    step = run.first_step
    with StopSignal() as stop:
        while step < arguments.max_train_steps and not stop.agreed():
            optimize(run, batches, progress, step)
            step += 1
            logged = progress.step(step, {"train/learning_rate": run.optimizer.param_groups[0]["lr"]})
            if logged is not None and (skipped := run.guard.check()):
                logger.warning(f"{skipped} steps so far were skipped because loss or gradient was not finite")
            started = time.perf_counter()
            look_and_save(run, step)
            progress.pause(time.perf_counter() - started)
        run.checkpoints.save(step, samples_seen=step * run.total_batch)
    progress.close()
    if step == arguments.max_train_steps:
        save_results(run)
        logger.info(f"finished; the pipeline is in {run.folder / 'pipeline'}")
    else:
        logger.warning(f"{stop.received or 'another rank'}: saved at step {step}; continue with --resume latest")
    accelerator.end_training()


def describe(run: DiTRun) -> dict[str, Any]:
    """The run in a few facts, for its log and for reports."""
    arguments, transformer = run.arguments, run.pipeline.transformer
    losses = {
        "flow_matching": f"flow matching, {arguments.timestep_distribution} noise levels",
        "epsilon": "noise prediction",
        "v_prediction": "v prediction",
    }[arguments.objective]
    if getattr(run.objective, "shift", 1.0) != 1.0:
        losses += f" shifted by {run.objective.shift:.3g}"
    if arguments.direction_weight:
        losses += f", + {arguments.direction_weight:g} * direction"
    if arguments.min_snr_gamma is not None:
        losses += f", min-SNR {arguments.min_snr_gamma:g}"
    return {
        "losses": losses,
        "transformer": model_class(transformer).__name__,
        "parameters": transformer.num_parameters(),
        "latents": len(run.cache),
        "latent_shape": list(run.cache.latent_shape),
        "classes": run.pipeline.num_classes,
        "total_batch": run.total_batch,
    }


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(DiTArguments, argv)
    with exit_on_user_error(), discard_new_folder_on_error(arguments.output_dir):
        run = start(arguments)
        start_trackers(run.accelerator, arguments, "train_dit", run.first_step)
        description = describe(run)
        save_description(run.accelerator, run.folder, description)
    logger.info(
        f"{description['transformer']} of {description['parameters'] / 1e6:.2f} M parameters,"
        f" {description['latents']} latents {tuple(description['latent_shape'])} of {description['classes']} classes,"
        f" batch {run.total_batch}, steps {run.first_step} to {arguments.max_train_steps}; {description['losses']}"
    )
    # From here on a ValueError is a defect of ours.
    with exit_on_user_error(RUN_ERRORS):
        train(run)


if __name__ == "__main__":
    main()
