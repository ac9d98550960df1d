"""A stream that ranks and workers share goes on after a resume as if nothing had happened."""

import json
import shutil

import pytest

from ..latent_commands import assert_same_training_state, fork_ranks
from ..tar_files import write_shards
from ..tokenizer_commands import checkpoint, train

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process


def test_two_ranks_of_two_workers_resume_a_stream_to_the_same_state(tmp_path):
    (tmp_path / "tars").mkdir()
    data = f"stream:webdataset:{write_shards(tmp_path / 'tars', shards=5, rows=5)}/part-*.tar"
    options = {"train_batch_size": 2, "gradient_accumulation_steps": 3, "dataloader_num_workers": 2}
    runs = {name: tmp_path / name for name in ("whole", "run")}
    for folder in runs.values():
        arguments = {**options, "data": data, "checkpoints_total_limit": 9}
        assert fork_ranks(lambda rank, folder=folder, arguments=arguments: train(folder, **arguments)) == [0, 0]
    shutil.rmtree(runs["run"] / "model")
    shutil.rmtree(checkpoint(runs["run"]))
    # Nine batches were taken: the next is the second worker's.
    states = [json.loads((checkpoint(runs["run"], 3) / f"stream-{rank:05d}.json").read_text()) for rank in range(2)]
    assert [state["next_reader"] for state in states] == [1, 1] and states[0] != states[1]

    resume = {**options, "data": data, "resume": "latest"}
    assert fork_ranks(lambda rank: train(runs["run"], **resume)) == [0, 0]
    assert_same_training_state(checkpoint(runs["run"]), checkpoint(runs["whole"]))
    for rank in range(2):
        ours, theirs = ((checkpoint(folder) / f"stream-{rank:05d}.json").read_text() for folder in runs.values())
        assert ours == theirs
