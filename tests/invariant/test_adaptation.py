"""Adapting a trained tokenizer to larger images, through the commands: few layers learn, the others stay."""

import pytest
import torch

from tcae_diffusers.training import finetune_decoder, train_tcae

from ..latent_commands import FOREIGN, assert_close, assert_same_training_state, fork_ranks, signalling, weights
from ..tokenizer_commands import SMOOTH, checkpoint, finetune, train, trained_tokenizer

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

LATENT = ("encoder.last_norm", "encoder.to_latent", "decoder.from_latent")
HEAD = ("decoder.last_norm", "decoder.proj_out")


def adapt_tokenizer(output, **options):
    larger = {"autoencoder_overrides": '{"sample_size": 24}', "ssl": "none", "trained_layers": "latent"}
    return train(output, **{"autoencoder": trained_tokenizer(), **larger, **options})


def differing(first, second):
    ours, theirs = weights(first), weights(second)
    return {name for name, value in ours.items() if not torch.equal(value, theirs[name])}


def test_only_the_layers_around_the_latent_learn_and_a_resume_is_exact(tmp_path, monkeypatch):
    whole = adapt_tokenizer(tmp_path / "whole")
    changed = differing(whole / "model", trained_tokenizer()) - {"latent_mean", "latent_std"}
    assert changed and all(name.startswith(LATENT) for name in changed)
    assert {layer for layer in LATENT if any(name.startswith(layer) for name in changed)} == set(LATENT)
    checkpointed = adapt_tokenizer(tmp_path / "checkpointed", gradient_checkpointing=True)
    assert_close(weights(checkpointed / "model"), weights(whole / "model"))
    with monkeypatch.context() as patch:
        training = train_tcae.TokenizerTraining
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, 2))
        adapt_tokenizer(tmp_path / "run")
    adapt_tokenizer(tmp_path / "run", resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))
    assert differing(tmp_path / "run" / "model", whole / "model") == set()


@pytest.mark.parametrize("layers", ["latent", "head"])
def test_two_ranks_adapt_what_one_rank_adapts(tmp_path, layers):
    trained_tokenizer()
    command, others = (adapt_tokenizer, {}) if layers == "latent" else (finetune, {"discriminator": "none"})
    options = {**SMOOTH, **others, "trained_layers": layers}
    whole = command(tmp_path / "whole", **options, train_batch_size=8)
    assert fork_ranks(lambda rank: command(tmp_path / "ranks", **options, train_batch_size=4)) == [0, 0]
    assert_close(weights(checkpoint(tmp_path / "ranks")), weights(checkpoint(whole)))


def test_only_the_head_of_the_decoder_learns_and_a_resume_is_exact(tmp_path, monkeypatch):
    whole = finetune(tmp_path / "whole", trained_layers="head")
    changed = differing(whole / "model", trained_tokenizer())
    assert {layer for layer in HEAD if any(name.startswith(layer) for name in changed)} == set(HEAD)
    assert all(name.startswith(HEAD) for name in changed)
    with monkeypatch.context() as patch:
        training = finetune_decoder.DecoderTraining
        patch.setattr(training, "compute_loss", signalling(training.compute_loss, 2))
        finetune(tmp_path / "run", trained_layers="head")
    finetune(tmp_path / "run", trained_layers="head", resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))


def test_what_cannot_be_adapted_says_so(tmp_path, capsys):
    torch.manual_seed(0)
    FOREIGN["AutoencoderKL"]().save_pretrained(tmp_path / "kl")
    for command, options, message in [
        (adapt_tokenizer, {"ssl": "ibot"}, "--trained_layers latent trains without self-supervision; add --ssl none"),
        (adapt_tokenizer, {"autoencoder": "tc-ae-xs-f8c32"}, "tc-ae-xs-f8c32 has no weights, pass a folder that has"),
        (
            adapt_tokenizer,
            {"autoencoder": tmp_path / "kl", "autoencoder_overrides": "{}"},
            "which layers of AutoencoderKL to train is not known; AutoencoderTC can be adapted so",
        ),
        (finetune, {"autoencoder": tmp_path / "kl", "trained_layers": "head"}, "which layers of AutoencoderKL"),
        (
            finetune,
            {"trained_layers": "head", "new_decoder": '{"decoder_hidden_size": 16}'},
            "--trained_layers head must be omitted with --new_decoder",
        ),
    ]:
        with pytest.raises(SystemExit) as stopped:
            command(tmp_path / "run", **options)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1], message
        assert not (tmp_path / "run").exists()
