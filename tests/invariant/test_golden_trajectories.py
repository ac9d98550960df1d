"""
Twenty steps of each training command give the losses, gradient norms, learning rates and weights that they gave
before. A change that is meant to alter what is learned writes the file anew, and its commit shows the difference:

    WRITE_GOLDEN_TRAJECTORIES=1 .venv/bin/python -m pytest tests/invariant/test_golden_trajectories.py
"""

import json
import os
import statistics
from pathlib import Path

import pytest
import torch

from tcae_diffusers.evaluation.report.training_curves import read_scalars

from .. import latent_commands, tokenizer_commands
from ..latent_commands import weights

GOLDEN = Path(__file__).with_name("golden_trajectories.json")

# Of the largest relative difference. Other instruction sets, thread counts and matrix libraries moved values by up to
# 2e-4. Defects that were put into the commands, one at a time, moved these, and mostly others, by:
#   weight decay stays at its start: grad_norm 1e-1     | learning rate of the next step: learning_rate 3e-1
#   teacher momentum of the next step: loss_mim 2       | every micro-batch drops the same layers: loss_mim 3e-1
#   LeCam is left out: grad_norm_discriminator 2e-1     | first micro-batch has a balance of its own: its weight 5e-1
#   labels are never dropped: grad_norm 8e-1            | average misses the last step: averaged_weights_behind 4e-3
TOLERANCE = 1e-3

# The learning rate stays high to the end, so that averaged weights trail behind. A large epsilon keeps Adam's steps a
# smooth function of the gradients, so that rounding stays rounding.
RUN = {
    "max_train_steps": 20,
    "lr_warmup_fraction": 0.2,
    "final_learning_rate": 5e-3,
    "adam_epsilon": 1e-3,
    "checkpointing_steps": 20,
    "log_steps": 1,
    "report_to": "tensorboard",
}
HALVES = {"train_batch_size": 2, "gradient_accumulation_steps": 2}


def train_tcae(folder, **options):
    """iBOT with local crops and masked patches; returns the averaged weights."""
    return weights(tokenizer_commands.train(folder, **{**RUN, **HALVES, **options}) / "model")


def finetune_decoder(folder, **options):
    """PatchGAN with the adaptive weight, R1, LeCam and DiffAugment."""
    # The sign of an L1 gradient turns with the last bit where a pixel is matched.
    smooth = {"pixel_loss": "charbonnier"}
    slow = {"learning_rate": 3e-3, "final_learning_rate": 1e-3, "discriminator_learning_rate": 3e-4}
    tokenizer_commands.finetune(folder, **{**RUN, **HALVES, **smooth, **slow, **options})
    return {
        f"{part}/{name}": value
        for part in ("model", "discriminator")
        for name, value in weights(folder / part).items()
    }


def train_dit(folder, **options):
    """Flow matching with dropped labels."""
    folder = latent_commands.train(folder, **{**RUN, "label_dropout": 0.3, **options})
    return weights(folder / "pipeline" / "transformer")


COMMANDS = {
    train_tcae: ("loss", "loss_rec", "loss_cls", "loss_mim", "grad_norm", "learning_rate"),
    finetune_decoder: (
        "loss",
        "loss_gan",
        "adaptive_weight",
        "loss_discriminator",
        "grad_norm",
        "grad_norm_discriminator",
        "learning_rate",
    ),
    train_dit: ("loss", "grad_norm", "learning_rate"),
}
WITHOUT_AVERAGING = {
    train_tcae: {"ema_decay": 0},
    finetune_decoder: {"ema_decay": 0, "discriminator_ema_decay": 0},
    train_dit: {"ema_decay": 0},
}


def trajectory(command, folder, **options) -> dict[str, list[float]]:
    """What the command logs at each step, the norm of the last weights, and how far their average is behind."""
    averaged = command(folder / "averaged", **options)
    last = command(folder / "last", **{**options, **WITHOUT_AVERAGING[command]})
    curves = read_scalars(folder / "averaged")
    return {
        **{name: curves[f"train/{name}"][1] for name in COMMANDS[command]},
        "weights": [norm(last)],
        "averaged_weights_behind": [norm({name: value - last[name] for name, value in averaged.items()})],
    }


def norm(tensors) -> float:
    return torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt().item()


def deviations(found, expected) -> dict[str, float]:
    """Per quantity, the largest relative difference of a step; near zero, where a GAN's losses pass, of the median."""
    assert {name: len(values) for name, values in found.items()} == {n: len(v) for n, v in expected.items()}
    return {
        name: max(
            abs(value - golden) / max(abs(golden), statistics.median(map(abs, expected[name])))
            for value, golden in zip(found[name], expected[name], strict=True)
        )
        for name in expected
    }


def write(command, curves) -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    golden[command] = {name: [float(f"{value:.7g}") for value in values] for name, values in curves.items()}
    commands = [
        f' "{command}": {{\n' + ",\n".join(f'  "{name}": {values}' for name, values in curves.items()) + "\n }"
        for command, curves in sorted(golden.items())
    ]
    GOLDEN.write_text("{\n" + ",\n".join(commands) + "\n}\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_twenty_steps_are_as_before(command, tmp_path):
    found = trajectory(command, tmp_path)
    if os.environ.get("WRITE_GOLDEN_TRAJECTORIES"):
        write(command.__name__, found)
    deviating = deviations(found, json.loads(GOLDEN.read_text())[command.__name__])
    too_far = [f"{name} by {value:.1e}" for name, value in deviating.items() if value > TOLERANCE]
    assert not too_far, too_far


@pytest.mark.parametrize(
    "command, wrong, shows_in",
    [
        (train_tcae, {"final_weight_decay": 0.2}, "weights"),
        (finetune_decoder, {"discriminator_lecam_weight": 0}, "loss_discriminator"),
        (train_dit, {"label_dropout": 0.2}, "loss"),
        (train_dit, {"ema_decay": 0.49}, "averaged_weights_behind"),
        (train_dit, {"learning_rate": 1.01e-2}, "learning_rate"),
    ],
)
def test_a_small_error_exceeds_the_tolerance(command, wrong, shows_in, tmp_path):
    found = trajectory(command, tmp_path, **wrong)
    assert deviations(found, json.loads(GOLDEN.read_text())[command.__name__])[shows_in] > 3 * TOLERANCE
