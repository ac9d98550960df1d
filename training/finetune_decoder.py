"""
Fine-tune the decoder of a trained tokenizer with L1, a perceptual and an adversarial term; the encoder stays as it is
(arXiv 2604.07340, section 3: phase 2).

    accelerate launch training/finetune_decoder.py --autoencoder runs/tokenizer/model --output_dir runs/decoder

With `--new_decoder` a decoder of another shape is trained from scratch behind the same encoder.

The result is in OUTPUT_DIR/model. Cached latents and diffusion models of the tokenizer stay valid: encoder and
latent statistics are proved bit-identical before it is written. Any autoencoder of diffusers works.
"""

from __future__ import annotations

from tcae_diffusers.training.commands import finetune_decoder as main

if __name__ == "__main__":
    # Before the imports that take seconds. The work is done by this module under its own name.
    main()
    raise SystemExit

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.data.latents.calibration import warn_of_noise_without_unit
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer, frozen_fingerprint
from tcae_diffusers.objectives.reconstruction import ReconstructionLoss
from tcae_diffusers.trainer.adversary import Adversary, Pass, build_adversary
from tcae_diffusers.trainer.averages import trained_parameters
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, resolve_sizes, with_new_decoder
from tcae_diffusers.trainer.compilation import compile_blocks
from tcae_diffusers.trainer.fit import Hooks, Side, fit
from tcae_diffusers.trainer.image_batches import build_training_images, image_loader
from tcae_diffusers.trainer.optimizers import build_optimizer
from tcae_diffusers.trainer.reconstruction_preview import ReconstructionPreview, build_preview
from tcae_diffusers.trainer.reconstruction_terms import build_reconstruction_loss
from tcae_diffusers.trainer.run import Run, begin_run, launch, prepare_run_folder, save_model, start_accelerator
from tcae_diffusers.trainer.sharding import require_whole_parameters
from tcae_diffusers.training.decoder_arguments import DecoderArguments


@dataclass
class DecoderTraining:
    """
    Everything that is trained and measured; `adversary` is `None` without one, `preview` without held-out images.

    Args:
        side: The decoder.
        encoder_sha256: Of everything but the decoder, as it was given.
    """

    run: Run
    arguments: DecoderArguments
    autoencoder: ModelMixin
    side: Side
    ema: EMAModel
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    dataset: TokenizerTrainingDataset | StreamedImages
    preview: ReconstructionPreview | None
    encoder_sha256: str

    def describe(self) -> dict[str, Any]:
        """The run in words; one without a perceptual or adversarial loss says so."""
        arguments, adversary = self.arguments, self.adversary
        adversarial = f" + {adversary.describe(arguments)}" if adversary else ", without an adversarial loss"
        parameters = sum(parameter.numel() for parameter in trained_parameters(self.autoencoder))
        macs = autoencoder_cost(self.autoencoder, arguments.resolution, arguments.resolution).decode_macs
        data = f"{arguments.train_data}: {self.dataset.description}"
        return {
            "losses": self.reconstruction_loss.description + adversarial,
            "autoencoder": type(self.autoencoder).__name__,
            "parameters": parameters,
            "decoder_macs": macs,
            "encoder_sha256": self.encoder_sha256,
            "data": data,
            "total_batch": self.run.total_batch,
            "summary": f"{parameters / 1e6:.2f} M parameters of the decoder, {macs / 1e9:.3g} GMAC; {data}",
        }

    @property
    def sides(self) -> list[Side]:
        return [self.side] if self.adversary is None else [self.side, self.adversary.side]

    def train(self) -> None:
        self.side.model.train()
        batches = image_loader(self.dataset, self.arguments, self.run.accelerator, self.run.first_step)
        fit(self.run, batches, self.sides, self.schedule, self.backward, self.hooks())

    def schedule(self, step: int) -> None:
        """Learning rates are functions of the step alone."""
        for group in self.side.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(step)
        if self.adversary is not None:
            self.adversary.schedule(step, self.arguments)

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        """The passes of one batch, under one adaptive weight for all batches of the step."""
        if self.adversary is not None and micro_step == 0:
            passes = passes_without_graph(self, batches, step)
            self.adversary.begin_step(passes, len(batches), self.reconstruction_loss, step)
        return forward_backward(self, batches[micro_step], step, micro_step)

    def hooks(self) -> Hooks:
        due = []
        if self.preview is not None:
            due.append((self.arguments.heldout_steps, self.look_at_heldout_images))
        return Hooks(
            finish=self.save, after_step=None if self.adversary is None else self.adversary.after_step, due=due
        )

    def look_at_heldout_images(self, step: int) -> None:
        self.preview.log(self.run.accelerator, self.autoencoder, self.ema, step)

    def save(self) -> str:
        """
        Write the averaged decoder with the encoder that was given.

        Raises:
            RuntimeError: the encoder changed, which is a defect of this script; nothing is written.
        """
        folder = self.run.folder
        if self.run.accelerator.is_main_process:
            self.ema.copy_to(trained_parameters(self.autoencoder))
            if frozen_fingerprint(self.autoencoder) != self.encoder_sha256:
                raise RuntimeError("the encoder changed during decoder fine-tuning; please report this as a bug.")
            save_model(self.autoencoder, folder / "model")
            if self.adversary is not None:
                self.adversary.average.copy_to(self.adversary.discriminator.parameters())
                save_model(self.adversary.discriminator, folder / "discriminator")
        return f"the tokenizer is in {folder / 'model'}, its encoder bit-identical to the one given"


