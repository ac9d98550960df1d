"""Decoder fine-tuning that was stopped, killed or divided equals the plain run, through `finetune_decoder`."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder
from tcae_diffusers.training import finetune_decoder
from tcae_diffusers.training.decoder_arguments import DecoderArguments
from tcae_diffusers.training.heldout_latents import draw_heldout_latents

from ..latent_commands import (
    assert_same_training_state,
    calibrated,
    fork_ranks,
    home,
    reset_accelerate,
    signalling,
    weights,
)
from ..latent_commands import train as train_dit
from ..tokenizer_commands import NEW_DECODER, checkpoint, finetune, save_state_of_each_step, uninterrupted_finetuning
from ..tokenizer_kills import LONG, kill_and_resume

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process


# Muon trains matrices of 64x64 and more.
BY_MUON = {"optimizer": "muon", "new_decoder": '{"decoder_hidden_size": 64}'}
new_decoders = pytest.mark.parametrize("decoder", [NEW_DECODER, BY_MUON], ids=["new", "new by muon"])


@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, stop):
    """Before the adversary has begun, and with all of it under way."""
    training = finetune_decoder.DecoderTraining
    with monkeypatch.context() as patch:
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, stop))
        finetune(tmp_path / "run")
    assert checkpoint(tmp_path / "run", stop).exists() and not (tmp_path / "run" / "model").exists()
    finetune(tmp_path / "run", resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(uninterrupted_finetuning()))
    for part in ("model", "discriminator"):
        ours, theirs = weights(tmp_path / "run" / part), weights(uninterrupted_finetuning() / part)
        assert ours and all(torch.equal(value, theirs[key]) for key, value in ours.items())


@new_decoders
def test_a_new_decoder_stopped_and_resumed_equals_an_uninterrupted_one(tmp_path, monkeypatch, decoder):
    whole = finetune(tmp_path / "whole", **decoder)
    training = finetune_decoder.DecoderTraining
    with monkeypatch.context() as patch:
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, 2))
        finetune(tmp_path / "run", **decoder)
    finetune(tmp_path / "run", **decoder, resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(tmp_path):
    whole = finetune(tmp_path / "whole", **LONG)
    assert len(kill_and_resume(finetune, tmp_path / "run", whole, kills=8, seed=3)) == 8


# A large epsilon keeps what is compared a smooth function of the gradients, see test_tokenizer_division.py.
SMOOTH = {"adam_epsilon": 1e-3, "adversarial_start_step": 0, "discriminator_start_step": 0}
# AdamW of the discriminator has no such option, so its rate is small instead.
SMOOTH |= {"discriminator_learning_rate": 1e-3}


def all_tensors(folder):
    folder = checkpoint(folder)
    tensors = {f"decoder {k}": v for k, v in load_file(folder / "model.safetensors").items()}
    tensors |= {f"discriminator {k}": v for k, v in load_file(folder / "model_1.safetensors").items()}
    return tensors | torch.load(folder / "custom_checkpoint_2.pkl", weights_only=True)


def assert_close(first, second):
    ours, theirs = all_tensors(first), all_tensors(second)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(
            value, theirs[key], rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("decoder", [{}, NEW_DECODER, BY_MUON], ids=["given", "new", "new by muon"])
def test_two_ranks_equal_one_and_the_gradients_of_the_discriminator_are_reduced(tmp_path, decoder):
    options = {**SMOOTH, **decoder}
    whole = finetune(tmp_path / "whole", **options, train_batch_size=8)

    def rank_run(rank):
        def state(training):
            adversary = training.adversary
            found = {**training.autoencoder.state_dict(), **adversary.loss.state_dict()}
            return found | {f"discriminator.{k}": v for k, v in adversary.discriminator.state_dict().items()}

        save_state_of_each_step(finetune_decoder, state, tmp_path / f"rank-{rank}")
        finetune(tmp_path / "run", **options, train_batch_size=4)

    assert fork_ranks(rank_run) == [0, 0]
    for step in range(1, 7):
        first, second = (torch.load(tmp_path / f"rank-{rank}-step-{step}.pt") for rank in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert_close(tmp_path / "run", whole)


def test_two_ranks_draw_the_latents_of_one(tmp_path):
    tokenizer, _ = calibrated()
    pipeline = train_dit(tmp_path / "dit") / "pipeline"
    argv = ["--autoencoder", str(tokenizer), "--output_dir", str(tmp_path), "--resolution", "16"]
    argv += ["--heldout_data", str(home() / "images"), "--heldout_rfd", "efficientnet-lite0", "--heldout_pipeline"]
    arguments = parse_arguments(DecoderArguments, [*argv, str(pipeline), "--heldout_samples", "9"])

    def drawn():
        latents = draw_heldout_latents(arguments, build_autoencoder(str(tokenizer)), Accelerator(cpu=True))
        reset_accelerate()
        return latents

    def rank_run(rank):
        torch.save(drawn(), tmp_path / f"rank-{rank}.pt")

    alone = drawn()
    assert alone.shape == (9, 4, 2, 2) and torch.equal(alone, drawn())
    assert fork_ranks(rank_run) == [0, 0]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
def test_accumulated_images_equal_one_batch(tmp_path, adaptive):
    options = {**SMOOTH, "adversarial_adaptive_weight": adaptive}
    whole = finetune(tmp_path / "whole", **options, train_batch_size=8)
    assert_close(finetune(tmp_path / "run", **options, train_batch_size=2, gradient_accumulation_steps=4), whole)
