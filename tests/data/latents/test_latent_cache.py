import errno
import json
import os
import pickle
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from tcae_diffusers import files
from tcae_diffusers.data.latents import cache as latent_cache
from tcae_diffusers.data.latents import format as latent_format
from tcae_diffusers.data.latents.channel_statistics import ChannelStatistics
from tcae_diffusers.data.latents.format import LatentCacheError, shard_file, shard_ranges
from tcae_diffusers.data.latents.writer import LatentCache, LatentShardWriter
from tcae_diffusers.data.sample_randomness import choose_per_sample
from tcae_diffusers.data.step_indexed_sampler import StepIndexedBatchSampler
from tcae_diffusers.models.fingerprint import TokenizerFingerprint, encoder_config, weights_sha256
from tcae_diffusers.models.model_fingerprint import config_sha256

NUM_SAMPLES, SHAPE, SHARD_SIZE = 37, (3, 2, 2), 8
VIEWS = ("latents", "latents_flip")
TOKENIZER = TokenizerFingerprint("AutoencoderTC", "c" * 64, "w" * 64)


def _raw(view):
    generator = torch.Generator().manual_seed(VIEWS.index(view))
    offset = torch.tensor([0.0, 5.0, -300.0])[:, None, None]
    return torch.randn(NUM_SAMPLES, *SHAPE, generator=generator) * 2 + offset


LATENTS = {view: _raw(view) for view in VIEWS}
LABELS = torch.arange(NUM_SAMPLES) % 4


def _writer(path, **changes):
    arguments = {
        "num_samples": NUM_SAMPLES,
        "latent_shape": SHAPE,
        "tokenizer": TOKENIZER,
        "id2label": dict(enumerate("abcd")),
        "data_fingerprint": "f" * 64,
        "transform": {"resolution": 32},
        "views": VIEWS,
        "shard_size": SHARD_SIZE,
    }
    return LatentShardWriter(path, **{**arguments, **changes})


def _fill(writer, shard, batch_size=3):
    with writer.open_shard(shard) as out:
        for batch in torch.arange(shard.start, shard.stop).split(batch_size):
            out.add(batch, {view: LATENTS[view][batch] for view in writer.job["views"]}, LABELS[batch])


def _write(path, world_size=1, batch_size=3, **changes):
    for rank in range(world_size):
        writer = _writer(path, **changes)
        for shard in writer.pending_shards(rank, world_size):
            _fill(writer, shard, batch_size)
        writer.flush()
    return writer.finalize()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "cache"
    _write(path)
    return path


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def _contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_was_written_is_read_in_any_order(made):
    cache = LatentCache(made, verify="sha256", use_views=False)
    indices = np.random.default_rng(0).integers(0, NUM_SAMPLES, 200)
    latents, labels = cache.read(indices)
    assert latents.dtype == torch.float32 and torch.equal(latents, LATENTS["latents"][indices])
    assert labels.dtype == torch.int64 and torch.equal(labels, LABELS[indices])
    assert len(cache) == NUM_SAMPLES and cache.id2label == dict(enumerate("abcd"))
    assert {file.name for file in made.iterdir()} == {*(shard_file(k) for k in range(5)), "manifest.json"}


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 1), (3, 5), (9, 8)])
def test_any_number_of_ranks_and_any_batch_size_makes_the_same_files(made, tmp_path, world_size, batch_size):
    _write(tmp_path / "cache", world_size, batch_size)
    assert _contents(tmp_path / "cache") == _contents(made)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_ranks_share_the_shards_without_gap_or_overlap(tmp_path, world_size):
    writer = _writer(tmp_path)
    shares = [writer.pending_shards(rank, world_size) for rank in range(world_size)]
    images = [i for share in shares for shard in share for i in range(shard.start, shard.stop)]
    assert images == list(range(NUM_SAMPLES))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_statistics_equal_one_pass_over_everything_in_float64(made):
    everything = torch.cat([LATENTS[view] for view in VIEWS]).double()
    statistics = LatentCache(made).manifest["statistics"]
    torch.testing.assert_close(
        torch.tensor(statistics["mean"], dtype=torch.float64), everything.mean((0, 2, 3)), rtol=1e-14, atol=1e-14
    )
    torch.testing.assert_close(
        torch.tensor(statistics["std"], dtype=torch.float64),
        everything.std((0, 2, 3), correction=0),
        rtol=1e-14,
        atol=0,
    )
    assert statistics["count"] == 2 * NUM_SAMPLES * 4


