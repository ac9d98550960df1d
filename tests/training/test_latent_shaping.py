"""Shaping of the latent in `train_tcae`: any autoencoder, exact resumption, adaptive weights of what was decoded."""

import json

import pytest
import torch

from tcae_diffusers.evaluation.report.training_curves import read_scalars
from tcae_diffusers.objectives.latent_shaping import Shaped

from ..latent_commands import assert_same_training_state
from ..tokenizer_commands import SHAPINGS, checkpoint, train, uninterrupted
from .test_train_tcae import ADVERSARY, BASELINES, first_batch, losses_of, started

__all__ = ["started"]

# In the tokenizer of these tests an image of 16 pixels has a latent of 2x2 positions.
AUTOENCODERS = ("AutoencoderTC", *BASELINES)


def options_of(autoencoder, folder):
    """What trains an autoencoder of that class, without self-supervision."""
    plain = {"ssl": "none", "ssl_drop_path": 0, "resolution": 16}
    if autoencoder == "AutoencoderTC":
        return plain
    config = folder / f"{autoencoder}.json"
    config.write_text(json.dumps({"_class_name": autoencoder, **BASELINES[autoencoder]}))
    return {**plain, "autoencoder": config, "autoencoder_overrides": "{}"}


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@pytest.mark.parametrize("name", SHAPINGS)
def test_each_shaping_trains_any_autoencoder_and_is_described(started, tmp_path, autoencoder, name):
    run = started(**options_of(autoencoder, tmp_path), **SHAPINGS[name])
    losses = []
    for step in range(4):
        run.side.model.zero_grad()
        loss, _ = losses_of(run, first_batch(run), step)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in run.student.named_parameters()}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
        losses.append(loss.item())
    # The same images in every step: what differs is what was done to their latents.
    assert len(set(losses)) > 1
    description = run.student.shaping.description
    assert description and run.describe()["losses"].endswith(f", latent with {description}")
    assert run.run.checkpoints.identity["latent shaping"] == description


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@pytest.mark.parametrize("name", SHAPINGS)
def test_a_run_resumes_as_if_nothing_had_happened(tmp_path, autoencoder, name):
    options = {**options_of(autoencoder, tmp_path), **SHAPINGS[name], "max_train_steps": 4, "checkpointing_steps": 2}
    whole = train(tmp_path / "whole", **options)
    run = train(tmp_path / "run", **options, checkpoints_total_limit=9)
    for part in ("model", "checkpoints/step-00000004"):
        (run / part).rename(tmp_path / part.replace("/", "-"))
    train(run, **options, resume="latest")
    assert_same_training_state(checkpoint(run, 4), checkpoint(whole, 4))


def test_without_an_option_nothing_is_shaped_described_or_asked_of_a_checkpoint(started):
    run = started()
    batch = first_batch(run)
    _, metrics = losses_of(run, batch)
    assert not any(name.startswith("shaping/") for name in metrics)
    assert "latent with" not in run.describe()["losses"]
    assert "latent shaping" not in run.run.checkpoints.identity
    assert isinstance(run.student.shaping(Shaped(batch, batch), None, 0), Shaped)
    assert json.loads((uninterrupted() / "run.json").read_text())["losses"] == run.describe()["losses"]


@pytest.mark.parametrize("name", SHAPINGS)
def test_the_adaptive_weight_of_accumulated_batches_is_that_of_one(tmp_path, name):
    # Steps so small that the weights stay where they are; what differs is the adaptive weight alone.
    options = {**ADVERSARY, **SHAPINGS[name], "ssl_drop_path": 0, "learning_rate": 1e-9, "final_learning_rate": 1e-9}
    options |= {"adversarial_start_step": 0, "log_steps": 1, "report_to": "tensorboard", "max_train_steps": 3}
    options |= {"ssl": "none", "discriminator_layers": 1, "discriminator_learning_rate": 1e-9}
    found = []
    for folder, accumulated in (("one", 1), ("four", 4)):
        divided = {"train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
        curves = read_scalars(train(tmp_path / folder, **options, **divided))
        found.append(curves["train/adaptive_weight"][1])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(set(found[0])) == 3


def test_the_discriminator_sees_what_was_to_be_reconstructed(started):
    run = started(**ADVERSARY, latent_equivariance=1.0, latent_equivariance_min_scale=1.0)
    run.adversary.begin_step([], 1, run.reconstruction_loss, 2)
    seen = {}
    discriminator_loss = run.adversary.loss.discriminator_loss

    def remember(model, target, sample, *arguments):
        seen["target"] = target
        return discriminator_loss(model, target, sample, *arguments)

    run.adversary.loss.discriminator_loss = remember
    batch = first_batch(run)
    run.backward([batch], 2, 0)
    images = batch["pixel_values"].float() / 127.5 - 1
    turned = [
        any(torch.allclose(target, torch.rot90(image, count, (1, 2)), atol=1e-6) for count in (1, 2, 3))
        for target, image in zip(seen["target"], images, strict=True)
    ]
    assert all(turned)
