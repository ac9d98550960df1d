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
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.objectives.schedules import weight_decay
from tcae_diffusers.self_supervision import build_method
from tcae_diffusers.self_supervision.method import SelfSupervision, StudentOutput
from tcae_diffusers.self_supervision.student import TokenizerStudent
from tcae_diffusers.trainer.adversary import Adversary, Pass, build_adversary
from tcae_diffusers.trainer.averages import averaged_weights
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, resolve_sizes
from tcae_diffusers.trainer.compilation import compile_blocks
from tcae_diffusers.trainer.fit import Hooks, Side, fit, is_log_step
from tcae_diffusers.trainer.gradient_norms import gradient_norms
from tcae_diffusers.trainer.image_batches import build_training_images, image_loader
from tcae_diffusers.trainer.latent_shaping import build_latent_shaping
from tcae_diffusers.trainer.optimizers import build_optimizer
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview, build_preview
from tcae_diffusers.trainer.reconstruction_terms import build_reconstruction_loss
from tcae_diffusers.trainer.run import Run, begin_run, launch, prepare_run_folder, save_model, start_accelerator
from tcae_diffusers.trainer.sharding import check_sharding, is_sharded, prepare, start_optimizer_state
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

logger = get_logger(__name__)


@dataclass
class TokenizerTraining:
    """
    Everything that is trained and measured.

    Args:
        student: unwrapped; `side.model` is the same as accelerate prepared it.
        ema: average of the autoencoder, without the parts of the method.
        adversary: `None` unless asked for: the paper's L_rec has an adversarial term, of unknown weight.
        preview: `None` without held-out images.
    """

    run: Run
    arguments: TokenizerArguments
    autoencoder: ModelMixin
    student: TokenizerStudent
    method: SelfSupervision
    side: Side
    ema: EMAModel
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    dataset: TokenizerTrainingDataset | StreamedImages
    preview: ReconstructionPreview | None

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
        parameters, data = self.autoencoder.num_parameters(), f"{arguments.train_data}: {self.dataset.description}"
        return {
            "losses": losses,
            "autoencoder": type(self.autoencoder).__name__,
            "parameters": parameters,
            "data": data,
            "total_batch": self.run.total_batch,
            "summary": f"{parameters / 1e6:.2f} M parameters; {data}",
        }

    @property
    def sides(self) -> list[Side]:
        return [self.side] if self.adversary is None else [self.side, self.adversary.side]

    def train(self) -> None:
        self.side.model.train()
        batches = image_loader(self.dataset, self.arguments, self.run.accelerator, self.run.first_step)
        fit(self.run, batches, self.sides, self.schedule, self.backward, self.hooks())

    def schedule(self, step: int) -> None:
        """Learning rate and weight decay are functions of the step alone, so a resume needs nothing else."""
        arguments, total = self.arguments, self.arguments.max_train_steps
        for group in self.side.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(step)
            if group["name"] == "scheduled":
                group["weight_decay"] = weight_decay(step, total, arguments.weight_decay, arguments.final_weight_decay)
        if self.adversary is not None:
            self.adversary.schedule(step, arguments)

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        """Gradients of one forward pass, of the discriminator's too if there is one; its terms for the log."""
        if self.adversary is not None and micro_step == 0:
            passes = passes_without_graph(self, batches, step)
            self.adversary.begin_step(passes, len(batches), self.reconstruction_loss, step)
        seen = forward_student(self, batches[micro_step], step, micro_step)
        loss, metrics = compute_loss(self, seen, step)
        self.run.accelerator.backward(loss)
        return metrics if self.adversary is None else metrics | self.adversary.backward(seen, step)

    def hooks(self) -> Hooks:
        due = []
        if self.preview is not None:
            due.append((self.arguments.heldout_steps, self.look_at_heldout_images))
        return Hooks(
            finish=self.save,
            after_backward=self.after_backward,
            after_step=self.after_step,
            after_log=self.warn,
            due=due,
        )

    def look_at_heldout_images(self, step: int) -> None:
        self.preview.log(self.run.accelerator, self.autoencoder, self.ema, step)

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
        return f"the tokenizer is in {self.run.folder / 'model'}"


