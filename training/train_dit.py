"""
Train a diffusion transformer on cached latents, by flow matching or noise prediction, with class labels.

    accelerate launch training/train_dit.py --config openmoji32_dit --latents runs/latents \
        --tokenizer runs/tokenizer/model --output_dir runs/dit

The finished pipeline is in OUTPUT_DIR/pipeline: `import tcae_diffusers`, then
`DiffusionPipeline.from_pretrained("OUTPUT_DIR/pipeline")`.
"""

from __future__ import annotations

from tcae_diffusers.training.commands import train_dit as main

if __name__ == "__main__":
    # Before the imports that take seconds. The work is done by this module under its own name.
    main()
    raise SystemExit

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.latents.calibration import warn_of_latents_without_unit
from tcae_diffusers.files import sha256_of_json
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.objectives.representation_alignment import RepresentationAlignment
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.trainer.compilation import compile_blocks
from tcae_diffusers.trainer.fit import Hooks, Side, fit
from tcae_diffusers.trainer.image_batches import step_indexed_loader
from tcae_diffusers.trainer.optimizers import build_optimizer
from tcae_diffusers.trainer.posthoc_ema import PowerFunctionEMA
from tcae_diffusers.trainer.run import Run, begin_run, launch, save_model, start_accelerator
from tcae_diffusers.trainer.sharding import check_sharding, model_class, prepare
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.dit_objectives import (
    Objective,
    alignment_in_words,
    build_alignment,
    build_objective,
    compute_losses,
    draw_step_randomness,
    objective_in_words,
)
from tcae_diffusers.training.dit_transformers import (
    BLOCKS,
    LATENT_LAYERS,
    SHARDED_UNITS,
    build_transformer,
    check_latent_shapes,
    choose_null_class_id,
    load_transformer_weights,
    set_training_mode,
)
from tcae_diffusers.training.online_frechet import OnlineFrechet, build_online_frechet
from tcae_diffusers.training.sample_preview import SamplePreview, averaged_pipeline


