"""Runs the tokenizer training commands in this process on a tiny model and a handful of images."""

import functools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.trainer.progress import TrainingProgress
from tcae_diffusers.training import finetune_decoder, train_tcae

from .latent_commands import home, run

TINY = {
    "sample_size": 16,
    "spatial_compression_ratio": 8,
    "patch_size": 2,
    "latent_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "encoder_num_layers": [1, 1],
}
# Everything that has state or randomness of its own is on.
OPTIONS = {
    "autoencoder": "tc-ae-xs-f8c32",
    "autoencoder_overrides": json.dumps(TINY),
    "max_train_steps": 6,
    "train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_warmup_fraction": 0,
    "final_learning_rate": 1e-3,
    "ema_decay": 0.5,
    "mse_weight": 1.0,
    "ssl_out_dim": 16,
    "ssl_hidden_dim": 16,
    "ssl_bottleneck_dim": 8,
    "ssl_num_local_crops": 1,
    "ssl_teacher_momentum": 0.5,
    "ssl_drop_path": 0.2,
    "checkpointing_steps": 3,
    "log_steps": 2,
    "report_to": "none",
}

# Adam divides by the square root of tiny squares, which turns rounding into steps of full size; a large epsilon
# keeps what is compared a smooth function of the gradients.
SMOOTH = {"adam_epsilon": 1e-3}

# Ways to shape the latent, each alone: what is drawn differs between the steps and images of a short run.
SHAPINGS = {
    "equivariance": {"latent_equivariance": 0.7, "latent_equivariance_min_scale": 0.5},
    "denoising": {"latent_denoising": 3.0},
    "channel mask": {"latent_min_channels": 1},
    "alignment": {"latent_alignment": "efficientnet-lite0", "latent_alignment_weight": 1.0},
}
# Their names, for tests of each.
each_shaping = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                "latent_alignment" in options and find_spec("efficientnet_lite_pytorch") is None,
                reason="needs the extra demo",
            ),
        )
        for name, options in SHAPINGS.items()
    ],
)


# Muon trains matrices of 64x64 and more.
MUON = {"optimizer": "muon", "autoencoder_overrides": json.dumps({**TINY, "hidden_size": 64})}


def with_effect(defaults, options) -> dict:
    """Those of `defaults` that are not refused where `options` leave off what they belong to."""
    chosen = {"ssl": "ibot", "discriminator": "patchgan", **defaults, **options}
    off = ["ssl_"] if chosen["ssl"] in ("none", "mae") else []
    off += ["discriminator_", "adversarial_"] if chosen["discriminator"] == "none" else []
    off += ["discriminator_layers", "discriminator_channels"] if chosen["discriminator"] != "patchgan" else []
    off += ["discriminator_r1_interval"] if not chosen.get("discriminator_r1_weight") else []
    return {name: value for name, value in defaults.items() if not name.startswith(tuple(off) or ("-",))}


def train(output, data=None, **options) -> Path:
    """`train_tcae` with `OPTIONS` on the 22 images of [`home`]; an option of `None` is left out."""
    options = {**with_effect(OPTIONS, options), "train_data": home() / "images" if data is None else data, **options}
    options = {name: value for name, value in options.items() if value is not None}
    run(train_tcae.main, **options, output_dir=output)
    return Path(output)


def lose_the_end(folder) -> None:
    """Move the last checkpoint of a finished run, and all that was saved after it, out of its folder."""
    *others, last = sorted((folder / "checkpoints").iterdir())
    assert others
    lost = folder.with_name(f"{folder.name}-lost")
    lost.mkdir()
    for part in (last, folder / "model", folder / "discriminator"):
        if part.exists():
            part.rename(lost / part.name)


def train_interrupted(output, **options) -> Path:
    """A run like that of [`train`] that was resumed from the checkpoint before the last."""
    folder = train(output, **{**options, "checkpoints_total_limit": 9})
    lose_the_end(folder)
    return train(folder, **options, resume="latest")


@functools.cache
def uninterrupted() -> Path:
    """The run with which interrupted, killed and divided ones are compared."""
    return train(home() / "runs" / "uninterrupted")


DECODER_OPTIONS = {
    "max_train_steps": 6,
    "train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_warmup_fraction": 0,
    "ema_decay": 0.5,
    "perceptual": "none",
    "latent_noise": 0.5,
    "discriminator_layers": 2,
    "discriminator_channels": 8,
    "discriminator_learning_rate": 1e-2,
    "discriminator_ema_decay": 0.5,
    "discriminator_start_step": 1,
    "adversarial_start_step": 2,
    "discriminator_diff_augment": ["color", "translation"],
    "discriminator_r1_weight": 0.1,
    "discriminator_r1_interval": 2,
    "discriminator_lecam_weight": 0.01,
    "checkpointing_steps": 3,
    "log_steps": 2,
    "report_to": "none",
}


@functools.cache
def trained_tokenizer() -> Path:
    """A tiny tokenizer with latent statistics of its own."""
    torch.manual_seed(1)
    model = AutoencoderTC(**TINY)
    model.set_latent_statistics(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    model.save_pretrained(home() / "trained-tokenizer")
    return home() / "trained-tokenizer"


# A decoder of another shape, from scratch.
NEW_DECODER = {"new_decoder": json.dumps({"decoder_hidden_size": 16, "decoder_num_layers": [1, 0]})}


def finetune(output, **options) -> Path:
    """`finetune_decoder` with `DECODER_OPTIONS`."""
    defaults = {"autoencoder": trained_tokenizer(), "train_data": home() / "images", **DECODER_OPTIONS}
    options = {**with_effect(defaults, options), **options}
    run(finetune_decoder.main, **{name: value for name, value in options.items() if value != []}, output_dir=output)
    return Path(output)


@functools.cache
def uninterrupted_finetuning() -> Path:
    return finetune(home() / "runs" / "uninterrupted-decoder")


def checkpoint(folder, step=6) -> Path:
    return Path(folder) / "checkpoints" / f"step-{step:08d}"


def save_state_of_each_step(script, state, beginning) -> None:
    """From now on, and for good, `script` writes `state(training)` to `<beginning>-step-<steps done>.pt`."""
    start, log, started = script.start, TrainingProgress.step, []

    def remember(arguments):
        started.append(start(arguments))
        return started[-1]

    def save(self, step, values):
        torch.save(state(started[-1]), f"{beginning}-step-{step}.pt")
        return log(self, step, values)

    script.start, TrainingProgress.step = remember, save


def assert_close_state(first, second, step=6):
    """Weights, teacher, centres and average agree within the rounding of another order of summation."""
    first, second = checkpoint(first, step), checkpoint(second, step)
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for index in (2, 3):
        name = f"custom_checkpoint_{index}.pkl"
        ours |= torch.load(first / name, weights_only=True)
        theirs |= torch.load(second / name, weights_only=True)
    for index, (mine, other) in enumerate(
        zip(
            *(
                torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)["shadow_params"]
                for folder in (first, second)
            ),
            strict=True,
        )
    ):
        ours[f"ema {index}"], theirs[f"ema {index}"] = mine, other
    for key, value in ours.items():
        torch.testing.assert_close(
            value, theirs[key], rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
