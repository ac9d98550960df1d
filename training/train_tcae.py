"""
Train a TC-AE tokenizer: L = alpha * L_rec + L_iBOT (arXiv 2604.07340, section 3).

    accelerate launch training/train_tcae.py --config openmoji32 --output_dir runs/tokenizer

The finished tokenizer is in OUTPUT_DIR/model and loads with `AutoencoderTC.from_pretrained`. Other autoencoders of
diffusers train with the same data, losses and budget: `--autoencoder FOLDER` with their config.json, and `--ssl none`.
"""

from __future__ import annotations

from tcae_diffusers.training.commands import train_tcae as main

if __name__ == "__main__":
    # Before the imports that take seconds. The work is done by this module under its own name.
    main()
    raise SystemExit

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers import ModelMixin

from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.objectives.latent_shaping import Decoded
from tcae_diffusers.objectives.schedules import weight_decay
from tcae_diffusers.self_supervision import build_method
from tcae_diffusers.self_supervision.method import SelfSupervision, StudentOutput
from tcae_diffusers.self_supervision.student import TokenizerStudent
from tcae_diffusers.trainer.adversary import Pass, build_adversary
from tcae_diffusers.trainer.averages import WeightAverage, averaged_weights, kept_batch_statistics
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, require_weights, resolve_sizes
from tcae_diffusers.trainer.compilation import compile_blocks
from tcae_diffusers.trainer.fit import Hooks, Side, is_log_step
from tcae_diffusers.trainer.gradient_norms import gradient_norms
from tcae_diffusers.trainer.image_batches import build_training_images
from tcae_diffusers.trainer.latent_shaping import build_latent_shaping
from tcae_diffusers.trainer.optimizers import build_optimizer
from tcae_diffusers.trainer.reconstruction_preview import build_preview
from tcae_diffusers.trainer.reconstruction_terms import build_reconstruction_loss
from tcae_diffusers.trainer.reconstruction_training import ReconstructionTraining, begin_reconstruction_run
from tcae_diffusers.trainer.run import launch, save_model, start_accelerator
from tcae_diffusers.trainer.sharding import (
    check_sharding,
    is_sharded,
    prepare,
    require_whole_parameters,
    start_optimizer_state,
)
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

logger = get_logger(__name__)


@dataclass
class StudentPass(Pass):
    """One forward pass of the student: what it returned, and the views, if any, that it saw beside the images."""

    output: StudentOutput
    views: Any