@dataclass
class DiTTraining:
    """
    Everything that is trained and measured.

    Args:
        pipeline: holds the unwrapped transformer.
        averages: the first is the pipeline's.
        alignment: `None` unless asked for; then `side.model` is the transformer with a projector, and `cache` has
            tokens.
        online_frechet: `None` unless asked for.
        randomness: of the step at hand.
    """

    run: Run
    arguments: DiTArguments
    cache: LatentCache
    objective: Objective
    alignment: RepresentationAlignment | None
    pipeline: TCDiTPipeline
    null_class_id: int
    side: Side
    averages: list[EMAModel]
    posthoc_averages: list[PowerFunctionEMA]
    preview: SamplePreview
    online_frechet: OnlineFrechet | None
    randomness: dict[str, torch.Tensor] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The run in a few facts, for its log and for reports."""
        transformer, cache = self.pipeline.transformer, self.cache
        name, parameters = model_class(transformer).__name__, transformer.num_parameters()
        return {
            "losses": objective_in_words(self.arguments, self.objective)
            + alignment_in_words(self.alignment, self.cache),
            "transformer": name,
            "parameters": parameters,
            "latents": len(cache),
            "latent_shape": list(cache.latent_shape),
            "latent_shapes": [list(bucket.latent_shape) for bucket in cache.buckets],
            "classes": self.pipeline.num_classes,
            "total_batch": self.run.total_batch,
            "summary": f"{name} of {parameters / 1e6:.2f} M parameters, {len(cache)} latents {cache.shapes_in_words}"
            f" of {self.pipeline.num_classes} classes",
        }

    def train(self) -> None:
        run, arguments = self.run, self.arguments
        set_training_mode(self.pipeline.transformer)
        cache = self.cache
        batches = step_indexed_loader(
            cache, cache.bucket_of, LatentCache.collate, arguments, run.accelerator, run.first_step
        )
        fit(run, batches, [self.side], self.schedule, self.backward, Hooks(finish=self.save, due=self.due()))

    def schedule(self, step: int) -> None:
        """The learning rate is a function of the step alone, so a resume needs nothing else."""
        for group in self.side.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(step)

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        """Gradients of one forward pass, with the randomness of the whole step drawn once; its terms for the log."""
        run, arguments, device = self.run, self.arguments, self.run.accelerator.device
        if micro_step == 0:
            self.randomness = draw_step_randomness(
                arguments.seed,
                step,
                run.total_batch,
                # All batches of a step have one shape.
                batches[0]["latents"].shape[1:],
                self.objective,
                arguments.label_dropout,
                device,
            )
        first, batch = run.first_slot(micro_step), batches[micro_step]
        labels = torch.zeros_like(batch["labels"]) if arguments.unconditional else batch["labels"]
        losses = compute_losses(
            self.side.model,
            self.objective,
            batch["latents"].to(device, non_blocking=True),
            labels.to(device, non_blocking=True),
            self.null_class_id,
            {name: value[first : first + arguments.train_batch_size] for name, value in self.randomness.items()},
            self.alignment,
            batch["tokens"].to(device, non_blocking=True) if "tokens" in batch else None,
        )
        run.accelerator.backward(losses["loss"])
        return {f"train/{name}": value for name, value in losses.items()}

    def due(self) -> list[tuple[int, Callable[[int], object]]]:
        """Pictures, the online distance, snapshots of averages, and pipelines on the way."""
        arguments, accelerator, average = self.arguments, self.run.accelerator, self.averages[0]
        due: list[tuple[int, Callable[[int], object]]] = [
            (arguments.sample_steps, lambda step: self.preview.log(accelerator, average, step))
        ]
        if (online := self.online_frechet) is not None:
            due.append((arguments.gfd_steps, lambda step: online.log(accelerator, average, step)))
        due.append((arguments.posthoc_ema_steps, self.save_snapshots))
        if arguments.pipeline_steps:
            due.append((arguments.pipeline_steps, self.save_on_the_way))
        return due

    def save_snapshots(self, step: int) -> None:
        names = [name for name, _ in self.pipeline.transformer.named_parameters()]
        for average in self.posthoc_averages:
            average.save_snapshot(self.run.folder / "ema_snapshots", names, self.run.accelerator.is_main_process)

    def save_on_the_way(self, step: int) -> None:
        """As the pipeline would be if training ended here, but for the learning rate."""
        if step < self.arguments.max_train_steps:
            self.save_averaged(self.averages[0], self.run.folder / "pipelines" / f"step-{step:08d}")

    def save_averaged(self, average: EMAModel, folder: Path, whole_pipeline: bool = True) -> None:
        """The pipeline, or its transformer alone, with averaged weights. All ranks must call this."""
        with averaged_pipeline(self.pipeline, average) as pipeline:
            if self.run.accelerator.is_main_process:
                folder.parent.mkdir(exist_ok=True)
                save_model(pipeline if whole_pipeline else pipeline.transformer, folder)

    def save(self) -> str:
        """The pipeline with the first of the averaged weights, and one transformer for each further one."""
        folder = self.run.folder
        for average in self.averages[1:]:
            self.save_averaged(average, folder / "ema" / f"{average.decay:.15g}", whole_pipeline=False)
        self.save_averaged(self.averages[0], folder / "pipeline")
        return f"the pipeline is in {folder / 'pipeline'}"


def open_cache(arguments: DiTArguments, tokenizer: torch.nn.Module) -> LatentCache:
    """The cache, with latents as diffusers pipelines want them: `(encode(x) - shift_factor) * scaling_factor`."""
    with_tokens = arguments.repa_weight > 0
    cache = LatentCache(arguments.latents, tokenizer, seed=arguments.seed, with_tokens=with_tokens)
    scaling, shift = adapt(tokenizer).pipeline_scaling
    if (scaling, shift) != (1.0, 0.0):
        channels = cache.latent_shape[0]
        cache.normalize_with(torch.full((channels,), shift), torch.full((channels,), 1.0 / scaling))
    return cache


def class_names(arguments: DiTArguments, cache: LatentCache) -> dict[int, str]:
    return {0: "image"} if arguments.unconditional else cache.id2label


def start(arguments: DiTArguments) -> DiTTraining:
    """Build everything and load the checkpoint to resume from; raises for anything wrong with the arguments."""
    # What the user names is opened before anything is written.
    tokenizer = load_autoencoder(arguments.tokenizer)
    cache = open_cache(arguments, tokenizer)
    latent_shapes = [cache.latent_shape, *(bucket.latent_shape for bucket in cache.buckets)]
    check_latent_shapes(arguments.transformer, latent_shapes, arguments.patch_size)
    objective = build_objective(arguments, latent_shapes)
    id2label = class_names(arguments, cache)
    null_class_id = choose_null_class_id(arguments.null_class_id, len(id2label), objective.prediction_type)

    accelerator = start_accelerator(arguments)
    check_sharding(accelerator, {"--gradient_checkpointing": arguments.gradient_checkpointing})
    warn_of_latents_without_unit(cache)
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
    if arguments.transformer_weights is not None:
        load_transformer_weights(transformer, arguments.transformer_weights, objective.prediction_type, id2label)
    alignment = build_alignment(arguments, transformer.config.num_layers, latent_shapes)
    trained = transformer
    if alignment is not None:
        assert cache.token_shape is not None, "the cache was opened with tokens"
        trained = alignment.attach(transformer, cache.token_shape[0])
    if arguments.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(transformer, names=BLOCKS)
    pipeline = TCDiTPipeline(
        tokenizer,
        transformer,
        objective.build_scheduler(),
        id2label=id2label,
        prediction_type=objective.prediction_type,
        has_null_class=arguments.label_dropout > 0,
    )
    groups = [{"params": list(trained.parameters()), "weight_decay": arguments.weight_decay}]
    # Of the transformer: the projector, like first and last layers, always has AdamW.
    optimizer = build_optimizer(arguments, groups, transformer, LATENT_LAYERS)
    model, optimizer = prepare(accelerator, trained, optimizer, SHARDED_UNITS)
    tokenizer.to(accelerator.device)
    averages = [
        EMAModel(transformer.parameters(), decay=decay, foreach=True)
        for decay in (arguments.ema_decay, *arguments.extra_ema_decays)
    ]
    posthoc_averages = [PowerFunctionEMA(transformer.parameters(), sigma) for sigma in arguments.posthoc_ema_sigmas]
    all_averages = [*averages, *posthoc_averages]
    identity = {
        "objective": {"name": arguments.objective, **asdict(objective), "label_dropout": arguments.label_dropout},
        "alignment": alignment and asdict(alignment),
        "unconditional": arguments.unconditional,
        "EMA decays": [average.decay for average in averages],
        "post-hoc EMA": arguments.posthoc_ema_sigmas,
        "data": cache.fingerprint,
        "normalisation of the latents": cache.normalisation and sha256_of_json(cache.normalisation),
    }
    run = begin_run("train_dit", arguments, accelerator, transformer, all_averages, [], identity)
    side = Side(transformer, model, optimizer, all_averages)
    preview = SamplePreview(
        pipeline,
        arguments.samples_per_class,
        arguments.sample_num_inference_steps,
        arguments.sample_guidance_scale if arguments.label_dropout else 1.0,
        arguments.seed,
    )
    online_frechet = build_online_frechet(arguments, pipeline, cache)
    return DiTTraining(
        run,
        arguments,
        cache,
        objective,
        alignment,
        pipeline,
        null_class_id,
        side,
        averages,
        posthoc_averages,
        preview,
        online_frechet,
    )


def run(arguments: DiTArguments) -> None:
    """The command, once its options have been read."""
    launch(arguments, start)
