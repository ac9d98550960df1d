"""Caching over ranks, after SIGTERM and after kill -9 gives the files of one quiet run."""

import json
import os
import signal
import time

from safetensors.torch import load_file

from tcae_diffusers.training import cache_latents

from ..latent_commands import cache, calibrated, fork_ranks


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_two_ranks_write_the_files_of_one(tmp_path):
    _, latents = calibrated()
    assert fork_ranks(lambda rank: cache(tmp_path / "two")) == [0, 0]
    assert files_of(tmp_path / "two") == files_of(latents)
    indices = [load_file(file)["index"] for file in sorted(latents.glob("*.safetensors"))]
    assert [index for part in indices for index in part.tolist()] == list(range(22))


def test_kill_9_costs_the_shards_in_flight_only(tmp_path, monkeypatch):
    _, latents = calibrated()
    encode = cache_latents.encode_views

    def caching_killed_at(batch):
        calls = []

        def encode_or_die(*arguments):
            calls.append(1)
            # Time for the background thread to write what the batches before it filled.
            time.sleep(0.02)
            if len(calls) == batch:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(*arguments)

        monkeypatch.setattr(cache_latents, "encode_views", encode_or_die)
        return fork_ranks(lambda rank: cache(tmp_path / "killed"), world_size=1)

    finished = []
    for batch in (2, 5, 5):
        assert caching_killed_at(batch) == [-signal.SIGKILL]
        assert not (tmp_path / "killed" / "manifest.json").exists()
        finished.append(len(list((tmp_path / "killed").glob("latents-*.json"))))
    assert finished == [0, 1, 2]
    monkeypatch.setattr(cache_latents, "encode_views", encode)
    # Another number of ranks may complete what one has begun.
    assert fork_ranks(lambda rank: cache(tmp_path / "killed")) == [0, 0]
    assert files_of(tmp_path / "killed") == files_of(latents)


def test_sigterm_keeps_whole_shards_and_the_same_command_goes_on(tmp_path, monkeypatch):
    _, latents = calibrated()
    encode, calls = cache_latents.encode_views, []

    def interrupted(*arguments):
        calls.append(1)
        # Shards of 8 in batches of 3: the fifth batch is in the middle of the second shard.
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache_latents, "encode_views", interrupted)
        cache(tmp_path / "stopped")
    assert len(calls) == 5
    assert sorted(file.name for file in (tmp_path / "stopped").iterdir()) == [
        "job.json",
        "latents-00000.json",
        "latents-00000.safetensors",
    ]
    first = (tmp_path / "stopped" / "latents-00000.safetensors").stat().st_mtime_ns
    cache(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "latents-00000.safetensors").stat().st_mtime_ns == first
    assert files_of(tmp_path / "stopped") == files_of(latents)
    # Run once more, it has nothing to do.
    cache(tmp_path / "stopped")
    assert files_of(tmp_path / "stopped") == files_of(latents)


def test_workers_change_nothing_and_the_dataset_holds_the_same(tmp_path):
    from datasets import load_from_disk

    _, latents = calibrated()
    made = cache(tmp_path / "workers", dataloader_num_workers=2, dataset_dir=tmp_path / "dataset", verify=True)
    assert files_of(made) == files_of(latents)
    dataset = load_from_disk(tmp_path / "dataset").with_format("torch")
    rows = dataset[:]
    stored = load_file(made / "latents-00001.safetensors")
    assert (rows["latents_flip"][8:16] == stored["latents_flip"]).all()
    assert rows["label"][8:16].tolist() == stored["labels"].tolist()
    assert json.loads(dataset.info.description)["num_samples"] == 22
