"""How a step is divided over ranks and micro-batches does not change what `train_tcae` learns."""

import errno
import os

import pytest
import torch

from tcae_diffusers.training import train_tcae

from ..latent_commands import assert_same_training_state, fork_ranks, signalling
from ..tokenizer_commands import (
    MUON,
    SHAPINGS,
    SMOOTH,
    assert_close_state,
    checkpoint,
    each_shaping,
    lose_the_end,
    save_state_of_each_step,
    train,
)

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run", **SMOOTH, max_train_steps=6, train_batch_size=8)


def test_eight_accumulated_images_equal_a_batch_of_eight(tmp_path, whole):
    run = train(tmp_path / "run", **SMOOTH, train_batch_size=1, gradient_accumulation_steps=8)
    assert_close_state(run, whole)


def test_muon_learns_the_same_from_two_ranks_and_from_accumulated_images(tmp_path):
    options = {**SMOOTH, **MUON, "max_train_steps": 3}
    whole = train(tmp_path / "whole", **options, train_batch_size=8)
    halves = {**options, "train_batch_size": 4}
    assert_close_state(train(tmp_path / "accumulated", **halves, gradient_accumulation_steps=2), whole, step=3)
    assert fork_ranks(lambda rank: train(tmp_path / "ranks", **halves)) == [0, 0]
    assert_close_state(tmp_path / "ranks", whole, step=3)


def test_the_tolerance_would_notice_another_batch(tmp_path, whole):
    run = train(tmp_path / "run", **SMOOTH, train_batch_size=7)
    with pytest.raises(AssertionError):
        assert_close_state(run, whole)


@each_shaping
def test_a_shaped_latent_is_the_same_for_accumulated_images_and_two_ranks(tmp_path, name):
    options = {**SMOOTH, **SHAPINGS[name], "ssl_num_local_crops": 0, "max_train_steps": 4, "checkpointing_steps": 4}
    whole = train(tmp_path / "whole", **options, train_batch_size=8)
    divided = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert fork_ranks(lambda rank: train(tmp_path / "run", **options, **divided)) == [0, 0]
    assert_close_state(tmp_path / "run", whole, step=4)
    # The tolerance would notice images whose latents were shaped otherwise.
    unshaped = train(tmp_path / "unshaped", **{**options, **dict.fromkeys(SHAPINGS[name])}, train_batch_size=8)
    with pytest.raises(AssertionError):
        assert_close_state(unshaped, whole, step=4)


@pytest.mark.parametrize("ssl", ["ibot", "none"])
def test_two_ranks_equal_one_and_end_with_equal_parameters(tmp_path, whole, ssl):
    def rank_run(rank):
        def state(training):
            modules = {"student": training.student}
            modules |= {f"state.{index}": module for index, module in enumerate(training.method.state())}
            return {f"{name}.{key}": v for name, module in modules.items() for key, v in module.state_dict().items()}

        save_state_of_each_step(train_tcae, state, tmp_path / f"rank-{rank}")
        train(tmp_path / "run", **SMOOTH, train_batch_size=4, ssl=ssl)

    assert fork_ranks(rank_run) == [0, 0]
    for step in range(1, 7):
        first, second = (torch.load(tmp_path / f"rank-{rank}-step-{step}.pt") for rank in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    if ssl == "ibot":
        assert_close_state(tmp_path / "run", whole)


def test_a_run_of_one_rank_goes_on_with_two(tmp_path, whole):
    options = {**SMOOTH, "train_batch_size": 8}
    train(tmp_path / "run", **options)
    lose_the_end(tmp_path / "run")
    halves = {**options, "train_batch_size": 4, "resume": "latest"}
    assert fork_ranks(lambda rank: train(tmp_path / "run", **halves)) == [0, 0]
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert_close_state(tmp_path / "run", whole)


def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path):
    def rank_run(rank):
        training = train_tcae.TokenizerTraining
        training.compute_loss = signalling(training.compute_loss, 2 if rank == 1 else None)
        train(tmp_path / "run", train_batch_size=2)

    assert fork_ranks(rank_run) == [0, 0]
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert fork_ranks(lambda rank: train(tmp_path / "run", train_batch_size=2, resume="latest")) == [0, 0]
    whole = tmp_path / "whole"
    assert fork_ranks(lambda rank: train(whole, train_batch_size=2)) == [0, 0]
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(whole))


@pytest.mark.parametrize("broken_rank", [0, 1])
def test_a_disk_that_fills_on_one_rank_ends_both_instead_of_leaving_one_waiting(tmp_path, broken_rank):
    def rank_run(rank):
        save = torch.save

        def full(content, file, *arguments, **options):
            if rank == broken_rank and "step-00000006" in str(file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return save(content, file, *arguments, **options)

        torch.save = full
        train(tmp_path / "run", train_batch_size=2)

    assert fork_ranks(rank_run) == [2, 2]
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