def start(arguments: DecoderArguments) -> DecoderTraining:
    """Build everything and load the checkpoint to resume from; raises for anything wrong with the arguments."""
    folder = prepare_run_folder(arguments)
    accelerator = start_accelerator(arguments, folder)
    require_whole_parameters(accelerator)
    if not Path(arguments.autoencoder).is_dir():
        raise FileNotFoundError(
            f"--autoencoder {arguments.autoencoder} is not a folder; pass the folder of a trained autoencoder."
        )
    autoencoder = build_autoencoder(arguments.autoencoder)
    resolve_sizes(arguments, autoencoder)
    encoder_sha256 = frozen_fingerprint(autoencoder)
    if arguments.new_decoder:
        autoencoder = with_new_decoder(autoencoder, arguments.new_decoder)
    tokenizer = FrozenEncoderTokenizer(autoencoder, arguments.latent_noise)
    warn_of_noise_without_unit(autoencoder, arguments.latent_noise)
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
    groups = [{"params": trained_parameters(autoencoder), "weight_decay": arguments.weight_decay}]
    optimizer = build_optimizer(arguments, groups, autoencoder, adapt(autoencoder).pixel_layers)
    model, optimizer = accelerator.prepare(tokenizer, optimizer)
    side = Side(autoencoder, model, optimizer, [ema])
    adversary = build_adversary(arguments, accelerator)
    identity = {
        "data": dataset.fingerprint,
        "encoder": encoder_sha256,
        "losses": reconstruction_loss.description,
        "discriminator": arguments.discriminator if adversary else "none",
    }
    state = [] if adversary is None else [adversary.loss, adversary.average]
    if isinstance(dataset, StreamedImages):
        dataset.register_for_checkpointing(accelerator)
    run = begin_run("finetune_decoder", arguments, folder, accelerator, autoencoder, [ema], state, identity)
    return DecoderTraining(
        run,
        arguments,
        autoencoder,
        side,
        ema,
        reconstruction_loss,
        adversary,
        dataset,
        preview,
        encoder_sha256,
    )


def reconstruct(training: DecoderTraining, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> Pass:
    """A forward pass; its generators have drawn the latent noise."""
    images = to_signed(batch["pixel_values"], training.run.accelerator.device)
    first_slot = training.run.first_slot(micro_step)
    generators = slot_generators(training.arguments.seed, step, first_slot, len(images))
    return Pass(images, training.side.model(images, generators), generators)


def passes_without_graph(
    training: DecoderTraining, batches: list[dict[str, torch.Tensor]], step: int
) -> Iterator[Pass]:
    for micro_step, batch in enumerate(batches):
        with torch.no_grad():
            found = reconstruct(training, batch, step, micro_step)
        yield found


def forward_backward(
    training: DecoderTraining, batch: dict[str, torch.Tensor], step: int, micro_step: int
) -> dict[str, torch.Tensor]:
    """Gradients of the decoder, then of the discriminator, for one forward pass; the loss terms for the log."""
    adversary = training.adversary
    seen = reconstruct(training, batch, step, micro_step)
    reconstruction = training.reconstruction_loss(seen.sample, seen.images)
    loss = reconstruction.loss
    metrics = {f"train/loss_{name}": value for name, value in reconstruction.terms.items()}
    if adversary is not None:
        adversarial, logged = adversary.generator_loss(seen, reconstruction.loss, step)
        loss, metrics = loss + adversarial, metrics | logged
    training.run.accelerator.backward(loss)
    metrics = {"train/loss": loss, **metrics}
    return metrics if adversary is None else metrics | adversary.backward(seen, step)


def run(arguments: DecoderArguments) -> None:
    """The command, once its options have been read."""
    launch(arguments, start)
