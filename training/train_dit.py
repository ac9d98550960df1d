"""
Train a diffusion transformer on cached latents, by flow matching with class labels.

    accelerate launch training/train_dit.py --config openmoji32_dit --latents runs/latents \
        --tokenizer runs/tokenizer/model --output_dir runs/dit

The finished pipeline lies in OUTPUT_DIR/pipeline: `import tcae_diffusers`, then
`DiffusionPipeline.from_pretrained("OUTPUT_DIR/pipeline")`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.logging import get_logger
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.models.embeddings import LabelEmbedding
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from tcae_diffusers import TCDiTPipeline
from tcae_diffusers.data.latent_cache import LatentCache
from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
from tcae_diffusers.evaluation.autoencoder_access import load_autoencoder
from tcae_diffusers.objectives.flow_matching import add_flow_noise, draw_sigmas, flow_velocity
from tcae_diffusers.objectives.schedules import cosine_with_warmup
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
from tcae_diffusers.trainer.sample_preview import SamplePreview

logger = get_logger(__name__)


@dataclass
class DiTArguments(RunArguments):
    """Train a diffusion transformer on cached latents."""

    latents: str = option("", "Folder written by cache_latents.")
    tokenizer: str = option("", "Folder of the autoencoder that wrote them; it becomes part of the pipeline.")
    num_layers: int = option(28, "Transformer blocks (DiT-XL: 28).")
    num_attention_heads: int = option(16, "Attention heads (DiT-XL: 16).")
    attention_head_dim: int = option(72, "Channels per head (DiT-XL: 72).")
    patch_size: int = option(1, "Latent positions per token side; 1 for deep-compression latents (LightningDiT).")
    label_dropout: float = option(0.1, "Share of samples trained without their label, for classifier-free guidance.")
    timestep_distribution: Literal["lognormal", "uniform"] = option("lognormal", "How noise levels are drawn.")
    timestep_shift: float = option(1.0, "Above 1 moves noise levels towards noise, for larger latents.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    sample_steps: int = option(1000, "Steps between two pictures of samples, drawn from the same noise each time.")
    samples_per_class: int = option(2, "Images per class in that picture.")
    num_inference_steps: int = option(30, "Denoising steps for that picture.")
    guidance_scale: float = option(2.0, "Guidance scale for that picture.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latents", "tokenizer"):
            self._require(name, bool(getattr(self, name)), "a folder")
        self._require("label_dropout", 0 <= self.label_dropout < 1, "at least 0 and below 1")
        self._require("sample_steps", self.sample_steps >= 1, "at least 1")


def build_transformer(arguments: DiTArguments, cache: LatentCache) -> DiTTransformer2DModel:
    channels, height, width = cache.latent_shape
    if height != width:
        raise ValueError(f"latents in {arguments.latents} are {height}x{width}; DiTTransformer2DModel needs squares.")
    return DiTTransformer2DModel(
        num_attention_heads=arguments.num_attention_heads,
        attention_head_dim=arguments.attention_head_dim,
        in_channels=channels,
        out_channels=channels,
        num_layers=arguments.num_layers,
        sample_size=height,
        patch_size=arguments.patch_size,
        num_embeds_ada_norm=len(cache.id2label),
    )


def set_training_mode(transformer: ModelMixin) -> None:
    """
    `train()`, but with diffusers' own label dropout off: every block of its DiT has a label embedding that would drop
    independently, so a sample would lose its label in some blocks only. [`compute_loss`] drops it for all at once.
    """
    transformer.train()
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()


def draw_step_randomness(
    arguments: DiTArguments, step: int, total_batch: int, latent_shape: tuple[int, int, int], device: torch.device
) -> dict[str, torch.Tensor]:
    """
    Noise, noise levels and label drops of a whole optimizer step, a function of (seed, step) alone. Each rank and
    forward pass takes its slots, so the result does not depend on how a step is divided.
    """
    generator = torch.Generator(device).manual_seed((arguments.seed << 32) + step)
    return {
        "noise": torch.randn((total_batch, *latent_shape), generator=generator, device=device),
        "sigmas": draw_sigmas(
            total_batch, arguments.timestep_distribution, generator, arguments.timestep_shift, device
        ),
        "drop": torch.rand(total_batch, generator=generator, device=device) < arguments.label_dropout,
    }


def compute_loss(
    model: torch.nn.Module, latents: torch.Tensor, labels: torch.Tensor, null_class_id: int, randomness: dict
) -> torch.Tensor:
    """Mean squared error of the predicted velocity; a scalar."""
    noise, sigmas = randomness["noise"], randomness["sigmas"]
    labels = torch.where(randomness["drop"], null_class_id, labels)
    noisy = add_flow_noise(latents, noise, sigmas)
    prediction = model(noisy, timestep=1000 * sigmas, class_labels=labels, return_dict=False)[0]
    return (prediction.float() - flow_velocity(latents, noise)).square().mean()


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(DiTArguments, argv)
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)

    tokenizer = load_autoencoder(arguments.tokenizer)
    cache = LatentCache(arguments.latents, expected_tokenizer=tokenizer, seed=arguments.seed)
    transformer = build_transformer(arguments, cache)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = TCDiTPipeline(tokenizer, transformer, scheduler, id2label=cache.id2label)
    preview = SamplePreview(
        pipeline, arguments.samples_per_class, arguments.num_inference_steps, arguments.guidance_scale, arguments.seed
    )
    ema = EMAModel(transformer.parameters(), decay=arguments.ema_decay, foreach=True)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        transformer.parameters(),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(transformer, optimizer)
    tokenizer.to(accelerator.device)
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    accelerator.register_for_checkpointing(ema, guard)

    rank_batch = arguments.train_batch_size
    total_batch = rank_batch * accelerator.num_processes * arguments.gradient_accumulation_steps
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        identity={
            "script": "train_dit",
            "model": {key: value for key, value in transformer.config.items() if not key.startswith("_")},
            "seed": arguments.seed,
            "total batch": total_batch,
            "max_train_steps": arguments.max_train_steps,
            "data": cache.fingerprint,
        },
    )
    first_step = checkpoints.resume(arguments.resume)
    start_trackers(accelerator, arguments, "train_dit", first_step)
    sampler = StepIndexedBatchSampler(
        num_samples=len(cache),
        batch_size_per_rank=rank_batch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=arguments.seed,
        start_step=first_step,
        num_steps=arguments.max_train_steps - first_step,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )
    loader = DataLoader(
        cache,
        batch_sampler=sampler,
        collate_fn=LatentCache.collate,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    progress = TrainingProgress(
        accelerator, "dit", arguments.max_train_steps, first_step, total_batch, arguments.log_steps
    )
    logger.info(
        f"{transformer.num_parameters() / 1e6:.2f} M parameters, {len(cache)} latents {tuple(cache.latent_shape)} of"
        f" {len(cache.id2label)} classes, batch {total_batch}, steps {first_step} to {arguments.max_train_steps}"
    )

    set_training_mode(transformer)
    batches = iter(loader)
    step = first_step
    with StopSignal() as stop:
        while step < arguments.max_train_steps and not stop.agreed():
            for group in optimizer.param_groups:
                group["lr"] = cosine_with_warmup(
                    step,
                    arguments.max_train_steps,
                    arguments.peak_learning_rate(total_batch),
                    arguments.final_learning_rate,
                    round(arguments.lr_warmup_fraction * arguments.max_train_steps),
                )
            randomness = draw_step_randomness(
                arguments, step, total_batch, tuple(cache.latent_shape), accelerator.device
            )
            for micro_step in range(arguments.gradient_accumulation_steps):
                started = time.perf_counter()
                batch = next(batches)
                progress.waited(time.perf_counter() - started)
                first_slot = (micro_step * accelerator.num_processes + accelerator.process_index) * rank_batch
                mine = {name: value[first_slot : first_slot + rank_batch] for name, value in randomness.items()}
                with accelerator.accumulate(model):
                    loss = compute_loss(
                        model,
                        batch["latents"].to(accelerator.device, non_blocking=True),
                        batch["labels"].to(accelerator.device, non_blocking=True),
                        pipeline.null_class_id,
                        mine,
                    )
                    accelerator.backward(loss)
                    metrics = {"train/loss": loss}
                    if accelerator.sync_gradients:
                        metrics["train/grad_norm"] = accelerator.clip_grad_norm_(
                            model.parameters(), arguments.max_grad_norm
                        )
                        guard.mark(optimizer, loss, metrics["train/grad_norm"])
                    optimizer.step()
                    optimizer.zero_grad()
                progress.add(metrics)
            ema.step(transformer.parameters())
            step += 1

            logged = progress.step(step, {"train/learning_rate": optimizer.param_groups[0]["lr"]})
            if logged is not None and guard.check():
                logger.warning(f"{guard.check()} steps so far were skipped because loss or gradient was not finite")
            started = time.perf_counter()
            if step % arguments.sample_steps == 0 or step == arguments.max_train_steps:
                preview.log(accelerator, ema, step)
                set_training_mode(transformer)
            if step % arguments.checkpointing_steps == 0 and step < arguments.max_train_steps:
                checkpoints.save(step, samples_seen=step * total_batch)
            progress.pause(time.perf_counter() - started)

    checkpoints.save(step, samples_seen=step * total_batch)
    progress.close()
    if step == arguments.max_train_steps:
        if accelerator.is_main_process:
            ema.copy_to(transformer.parameters())
            save_model(pipeline.to("cpu"), folder / "pipeline")
        logger.info(f"finished; the pipeline is in {Path(folder) / 'pipeline'}")
    else:
        logger.warning(f"{stop.received or 'another rank'}: saved at step {step}; continue with --resume latest")
    accelerator.end_training()


if __name__ == "__main__":
    main()
