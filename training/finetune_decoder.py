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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.latents.calibration import warn_of_noise_without_unit
from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer, frozen_fingerprint
from tcae_diffusers.trainer.adversary import Pass, build_adversary
from tcae_diffusers.trainer.averages import WeightAverage, trained_parameters
from tcae_diffusers.trainer.build_autoencoder import (
    build_autoencoder,
    require_weights,
    resolve_sizes,
    with_new_decoder,
)
from tcae_diffusers.trainer.compilation import compile_blocks
from tcae_diffusers.trainer.fit import Side
from tcae_diffusers.trainer.image_batches import build_training_images
from tcae_diffusers.trainer.optimizers import build_optimizer
from tcae_diffusers.trainer.reconstruction_preview import build_preview
from tcae_diffusers.trainer.reconstruction_terms import build_reconstruction_loss
from tcae_diffusers.trainer.reconstruction_training import ReconstructionTraining, begin_reconstruction_run
from tcae_diffusers.trainer.run import launch, save_model, start_accelerator
from tcae_diffusers.trainer.sharding import require_whole_parameters
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.heldout_latents import draw_heldout_latents


@dataclass
class DecoderTraining(ReconstructionTraining[Pass]):
    """
    A decoder behind the encoder that it was given.

    Args:
        encoder_sha256: Of everything but the decoder, as it was given.
    """

    arguments: DecoderArguments
    encoder_sha256: str

    def describe(self) -> dict[str, Any]:
        """The run in words; one without a perceptual or adversarial loss says so."""
        adversary, side = self.adversary, self.arguments.image_size
        adversarial = f" + {adversary.describe(self.arguments)}" if adversary else ", without an adversarial loss"
        losses = self.reconstruction_loss.description
        part = "decoder's head" if self.arguments.trained_layers == "head" else "decoder"
        parameters = self.autoencoder.num_parameters(only_trainable=True)
        macs = autoencoder_cost(self.autoencoder, side, side).decode_macs
        return self.describe_run(
            losses + adversarial,
            f"{parameters / 1e6:.2f} M parameters of the {part}, {macs / 1e9:.3g} GMAC",
            parameters=parameters,
            decoder_macs=macs,
            encoder_sha256=self.encoder_sha256,
        )

    def backward(self, batches: list[dict[str, torch.Tensor]], step: int, micro_step: int) -> dict[str, torch.Tensor]:
        """As ever; the first images also show whether the latent noise has a unit."""
        if step == self.run.first_step and micro_step == 0:
            images = to_signed(batches[0]["pixel_values"], self.run.accelerator.device)
            warn_of_noise_without_unit(self.autoencoder, self.arguments.latent_noise, images)
        return super().backward(batches, step, micro_step)

    def forward(self, batch: dict[str, torch.Tensor], step: int, micro_step: int) -> Pass:
        """Its generators have drawn the latent noise."""
        images = to_signed(batch["pixel_values"], self.run.accelerator.device)
        generators = self.run.generators(step, micro_step, len(images))
        return Pass(images, self.side.model(images, generators), generators)

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
                self.adversary.save(folder / "discriminator")
        return f"the tokenizer is in {folder / 'model'}, its encoder bit-identical to the one given"


def start(arguments: DecoderArguments) -> DecoderTraining:
    """Build everything and load the checkpoint to resume from; raises for anything wrong with the arguments."""
    accelerator = start_accelerator(arguments)
    require_whole_parameters(accelerator)
    if not Path(arguments.autoencoder).is_dir():
        raise FileNotFoundError(
            f"--autoencoder {arguments.autoencoder} is not a folder; pass the folder of a trained autoencoder."
        )
    autoencoder = build_autoencoder(arguments.autoencoder)
    require_weights(arguments.autoencoder, "a decoder is trained for the latents of a trained encoder")
    encoder_sha256 = frozen_fingerprint(autoencoder)
    identity = {"encoder": encoder_sha256}
    if arguments.new_decoder:
        autoencoder = with_new_decoder(autoencoder, arguments.new_decoder)
    resolve_sizes(arguments, autoencoder)
    tokenizer = FrozenEncoderTokenizer(autoencoder, arguments.latent_noise)
    if arguments.trained_layers == "head":
        adapt(autoencoder).train_only(adapt(autoencoder).decoder_head)
        identity["trained layers"] = "head"
    dataset = build_training_images(arguments, adapt(autoencoder))
    preview = build_preview(arguments, draw_heldout_latents(arguments, autoencoder, accelerator))
    reconstruction_loss = build_reconstruction_loss(arguments).to(accelerator.device)
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    if arguments.compile:
        compile_blocks(tokenizer, names=tuple(autoencoder._repeated_blocks or ()))

    ema = WeightAverage(autoencoder, arguments.ema_decay)
    ema.to(accelerator.device)
    groups = [{"params": trained_parameters(autoencoder), "weight_decay": arguments.weight_decay}]
    optimizer = build_optimizer(arguments, groups, autoencoder, adapt(autoencoder).pixel_layers)
    model, optimizer = accelerator.prepare(tokenizer, optimizer)
    side = Side(autoencoder, model, optimizer, [ema])
    adversary = build_adversary(arguments, accelerator)
    run = begin_reconstruction_run(
        "finetune_decoder", arguments, accelerator, side, reconstruction_loss, adversary, dataset, [], identity
    )
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


def run(arguments: DecoderArguments) -> None:
    """The command, once its options have been read."""
    launch(arguments, start)
