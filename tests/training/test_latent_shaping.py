"""Shaping of the latent in `train_tcae`: any autoencoder, exact resumption, adaptive weights of what was decoded."""

import json

import pytest
import torch
from accelerate import Accelerator, DistributedType
from transformers import Dinov2Config, Dinov2Model

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.report.training_curves import read_scalars
from tcae_diffusers.objectives.latent_shaping import Shaped
from tcae_diffusers.training import train_tcae

from ..latent_commands import assert_same_training_state
from ..tokenizer_commands import SHAPINGS, checkpoint, each_shaping, train, train_interrupted, uninterrupted
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
@each_shaping
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
    # The same images in every step: what differs is what was done to their latents. An alignment leaves them alone.
    assert len(set(losses)) > 1 or name == "alignment"
    description = run.student.shaping.description
    assert description and run.describe()["losses"].endswith(f", latent with {description}")
    assert run.run.checkpoints.identity["latent shaping"] == description


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@each_shaping
def test_a_run_resumes_as_if_nothing_had_happened(tmp_path, autoencoder, name):
    options = {**options_of(autoencoder, tmp_path), **SHAPINGS[name], "max_train_steps": 4, "checkpointing_steps": 2}
    whole = train(tmp_path / "whole", **options)
    run = train_interrupted(tmp_path / "run", **options)
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


@each_shaping
def test_the_adaptive_weight_of_accumulated_batches_is_that_of_one(tmp_path, name):
    # Steps so small that the weights stay where they are; what differs is the adaptive weight alone.
    options = {**ADVERSARY, **SHAPINGS[name], "ssl_drop_path": 0, "learning_rate": 1e-9, "final_learning_rate": 1e-9}
    options |= {"adversarial_start_step": 0, "log_steps": 1, "report_to": "tensorboard", "max_train_steps": 3}
    options |= {"ssl": "none", "discriminator_layers": 1, "discriminator_learning_rate": 1e-9}
    weights = ["train/adaptive_weight", *(["train/alignment_weight"] if name == "alignment" else [])]
    found = []
    for folder, accumulated in (("one", 1), ("four", 4)):
        divided = {"train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
        curves = read_scalars(train(tmp_path / folder, **options, **divided))
        found.append([curves[weight][1] for weight in weights])
    for one, four in zip(*found, strict=True):
        assert one == pytest.approx(four, rel=1e-3) and len(set(one)) == 3


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


def aligned(started, **options):
    pytest.importorskip("efficientnet_lite_pytorch")
    return started(**{"ssl": "none", "ssl_drop_path": 0, **SHAPINGS["alignment"], **options})


def gradients_of(run):
    run.side.model.zero_grad()
    loss, _ = losses_of(run, first_batch(run))
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in run.student.named_parameters()}


def test_the_network_of_an_alignment_is_no_part_of_model_or_checkpoint_and_has_a_token_for_each_position(started):
    run = aligned(started)
    (alignment,) = run.student.shaping.shapings
    names = [name for name in run.student.state_dict() if name.startswith("shaping")]
    assert names == ["shaping.registered.0.projection.weight"]
    # 16 pixels in latents of 2x2 positions.
    assert alignment.frozen_network(torch.zeros(1, 3, 16, 16)).shape == (1, 320, 2, 2)
    run.student.to(torch.float64)
    assert {parameter.dtype for parameter in alignment.frozen_network.parameters()} == {torch.float64}


def test_an_alignment_has_the_share_of_the_gradient_at_the_latent_that_its_weight_says(started):
    run = aligned(started, latent_alignment_weight=0.25, reconstruction_weight=3.0)
    seen = run.forward(first_batch(run), 0, 0)
    seen.output.latent.retain_grad()
    loss, metrics = run.compute_loss(seen, 0)
    aligned_loss = metrics["train/loss_alignment_cosine"] + metrics["train/loss_alignment_distance"]
    norms = []
    for term in (metrics["train/loss_rec"], aligned_loss):
        (gradient,) = torch.autograd.grad(term, seen.output.latent, retain_graph=True)
        norms.append(gradient.norm())
    torch.testing.assert_close(metrics["train/alignment_weight"], norms[0] / norms[1], rtol=1e-3, atol=0)
    expected = metrics["train/loss_rec"] + 0.25 * metrics["train/alignment_weight"] * aligned_loss
    torch.testing.assert_close(loss, 3.0 * expected)


def test_an_alignment_trains_with_recomputed_activations(started):
    plain, checkpointed = aligned(started), aligned(started, gradient_checkpointing=True)
    checkpointed.student.load_state_dict(plain.student.state_dict())
    ours, theirs = gradients_of(checkpointed), gradients_of(plain)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def test_an_alignment_trains_with_compiled_blocks(started, monkeypatch):
    torch.compiler.reset()
    compile_module = torch.nn.Module.compile
    # As inductor does, it frees what a backward pass needs, unless it is told that there will be another.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    # By torch's own patch: pytest's would delete the setting for all tests that follow.
    with torch._functorch.config.patch(donated_buffer=True):
        plain, compiled = aligned(started), aligned(started, compile=True)
        compiled.student.load_state_dict(plain.student.state_dict())
        compiled.student.train(), plain.student.train()
        for name, gradient in gradients_of(compiled).items():
            torch.testing.assert_close(gradient, gradients_of(plain)[name], rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_an_alignment_to_a_dinov2_has_a_token_for_each_position(started, tmp_path):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    run = started(
        ssl="none", ssl_drop_path=0, latent_alignment="dinov2", latent_alignment_weights_path=tmp_path / "dinov2"
    )
    (alignment,) = run.student.shaping.shapings
    assert alignment.frozen_network(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 2, 2)
    assert "alignment to dinov2-vit" in run.describe()["losses"]
    assert all(gradient.isfinite().all() for gradient in gradients_of(run).values())


def test_an_alignment_of_sharded_parameters_is_refused(started, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(train_tcae, "check_sharding", lambda accelerator, recomputing: None)
    with pytest.raises(InputError, match=r"--latent_alignment weighs gradients.*ddp.yaml"):
        started(latent_alignment="efficientnet-lite0")
