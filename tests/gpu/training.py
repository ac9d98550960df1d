"""The training commands as the tests of this folder run them: tiny, in bf16, every loss on."""

from pathlib import Path

import pytest

from tcae_diffusers.evaluation.report.training_curves import read_scalars

from .. import latent_commands, tokenizer_commands

STEPS = {
    "max_train_steps": 4,
    "checkpointing_steps": 100,
    "mixed_precision": "bf16",
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}


def train_ibot(folder: Path, **options) -> None:
    tokenizer_commands.train(folder, **{**STEPS, **options})


def train_mae(folder: Path, **options) -> None:
    tokenizer_commands.train(folder, **{**STEPS, "ssl": "mae", "ssl_drop_path": 0, **options})


def train_shaped(folder: Path, **options) -> None:
    """Every way to shape the latent."""
    pytest.importorskip("efficientnet_lite_pytorch")
    for shaping in tokenizer_commands.SHAPINGS.values():
        options = {**shaping, **options}
    tokenizer_commands.train(folder, **{**STEPS, "ssl": "none", "ssl_drop_path": 0, **options})


def finetune_decoder(folder: Path, **options) -> None:
    """Both sides play from the first step."""
    both = {"adversarial_start_step": 0, "discriminator_start_step": 0}
    tokenizer_commands.finetune(folder, **{**STEPS, **both, **options})


def train_flow_matching(folder: Path, **options) -> None:
    latent_commands.train(folder, **{**STEPS, "transformer": "tc-dit", **options})


def train_noise_prediction(folder: Path, **options) -> None:
    latent_commands.train(folder, **{**STEPS, "objective": "v_prediction", "min_snr_gamma": 5, **options})


COMMANDS = (train_ibot, train_mae, train_shaped, finetune_decoder, train_flow_matching, train_noise_prediction)


def losses(command, folder: Path, **options) -> list[float]:
    """The loss of each step."""
    command(folder, **{"report_to": "tensorboard", "log_steps": 1, **options})
    return read_scalars(folder)["train/loss"][1]