def test_merged_statistics_do_not_cancel_far_from_zero():
    # Sums of squares of these in float64 would keep no digit of the variance.
    values = torch.randn(1000, 2, 3, 3, dtype=torch.float64) * 1e-3 + 1e6
    merged = ChannelStatistics.of(values[:1])
    for part in values[1:].split(37):
        merged = merged.merge(ChannelStatistics.of(part))
    torch.testing.assert_close(merged.std, values.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)
    assert ChannelStatistics.from_dict(json.loads(json.dumps(merged.to_dict()))).to_dict() == merged.to_dict()


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_rounding_error_is_measured_and_small(tmp_path, dtype, bits):
    manifest = _write(tmp_path / "cache", dtype=dtype)
    cache = LatentCache(tmp_path / "cache", use_views=False)
    read = cache.read(range(NUM_SAMPLES))[0]
    assert torch.equal(read, LATENTS["latents"].to(getattr(torch, dtype)).float())
    both = torch.cat([LATENTS[view].to(getattr(torch, dtype)).float() - LATENTS[view] for view in VIEWS]).double()
    assert manifest["rounding_error"]["max_abs"] == float(both.abs().max())
    assert manifest["rounding_error"]["rms"] == pytest.approx(float(both.square().mean().sqrt()), rel=1e-12)
    assert (manifest["rounding_error"]["max_abs"] == 0) == (dtype == "float32")
    assert manifest["rounding_error"]["max_abs"] <= 310 * 2.0**-bits
    # The statistics are those of what the encoder gave, whatever it was rounded to.
    assert manifest["statistics"]["mean"][0] == pytest.approx(
        float(torch.cat(list(LATENTS.values()))[:, 0].mean()), 1e-5
    )


def test_each_sample_of_each_epoch_gets_the_view_that_seed_epoch_and_index_choose(made):
    cache = LatentCache(made, seed=3)
    order = torch.randperm(NUM_SAMPLES)
    chosen = torch.stack([cache.read(range(NUM_SAMPLES), epoch)[0] for epoch in range(8)])
    flipped = (chosen == LATENTS["latents_flip"]).flatten(2).all(2)
    assert torch.equal(flipped, ~(chosen == LATENTS["latents"]).flatten(2).all(2))
    assert 0.4 < flipped.float().mean() < 0.6 and not (flipped[0] == flipped[1]).all()
    assert torch.equal(cache.read(order, [5] * NUM_SAMPLES)[0], chosen[5][order])
    assert torch.equal(cache[5, 11]["latents"], chosen[5, 11])
    assert not torch.equal(LatentCache(made, seed=4).read(range(NUM_SAMPLES), 0)[0], chosen[0])


