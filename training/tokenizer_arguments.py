"""Options of train_tcae."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tcae_diffusers.arguments import option
from tcae_diffusers.errors import InputError
from tcae_diffusers.self_supervision.arguments import SelfSupervisionArguments
from tcae_diffusers.trainer.latent_shaping_arguments import LatentShapingArguments
from tcae_diffusers.trainer.tokenizer_arguments import AdversarialArguments, DiscriminatorName


@dataclass
class WeightDecayArguments(AdversarialArguments):
    """The increasing weight decay of self-distillation."""

    group: ClassVar[str] = "Optimiser"

    weight_decay: float = option(
        0.04,
        "Weight decay of encoder and self-supervised head at the first step, and of the decoder throughout.",
        at_least=0,
    )
    final_weight_decay: float = option(
        0.4,
        "Weight decay of encoder and self-supervised head at the last step, reached by a cosine schedule.",
        at_least=0,
    )


@dataclass
class TokenizerArguments(WeightDecayArguments, LatentShapingArguments, SelfSupervisionArguments):
    """Train a TC-AE tokenizer jointly with self-supervision, or another autoencoder without."""

    group: ClassVar[str] = "Tokenizer"

    autoencoder: str = option(
        "tc-ae-f32c128",
        "Autoencoder to train: the name of a preset, a config.json of any diffusers autoencoder, or a folder with "
        "one, whose weights, if any, are the starting point.",
    )
    autoencoder_overrides: dict = option(
        {},
        'Values that override entries of the autoencoder\'s config, as JSON: {"patch_size": 4}. A smaller patch_size'
        " than that of an AutoencoderTC with weights divides its patches.",
    )
    trained_layers: Literal["all", "latent"] = option(
        "all",
        "Layers to train: all of them, or those on both sides of the latent alone, which adapts a trained"
        " --autoencoder to larger images (DC-AE).",
    )
    reconstruction_weight: float = option(
        1.0, "Weight of the whole reconstruction loss, alpha of the paper.", at_least=0
    )
    kl_weight: float = option(
        1e-6, "Weight of the KL divergence, for autoencoders that sample their latent (AutoencoderKL).", at_least=0
    )

    discriminator: DiscriminatorName = option(
        "none",
        "Discriminator for an adversarial term in joint training: a PatchGAN, or heads on the frozen features of a"
        " network; none trains without adversarial loss.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_layers != "all" and self.ssl != "none":
            raise InputError(
                f"--trained_layers {self.trained_layers} trains without self-supervision; add --ssl none."
            )
        if self.ssl_drop_path and self.gradient_checkpointing:
            raise InputError("--ssl_drop_path and --gradient_checkpointing cannot be combined; choose one.")
