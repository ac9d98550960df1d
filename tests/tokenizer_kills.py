"""Kills a training command with SIGKILL at random moments and resumes it, until it is through."""

import os
import random
import shutil
import signal
import time

from .latent_commands import assert_same_training_state, fork_ranks, weights

# 8 steps of 4 images over 22 images, in epochs 0 and 1; a checkpoint after every step, so that many kills fall into
# saving.
LONG = {"max_train_steps": 8, "checkpointing_steps": 1, "log_steps": 4}


def kill_and_resume(train, folder, whole, kills, seed) -> list[int]:
    """
    `train(folder, **options)` in forked processes, killed after random times; whenever it comes to its end, the result
    is compared with the folder `whole` and a new run begins, until `kills` kills have hit.

    Returns:
        `list[int]`: steps of the newest checkpoint at each kill.
    """
    generator = random.Random(seed)
    hits, finished = [], 0
    started = time.time()
    fork_ranks(lambda rank: train(folder, **LONG), world_size=1)
    duration = time.time() - started
    compare(folder, whole)
    shutil.rmtree(folder)
    while len(hits) < kills:
        (child,) = fork_ranks(lambda rank: train(folder, **LONG, resume="latest"), world_size=1, wait=False)
        # Short lives too: half of the kills fall into the first third of what a whole run takes.
        deadline = time.time() + duration * generator.random() ** 1.6
        pid = 0
        while time.time() < deadline and pid == 0:
            time.sleep(0.002)
            pid, status = os.waitpid(child, os.WNOHANG)
        if pid == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            steps = [int(place.name[5:]) for place in (folder / "checkpoints").glob("step-*")]
            hits.append(max(steps, default=0))
        else:
            assert os.waitstatus_to_exitcode(status) == 0
            finished += compare(folder, whole)
            shutil.rmtree(folder)
    assert fork_ranks(lambda rank: train(folder, **LONG, resume="latest"), world_size=1) == [0]
    compare(folder, whole)
    return hits


def compare(folder, whole) -> int:
    """Checkpoint and model of a finished run are those of `whole`, and no kill left anything behind."""
    last = f"checkpoints/step-{LONG['max_train_steps']:08d}"
    assert_same_training_state(folder / last, whole / last)
    ours, theirs = weights(folder / "model"), weights(whole / "model")
    assert ours and all((value == theirs[key]).all() for key, value in ours.items())
    assert not list(folder.glob(".*")) and not list(folder.glob("checkpoints/.*"))
    return 1