def test_no_more_files_are_open_than_shards_may_be_mapped(made, monkeypatch):
    cache = LatentCache(made)
    expected = cache.read(range(NUM_SAMPLES))[0].clone()
    monkeypatch.setattr(latent_cache, "MAX_MAPPED_SHARDS", 2)
    cache = LatentCache(made)
    kept = cache.latents_of_shard(0)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(2):
        order = torch.randperm(NUM_SAMPLES).numpy()
        assert torch.equal(cache.read(order)[0], expected[order])
    assert len(cache._mapped) == 2
    # A tensor outlives the place of its shard among the mapped ones.
    assert torch.equal(kept, LatentCache(made).latents_of_shard(0))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_choices_are_balanced_and_independent_of_the_batch():
    indices = np.arange(60_000)
    first, second, seeded = (choose_per_sample(seed, epoch, indices, 3) for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    for choices in (first, second, seeded):
        assert np.abs(np.bincount(choices, minlength=3) - 20_000).max() < 600
    for a, b in ((first, second), (first, seeded), (second, seeded), (first[1:], first[:-1])):
        assert 0.32 < (a == b).mean() < 0.35
    assert (choose_per_sample(0, 0, indices[::-7], 3) == first[::-7]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_and_pickled_copies_read_the_same(made, workers):
    cache = LatentCache(made).normalize_with(torch.zeros(3), torch.ones(3))
    sampler = StepIndexedBatchSampler(len(cache), 8, 0, 1, 0, 2, 6)
    batches = list(DataLoader(cache, batch_sampler=sampler, num_workers=workers, collate_fn=LatentCache.collate))
    other = pickle.loads(pickle.dumps(cache))
    for keys, batch in zip(sampler, batches, strict=True):
        epochs, indices = zip(*keys, strict=True)
        latents, labels = other.read(indices, epochs)
        assert torch.equal(batch["latents"], latents) and torch.equal(batch["labels"], labels)
        assert batch["indices"].tolist() == list(indices)


class TinyEncoder(torch.nn.Module):
    """The least that has a config, weights and statistics, with `encode` as in AutoencoderTC."""

    def __init__(self, **config):
        super().__init__()
        self.config = {"latent_channels": 3, "shape": (1, 2), "_name_or_path": str(config), **config}
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("latent_mean", torch.zeros(3))
        self.register_buffer("latent_std", torch.ones(3))

    def encode(self, index):
        return (LATENTS["latents"][index] - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]


def test_cached_latents_equal_those_of_encode_before_and_after_calibration(tmp_path):
    model = TinyEncoder()
    _write(tmp_path / "cache", tokenizer=TokenizerFingerprint.of(model))
    cache = LatentCache(tmp_path / "cache", expected_tokenizer=model, use_views=False)
    assert torch.equal(cache.read([5, 30])[0], model.encode([5, 30]))
    model.latent_mean.copy_(cache.latent_mean)
    model.latent_std.copy_(cache.latent_std)
    calibrated = LatentCache(tmp_path / "cache", expected_tokenizer=model, use_views=False)
    assert torch.equal(calibrated.read([5, 30])[0], model.encode([5, 30]))
    calibrated.views = VIEWS
    everything = torch.cat([calibrated.read(range(NUM_SAMPLES), epoch)[0] for epoch in range(40)])
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3), correction=0), torch.ones(3), atol=0.1, rtol=0)


def test_latents_of_another_tokenizer_or_calibration_are_refused(tmp_path):
    model = TinyEncoder()
    _write(tmp_path / "cache", tokenizer=TokenizerFingerprint.of(model))
    with pytest.raises(LatentCacheError, match=r"made with another tokenizer .config_sha256"):
        LatentCache(tmp_path / "cache", expected_tokenizer=TinyEncoder(width=8))
    model.latent_mean += 0.5
    with pytest.raises(LatentCacheError, match=r"calibrated with other statistics .* set_latent_statistics"):
        LatentCache(tmp_path / "cache", expected_tokenizer=model)
    with torch.no_grad():
        model.weight[1] += 1e-6
    with pytest.raises(LatentCacheError, match=r"made with another tokenizer .weights_sha256"):
        LatentCache(tmp_path / "cache", expected_tokenizer=model)


def test_fingerprint_sees_encoder_and_config_but_not_decoder_calibration_or_order(tmp_path):
    state = {"b": torch.randn(2, 3), "a": torch.randn(4).bfloat16(), "s": torch.tensor(3)}
    reference = weights_sha256(state)
    assert weights_sha256(dict(reversed(state.items()))) == reference
    assert weights_sha256({**state, "latent_mean": torch.ones(3)}) == reference
    assert weights_sha256({**state, "decoder.weight": torch.ones(3)}) == reference
    assert weights_sha256({**state, "b": state["b"].T.contiguous().T}) == reference
    changes = [{"b": state["b"].T}, {"b": state["b"].half()}, {"a": state["a"] + 1}, {"c": torch.ones(1)}]
    assert len({weights_sha256({**state, **change}) for change in changes} | {reference}) == 5
    assert config_sha256({"size": (1, 2), "_x": 1}) == config_sha256({"_x": 2, "size": [1, 2]})
    assert config_sha256({"size": 1}) != config_sha256({"size": 2})
    assert config_sha256({"decoder_size": 1}) != config_sha256({"decoder_size": 2})
    assert encoder_config({"size": 1, "decoder_size": 1, "scale": 2}, ["scale"]) == {"size": 1}
    fingerprint = TokenizerFingerprint("A", "b", "c", (0.5,), (2.0,), (0.5, 0.0))
    values = json.loads(json.dumps(fingerprint.to_dict()))
    assert TokenizerFingerprint.from_dict(values) == fingerprint
    # As in manifests of before.
    del values["scaling"]
    assert TokenizerFingerprint.from_dict(values) == replace(fingerprint, scaling=None)