@dataclass
class TokenizerTraining(ReconstructionTraining[StudentPass]):
    """
    An autoencoder and a method that trains its tokens. An adversary is asked for where the paper's L_rec has a term of
    unknown weight.

    Args:
        student: Unwrapped, the autoencoder and the parts of the method.
    """

    arguments: TokenizerArguments
    student: TokenizerStudent
    method: SelfSupervision

    def describe(self) -> dict[str, Any]:
        """The run in words; one without a perceptual loss or self-supervision says so."""
        arguments, method = self.arguments, self.method.description
        reconstruction = self.reconstruction_loss.description
        if self.adversary is not None:
            reconstruction += f" + {self.adversary.describe(arguments)}"
        weighted = f", {method}" if method.startswith("without") else f" + {arguments.ssl_weight:g} * {method}"
        losses = f"{arguments.reconstruction_weight:g} * ({reconstruction}){weighted}"
        if shaping := self.student.shaping.description:
            losses += f", latent with {shaping}"
        if arguments.trained_layers != "all":
            losses += f", for the {arguments.trained_layers} layers alone"
        parameters = self.autoencoder.num_parameters()
        return self.describe_run(losses, f"{parameters / 1e6:.2f} M parameters", parameters=parameters)

    def schedule(self, step: int) -> None:
        """Learning rates and weight decay."""
        super().schedule(step)
        arguments = self.arguments
        for group in self.side.optimizer.param_groups:
            if group["name"] == "scheduled":
                group["weight_decay"] = weight_decay(
                    step, arguments.max_train_steps, arguments.weight_decay, arguments.final_weight_decay
                )

    def forward(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> StudentPass:
        images = to_signed(batch["pixel_values"], self.run.accelerator.device)
        views = self.method.prepare(batch, self.run.generators(step, micro_step, len(images)), images.device)
        # Generators of their own: what a method draws must not change how latents are sampled.
        generators = self.run.generators(step, micro_step, len(images))
        output = self.side.model(images, views, generators, step)
        return StudentPass(output.shaped.target, output.reconstruction, generators, output, views)

    def forward_without_graph(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> Pass:
        with torch.no_grad(), kept_batch_statistics(self.autoencoder):
            return self.forward_from_latent(batch, step, micro_step)

    def forward_from_latent(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> StudentPass:
        """[`forward`] without views, which change no reconstruction, and with a graph that begins at the latent."""
        accelerator = self.run.accelerator
        images = to_signed(batch["pixel_values"], accelerator.device)
        generators = self.run.generators(step, micro_step, len(images))
        with accelerator.autocast():
            output = self.student.reconstruct(images, generators, step)
        return StudentPass(output.shaped.target, output.reconstruction.float(), generators, output, None)

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        def passes() -> Iterator[Decoded]:
            for index, batch in enumerate(batches):
                with kept_batch_statistics(self.autoencoder):
                    seen = self.forward_from_latent(batch, step, index)
                loss = self.reconstruction_loss(seen.sample, seen.images).loss
                yield Decoded(seen.output.shaped, seen.output.latent, loss)

        if micro_step == 0:
            self.student.shaping.begin_step(passes, len(batches))
        return super().backward(batches, step, micro_step)

    def compute_loss(self, seen: StudentPass, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        arguments, output = self.arguments, seen.output
        loss, metrics = super().compute_loss(seen, step)
        shaping, logged = self.student.shaping.loss(Decoded(output.shaped, output.latent, metrics["train/loss_rec"]))
        loss, metrics = arguments.reconstruction_weight * (loss + shaping), metrics | logged
        if output.kl is not None:
            loss = loss + arguments.kl_weight * output.kl
            metrics["train/loss_kl"] = output.kl
        # The frozen networks of a method run in the precision of the student.
        with self.run.accelerator.autocast():
            ssl, logged = self.method.loss(output, seen.views, step, is_log_step(step, arguments))
        loss, metrics = loss + arguments.ssl_weight * ssl, metrics | logged
        if is_log_step(step, arguments):
            channels = output.latent.detach().float().transpose(0, 1).flatten(1).std(dim=1)
            metrics |= {"latent/channel_std": channels.mean(), "latent/min_channel_std": channels.min()}
        return loss, metrics | {"train/loss": loss}

    def hooks(self) -> Hooks:
        return replace(
            super().hooks(), after_backward=self.after_backward, after_step=self.after_step, after_log=self.warn
        )

    def after_backward(self, step: int) -> dict[str, torch.Tensor]:
        self.method.after_backward(step)
        return gradient_norms(self.student) if is_log_step(step, self.arguments) else {}

    def after_step(self, step: int, skipped: torch.Tensor) -> None:
        self.method.after_step(step, skipped)
        if self.adversary is not None:
            self.adversary.after_step(step, skipped)

    def warn(self, step: int, logged: dict[str, float]) -> None:
        if warning := self.method.warning(step, logged):
            logger.warning(warning)

    def save(self) -> str:
        with averaged_weights(self.autoencoder, self.ema) as averaged:
            if self.run.accelerator.is_main_process:
                save_model(averaged, self.run.folder / "model")
        if self.adversary is not None and self.run.accelerator.is_main_process:
            self.adversary.save(self.run.folder / "discriminator")
        return f"the tokenizer is in {self.run.folder / 'model'}"


def start(arguments: TokenizerArguments) -> TokenizerTraining:
    """Build everything and load the checkpoint to resume from; raises for anything wrong with the arguments."""
    accelerator = start_accelerator(arguments)
    recomputing = {
        "--gradient_checkpointing": arguments.gradient_checkpointing,
        "--ssl_drop_path": arguments.ssl_drop_path > 0,
    }
    check_sharding(accelerator, recomputing)
    autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
    # Statistics of the initial weights: training changes the latents, and cache_latents measures them again.
    adapt(autoencoder).reset_statistics()
    resolve_sizes(arguments, autoencoder)
    if type(autoencoder).__name__ == "VQModel":
        raise InputError(
            f"--autoencoder {arguments.autoencoder} is a VQModel, whose codebook learns by a loss that this command"
            " lacks; train another autoencoder, or its decoder alone with finetune_decoder."
        )
    freeze_layers(autoencoder, arguments)
    if arguments.trained_layers != "all":
        require_whole_parameters(
            accelerator, f"--trained_layers {arguments.trained_layers} freezes some of what FSDP shards"
        )
        require_weights(
            arguments.autoencoder, f"--trained_layers {arguments.trained_layers} adapts a trained autoencoder"
        )
    method = build_method(arguments, adapt(autoencoder))
    shaping = build_latent_shaping(arguments, adapt(autoencoder), accelerator)
    student = TokenizerStudent(autoencoder, method.parts, shaping)
    dataset = build_training_images(arguments, adapt(autoencoder), method.crops())
    preview = build_preview(arguments)
    reconstruction_loss = build_reconstruction_loss(arguments).to(accelerator.device)
    for module in method.state():
        module.to(accelerator.device)
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    if arguments.compile:
        names = tuple(autoencoder._repeated_blocks or ())
        compile_blocks(student, *method.state(), names=names, keep_graph=student.shaping.weighs_gradients)

    edges = [f"autoencoder.{name}" for name in adapt(autoencoder).pixel_layers]
    optimizer = build_optimizer(arguments, parameter_groups(student, arguments), student, edges)
    # What diffusers keeps on one device is called as a whole, which is what FSDP asks of a unit.
    model, optimizer = prepare(accelerator, student, optimizer, units=autoencoder._no_split_modules or ())
    ema = WeightAverage(autoencoder, arguments.ema_decay)
    if is_sharded(autoencoder):
        start_optimizer_state(optimizer)
    side = Side(autoencoder, model, optimizer, [ema])
    adversary = build_adversary(arguments, accelerator)
    identity = {"ssl": arguments.ssl, **method.identity, **student.shaping.identity}
    if arguments.trained_layers != "all":
        identity["trained layers"] = arguments.trained_layers
    run = begin_reconstruction_run(
        "train_tcae", arguments, accelerator, side, reconstruction_loss, adversary, dataset, method.state(), identity
    )
    return TokenizerTraining(
        run, arguments, autoencoder, side, ema, reconstruction_loss, adversary, dataset, preview, student, method
    )


def freeze_layers(autoencoder: ModelMixin, arguments: TokenizerArguments) -> None:
    """Take gradients from what `--trained_layers` leaves out."""
    if arguments.trained_layers == "latent":
        adapt(autoencoder).train_only(adapt(autoencoder).latent_layers)


def parameter_groups(student: TokenizerStudent, arguments: TokenizerArguments) -> list[dict[str, Any]]:
    """Encoder and method follow the weight decay schedule, the decoder keeps its start; vectors have none."""
    adapter = adapt(student.autoencoder)
    groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in ("scheduled", "constant", "none")}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or name.endswith(("class_token", "mask_token")):
            groups["none"].append(parameter)
        elif name.startswith("autoencoder.") and adapter.is_decoder(name.removeprefix("autoencoder.")):
            groups["constant"].append(parameter)
        else:
            groups["scheduled"].append(parameter)
    decay = {"scheduled": arguments.weight_decay, "constant": arguments.weight_decay, "none": 0.0}
    return [
        {"params": parameters, "name": name, "weight_decay": decay[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def run(arguments: TokenizerArguments) -> None:
    """The command, once its options have been read."""
    launch(arguments, start)
