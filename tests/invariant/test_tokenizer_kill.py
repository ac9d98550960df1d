"""SIGKILL at any moment costs nothing but time: 20 kills here; `pytest tests/invariant/kill_200.py` for 200."""

import os
import signal

import pytest

from tcae_diffusers.trainer import checkpoint as checkpoint_module

from ..latent_commands import assert_same_training_state, fork_ranks
from ..tokenizer_commands import checkpoint, train, uninterrupted
from ..tokenizer_kills import LONG, kill_and_resume

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process


def test_killed_20_times_at_random_moments_and_resumed_equals_uninterrupted(tmp_path):
    whole = train(tmp_path / "whole", **LONG)
    hits = kill_and_resume(train, tmp_path / "run", whole, kills=20, seed=0)
    # Not all in the time before the first checkpoint.
    assert len(hits) == 20 and len({step for step in hits if 0 < step < LONG["max_train_steps"]}) > 1


@pytest.mark.parametrize("moment", ["torch.save", "sha256_of_file", "sync", "os.rename", "shutil.rmtree"])
def test_killed_while_saving(tmp_path, moment):
    """In the midst of writing, before the manifest, before the rename, and while the oldest checkpoint is removed."""

    def killed(rank):
        import torch

        owner, _, name = moment.rpartition(".")
        owner = {"": checkpoint_module, "os": os, "shutil": checkpoint_module.shutil, "torch": torch}[owner]
        original, save = getattr(owner, name), checkpoint_module.CheckpointManager.save

        def kill_halfway(*arguments, **options):
            if name == "save":
                original(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        def save_and_die(self, step, samples_seen):
            if step >= 4:
                setattr(owner, name, kill_halfway)
            return save(self, step, samples_seen)

        checkpoint_module.CheckpointManager.save = save_and_die
        train(tmp_path / "run", checkpointing_steps=2, checkpoints_total_limit=1)

    assert fork_ranks(killed, world_size=1) == [-signal.SIGKILL]
    left = {folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert left == ({"step-00000002", "step-00000004"} if moment == "shutil.rmtree" else {"step-00000002"})
    train(tmp_path / "run", checkpointing_steps=2, checkpoints_total_limit=1, resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(uninterrupted()))
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000006"]