def test_a_resume_writes_only_what_is_missing_and_gives_the_same_files(made, tmp_path):
    path = tmp_path / "cache"
    writer = _writer(path)
    for shard in writer.pending_shards()[:3]:
        _fill(writer, shard)
    writer.flush()
    # A kill while writing leaves a temporary file, a kill before the record a shard that does not count.
    (path / ".latents-00003.safetensors.1.writing").write_bytes(b"half")
    (path / "latents-00001.json").unlink()
    (path / shard_file(2)).write_bytes((path / shard_file(2)).read_bytes()[:-1])
    with pytest.raises(LatentCacheError, match="is incomplete; run cache_latents"):
        LatentCache(path)
    resumed = _writer(path)
    assert [shard.number for shard in resumed.pending_shards()] == [1, 2, 3, 4]
    with pytest.raises(LatentCacheError, match=r"4 of 5 shards of .* are missing, the first of them latents-00001"):
        resumed.finalize()
    for shard in resumed.pending_shards():
        _fill(resumed, shard)
    resumed.finalize()
    assert _contents(path) == _contents(made)
    finished = _writer(path)
    assert finished.is_finalized and finished.pending_shards() == []
    assert finished.finalize() == LatentCache(path).manifest


def test_kills_at_any_moment_cost_at_most_the_shards_in_flight(made, tmp_path):
    path, delays = tmp_path / "cache", np.random.default_rng(0).uniform(0.001, 0.06, 20)
    finished = 0
    for delay in delays:
        child = os.fork()
        if child == 0:
            try:
                _write(path)
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        writer = _writer(path)
        now = len(writer.shards) - len(writer.pending_shards())
        assert now >= finished
        finished = now
    _write(path)
    assert _contents(path) == _contents(made)
    LatentCache(path, verify="sha256")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer": TokenizerFingerprint("AutoencoderTC", "c" * 64, "x" * 64)}, "tokenizer"),
        ({"dtype": "float16", "transform": {}}, "transform, dtype"),
        ({"shard_size": 9}, "shard_size"),
        ({"data_fingerprint": "g"}, "data_fingerprint"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_two_jobs_cannot_be_mixed_in_one_folder(made, tmp_path, change, named, finished):
    path = shutil.copytree(made, tmp_path / "cache") if finished else tmp_path / "cache"
    if not finished:
        _writer(path)
    with pytest.raises(LatentCacheError, match=rf"another job \(different: {named}\)"):
        _writer(path, **change)


def _add(writer, **changes):
    good = {"indices": [8, 9], "latents": {v: LATENTS[v][8:10] for v in VIEWS}, "labels": [0, 1]}
    with writer.open_shard(writer.shards[1]) as out:
        out.add(**{**good, **changes})


BAD = torch.full((2, *SHAPE), float("nan"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [8, 16]}, "image 16 is outside shard [8, 16)"),
        ({"indices": [9, 9]}, "image 9 was added twice"),
        ({"labels": [0, 4]}, "label 4 of image 9; expected one within [0, 4)"),
        ({"labels": [-1, 0]}, "label -1 of image 8"),
        ({"labels": [1]}, "1 labels; expected"),
        ({"latents": {"latents": LATENTS["latents"][8:10]}}, "latents of ['latents'] were given"),
        ({"latents": {v: LATENTS[v][8:10, :2] for v in VIEWS}}, "latents is torch.float32 (2, 2, 2, 2), expected"),
        ({"latents": {v: LATENTS[v][8:10].long() for v in VIEWS}}, "latents is torch.int64"),
        (
            {"latents": {"latents": LATENTS["latents"][8:10], "latents_flip": BAD}},
            "latents_flip of image 8 is not finite",
        ),
        ({}, "6 images of shard [8, 16) were not added, the first of them 10"),
    ],
)
def test_a_bad_batch_is_named_and_its_shard_not_written(tmp_path, changes, message):
    writer = _writer(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        _add(writer, **changes)
    writer.flush()
    assert len(writer.pending_shards()) == 5 and not list(tmp_path.glob("*.safetensors"))


def test_a_value_beyond_float16_is_an_error_not_infinity(tmp_path):
    writer = _writer(tmp_path, dtype="float16", views=("latents",))
    with writer.open_shard(writer.shards[0]) as out:
        out.add(range(8), {"latents": torch.full((8, *SHAPE), 1e5)}, [0] * 8)
    with pytest.raises(
        ValueError, match="reach 100000, beyond the range of float16; cache them as bfloat16 or float32"
    ):
        writer.flush()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "latent dtype 'int8' is unknown; expected one of float32, float16, bfloat16"),
        ({"views": ("latents_flip",)}, "views"),
        ({"views": ("latents", "labels")}, "views"),
        ({"id2label": {1: "a"}}, "id2label has the labels [1]"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"latent_shape": (3, 2)}, "latent_shape (3, 2)"),
    ],
)
def test_impossible_jobs_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _writer(tmp_path / "cache", **change)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_said_and_what_was_finished_stays(tmp_path, monkeypatch):
    writer = _writer(tmp_path)
    _fill(writer, writer.shards[0])
    writer.flush()
    before = _contents(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        _fill(writer, writer.shards[1])
        with pytest.raises(OSError, match=r"the disk is full and .* MiB are needed; free some space.*latents-00001"):
            writer.flush()
    assert _contents(tmp_path) == before
    usage = shutil._ntuple_diskusage(10, 10, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MiB are needed and 0\.0 MiB free"):
        _writer(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the latent cache.*choose a writable folder.*file"):
        _writer(tmp_path / "file" / "cache")


def _rewrite(path, number, dtype=None, **changes):
    """Replace tensors of a shard and make the manifest believe it."""
    tensors = {**load_file(path / shard_file(number)), **changes}
    if dtype:
        tensors["latents"] = tensors["latents"].to(dtype)
    save_file(tensors, path / shard_file(number))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][number]["bytes"] = (path / shard_file(number)).stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))