def start(arguments: TokenizerArguments) -> TokenizerTraining:
    """Build everything and load the checkpoint to resume from; raises for anything wrong with the arguments."""
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)
    check_sharding(accelerator)
    autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
    # Statistics of the initial weights: training changes the latents, and cache_latents measures them again.
    adapt(autoencoder).reset_statistics()
    resolve_sizes(arguments, autoencoder)
    method = build_method(arguments, adapt(autoencoder))
    student = TokenizerStudent(autoencoder, method.parts, build_latent_shaping(arguments, adapt(autoencoder)))
    transform = MultiCropTransform(arguments.resolution, horizontal_flip=arguments.horizontal_flip, **method.crops())
    dataset = build_training_images(arguments, transform)
    preview = build_preview(arguments, folder)
    reconstruction_loss = build_reconstruction_loss(arguments).to(accelerator.device)
    for module in method.state():
        module.to(accelerator.device)
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(student, *method.state(), names=tuple(autoencoder._repeated_blocks or ()))

    edges = [f"autoencoder.{name}" for name in adapt(autoencoder).pixel_layers]
    optimizer = build_optimizer(arguments, parameter_groups(student, arguments), student, edges)
    # What diffusers keeps on one device is called as a whole, which is what FSDP asks of a unit.
    model, optimizer = prepare(accelerator, student, optimizer, units=autoencoder._no_split_modules or ())
    ema = EMAModel(autoencoder.parameters(), decay=arguments.ema_decay, foreach=True)
    if is_sharded(autoencoder):
        start_optimizer_state(optimizer)
    identity = {
        "data": dataset.fingerprint,
        "ssl": arguments.ssl,
        "losses": reconstruction_loss.description,
        **method.identity,
        **student.shaping.identity,
    }
    adversary = build_adversary(arguments, accelerator)
    state = method.state()
    if adversary is not None:
        identity["discriminator"] = arguments.discriminator
        state = [*state, adversary.loss, adversary.average]
    if isinstance(dataset, StreamedImages):
        dataset.register_for_checkpointing(accelerator)
    run = begin_run("train_tcae", arguments, folder, accelerator, autoencoder, [ema], state, identity)
    side = Side(autoencoder, model, optimizer, [ema])
    return TokenizerTraining(
        run, arguments, autoencoder, student, method, side, ema, reconstruction_loss, adversary, dataset, preview
    )


def parameter_groups(student: TokenizerStudent, arguments: TokenizerArguments) -> list[dict[str, Any]]:
    """Encoder and method follow the weight decay schedule, the decoder keeps its start; vectors have none."""
    adapter = adapt(student.autoencoder)
    groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in ("scheduled", "constant", "none")}
    for name, parameter in student.named_parameters():
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


@dataclass
class StudentPass(Pass):
    """One forward pass of the student: what it returned, and the views that it saw beside the images."""

    output: StudentOutput
    views: Any


def forward_student(
    training: TokenizerTraining, batch: dict[str, torch.Tensor], step: int, micro_step: int
) -> StudentPass:
    """The student's one forward pass."""
    images = to_signed(batch["pixel_values"], training.run.accelerator.device)
    seed, first_slot = training.arguments.seed, training.run.first_slot(micro_step)
    views = training.method.prepare(batch, slot_generators(seed, step, first_slot, len(images)), images.device)
    # Generators of their own: what a method draws must not change how latents are sampled.
    generators = slot_generators(seed, step, first_slot, len(images))
    output = training.side.model(images, views, generators, step)
    return StudentPass(output.shaped.target, output.reconstruction, generators, output, views)


def passes_without_graph(
    training: TokenizerTraining, batches: list[dict[str, torch.Tensor]], step: int
) -> Iterator[Pass]:
    """What [`forward_student`] will reconstruct of each batch, without the views of the method."""
    accelerator = training.run.accelerator
    for micro_step, batch in enumerate(batches):
        images = to_signed(batch["pixel_values"], accelerator.device)
        first_slot = training.run.first_slot(micro_step)
        generators = slot_generators(training.arguments.seed, step, first_slot, len(images))
        with torch.no_grad(), accelerator.autocast():
            sample, target = training.student.reconstruct(images, generators, step)
        yield Pass(target, sample.float(), generators)


def compute_loss(
    training: TokenizerTraining, seen: StudentPass, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one forward pass, and its terms for the log."""
    arguments, output = training.arguments, seen.output
    reconstruction = training.reconstruction_loss(seen.sample, seen.images)
    loss = reconstruction.loss
    metrics = {"train/loss_rec": reconstruction.loss}
    metrics |= {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
    if training.adversary is not None:
        adversarial, logged = training.adversary.generator_loss(seen, reconstruction.loss, step)
        loss, metrics = loss + adversarial, metrics | logged
    loss = arguments.reconstruction_weight * loss
    if output.kl is not None:
        loss = loss + arguments.kl_weight * output.kl
        metrics["train/loss_kl"] = output.kl
    # The frozen networks of a method run in the precision of the student.
    with training.run.accelerator.autocast():
        ssl, logged = training.method.loss(output, seen.views, step, is_log_step(step, arguments))
    loss, metrics = loss + arguments.ssl_weight * ssl, metrics | logged | output.shaped.logged
    if is_log_step(step, arguments):
        channels = output.latent.detach().float().transpose(0, 1).flatten(1).std(dim=1)
        metrics |= {"latent/channel_std": channels.mean(), "latent/min_channel_std": channels.min()}
    return loss, {"train/loss": loss, **metrics}


def run(arguments: TokenizerArguments) -> None:
    """The command, once its options have been read."""
    launch(arguments, start)