def _edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def _flip_a_bit(path):
    file = path / shard_file(2)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "no folder": (lambda p: shutil.rmtree(p), FileNotFoundError, "does not exist; create it with"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), LatentCacheError, "has no manifest.json"),
    "half manifest": (lambda p: (p / "manifest.json").write_text("{"), LatentCacheError, "manifest.json is damaged"),
    "future": (lambda p: _edit_manifest(p, version=9), LatentCacheError, "version 9, expected tcae-latent-cache 1"),
    "gap": (lambda p: _edit_manifest(p, num_samples=50), LatentCacheError, "do not cover every image exactly once"),
    "missing": (lambda p: (p / shard_file(3)).unlink(), LatentCacheError, r"latents-00003.safetensors is missing"),
    "truncated": (
        lambda p: (p / shard_file(3)).write_bytes((p / shard_file(3)).read_bytes()[:-7]),
        LatentCacheError,
        r"latents-00003.safetensors has \d+ bytes, expected \d+",
    ),
    "duplicated": (
        lambda p: shutil.copy(p / shard_file(1), p / shard_file(3)),
        LatentCacheError,
        r"latents-00003.safetensors holds images 8 to 15, expected 24 to 31: it is a copy",
    ),
    "garbage": (
        lambda p: (p / shard_file(1)).write_bytes(b"\xff" * (p / shard_file(1)).stat().st_size),
        LatentCacheError,
        "latents-00001.safetensors is not a safetensors file",
    ),
    "dtype": (
        lambda p: _rewrite(p, 1, torch.float16),
        LatentCacheError,
        r"latents in .*latents-00001.safetensors is F16 .* expected F32",
    ),
    "label": (
        lambda p: _rewrite(p, 1, labels=torch.full((8,), 7)),
        LatentCacheError,
        r"label 7 of image 8 in .*latents-00001.* is not within \[0, 4\)",
    ),
    "altered": (_flip_a_bit, LatentCacheError, r"latents-00002.safetensors was modified \(sha256 differs\)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_has_its_own_clear_error(copy, damage):
    action, error, message = DAMAGE[damage]
    LatentCache(copy, verify="sha256")
    action(copy)
    with pytest.raises(error, match=message):
        LatentCache(copy, verify="sha256" if damage == "altered" else "size")


@pytest.mark.parametrize("indices", [[-1], [0, NUM_SAMPLES]])
def test_reading_outside_the_cache_is_an_index_error(made, indices):
    with pytest.raises(IndexError, match=r"not all within \[0, 37\)"):
        LatentCache(made).read(indices)


@pytest.mark.parametrize("std", [torch.zeros(3), torch.ones(4)])
def test_impossible_normalisation_is_refused(made, std):
    with pytest.raises(ValueError, match="std positive"):
        LatentCache(made).normalize_with(torch.zeros(3), std)


def _sparse_cache(path, num_samples, shape, shard_size):
    """Shards whose latents are a hole in the file: real in size, free on disk."""
    path.mkdir()
    records = []
    for number, (start, stop, _) in enumerate(shard_ranges([num_samples], shard_size)):
        count = stop - start
        integers = np.stack([np.arange(start, stop), np.arange(start, stop) % 1000]).astype("<i8").tobytes()
        end = len(integers) + count * int(np.prod(shape)) * 2
        header = {
            "index": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]},
            "labels": {"dtype": "I64", "shape": [count], "data_offsets": [8 * count, 16 * count]},
            "latents": {"dtype": "BF16", "shape": [count, *shape], "data_offsets": [16 * count, end]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path / shard_file(number), "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text + integers)
            stream.truncate(8 + len(text) + end)
        size = 8 + len(text) + end
        records.append({"file": shard_file(number), "start": start, "stop": stop, "bytes": size, "sha256": "0" * 64})
    zeros = [0.0] * shape[0]
    manifest = {
        "format": latent_format.FORMAT,
        "version": latent_format.FORMAT_VERSION,
        "tokenizer": TOKENIZER.to_dict(),
        "num_samples": num_samples,
        "shard_size": shard_size,
        "latent_shape": shape,
        "dtype": "bfloat16",
        "views": ["latents"],
        "id2label": {str(label): str(label) for label in range(1000)},
        "statistics": {"mean": zeros, "std": zeros, "count": 1},
        "shards": records,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_cache_of_1_3_million_latents_opens_in_200_megabytes(tmp_path):
    _sparse_cache(tmp_path / "cache", 1_300_000, [128, 8, 8], 4096)
    memory = _resident_bytes()
    cache = LatentCache(tmp_path / "cache")
    latents, labels = cache.read(np.random.default_rng(0).integers(0, len(cache), 256))
    memory = _resident_bytes() - memory
    assert latents.shape == (256, 128, 8, 8) and labels.max() < 1000
    assert memory < 200e6, memory


def test_export_as_dataset_keeps_latents_labels_and_description(made, tmp_path):
    from tcae_diffusers.data.latents.dataset_export import latent_cache_to_dataset

    dataset = latent_cache_to_dataset(LatentCache(made), cache_dir=tmp_path)
    rows = dataset.with_format("torch")[:]
    for view in VIEWS:
        assert torch.equal(rows[view], LATENTS[view])
    assert torch.equal(rows["label"], LABELS) and dataset.features["label"].names == list("abcd")
    assert json.loads(dataset.info.description)["statistics"] == LatentCache(made).manifest["statistics"]
    streamed = next(iter(dataset.to_iterable_dataset().with_format("torch")))
    assert torch.equal(streamed["latents"], LATENTS["latents"][0])


TOKENS = {"shape": [2, 2, 1], "dtype": "bfloat16", "network": "of this test"}


def _tokens_of(latents):
    """Tokens that tell which latent they belong to."""
    return (latents[:, :2, :, :1] * 2 + 1).bfloat16()


def _write_with_tokens(path):
    writer = _writer(path, tokens=TOKENS)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as out:
            for batch in torch.arange(shard.start, shard.stop).split(3):
                latents = {view: LATENTS[view][batch] for view in VIEWS}
                tokens = {"tokens" + view.removeprefix("latents"): _tokens_of(latents[view]) for view in VIEWS}
                out.add(batch, {**latents, **tokens}, LABELS[batch])
    writer.finalize()
    return path


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory):
    return _write_with_tokens(tmp_path_factory.mktemp("tokens") / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_tokens_are_those_of_the_view_that_was_chosen(with_tokens, workers):
    cache = LatentCache(with_tokens, verify="sha256", with_tokens=True)
    assert cache.token_shape == (2, 2, 1)
    sampler = StepIndexedBatchSampler(len(cache), 8, 0, 1, 0, 2, 12)
    for batch in DataLoader(cache, batch_sampler=sampler, num_workers=workers, collate_fn=LatentCache.collate):
        assert batch["tokens"].dtype == torch.bfloat16
        assert torch.equal(batch["tokens"], _tokens_of(batch["latents"]))
    # Normalisation is of latents; tokens stay as they were.
    cache.normalize_with(torch.ones(3), torch.full((3,), 2.0))
    plain = LatentCache(with_tokens)
    assert torch.equal(cache.read_tokens([3, 36, 3], 5), _tokens_of(plain.read([3, 36, 3], 5)[0]))
    assert "tokens" not in plain[0, 1] and torch.equal(plain[0, 1]["latents"], plain.read([1], 0)[0][0])


def test_tokens_that_are_not_there_or_not_as_the_manifest_says_are_refused(made, with_tokens, tmp_path):
    with pytest.raises(LatentCacheError, match="has no tokens; cache the latents anew"):
        LatentCache(made, with_tokens=True)
    with pytest.raises(LatentCacheError, match="has no tokens"):
        LatentCache(made).read_tokens([0])
    with pytest.raises(IndexError, match=r"not all within \[0, 37\)"):
        LatentCache(with_tokens).read_tokens([37])
    copied = Path(shutil.copytree(with_tokens, tmp_path / "copy"))
    _edit_manifest(copied, tokens={**TOKENS, "shape": [2, 1, 2]})
    with pytest.raises(LatentCacheError, match=r"tokens in .* is BF16 \[8, 2, 2, 1\], expected BF16 \[8, 2, 1, 2\]"):
        LatentCache(copied)


def test_tokens_beyond_their_dtype_or_missing_are_named(tmp_path):
    writer = _writer(tmp_path, tokens={**TOKENS, "dtype": "float16"}, views=("latents",))
    latents, labels = {"latents": LATENTS["latents"][:8]}, [0] * 8
    beyond = {**latents, "tokens": torch.full((8, 2, 2, 1), 1e5)}
    for values, message in (
        (beyond, r"tokens of image 0 is not finite; .*float16, and bfloat16 holds it"),
        (latents, r"latents of \['latents'\] were given, expected \['latents', 'tokens'\]"),
    ):
        with pytest.raises(ValueError, match=message), writer.open_shard(writer.shards[0]) as out:
            out.add(range(8), values, labels)


def test_the_space_that_tokens_need_is_looked_for(tmp_path, monkeypatch):
    per_image = 3 * 2 * 2 * 4 + 2 * 2 * 2 + 16
    usage = shutil._ntuple_diskusage(10, 10, NUM_SAMPLES * per_image - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    _writer(tmp_path / "plain", views=("latents",))
    with pytest.raises(OSError, match="MiB are needed"):
        _writer(tmp_path / "tokens", views=("latents",), tokens=TOKENS)
