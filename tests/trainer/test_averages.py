"""Averages of weights, and of the statistics of batch norms that belong to them."""

import copy
import json

import pytest
import torch
from torch import nn

from tcae_diffusers.trainer.averages import (
    WeightAverage,
    batch_statistics,
    kept_batch_statistics,
    trained_parameters,
)

from ..latent_commands import FOREIGN, assert_same_training_state, weights
from ..tokenizer_commands import checkpoint, train, train_interrupted


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))


def test_statistics_of_batch_norms_are_averaged_as_weights_are():
    module = network()
    average = WeightAverage(module, decay=0.5)
    expected = [value.clone() for value in batch_statistics(module)]
    assert len(expected) == 2
    for _ in range(3):
        module(torch.randn(8, 3, 4, 4))
        average.step(trained_parameters(module))
        decay = average.cur_decay_value
        pairs = zip(expected, batch_statistics(module), strict=True)
        expected = [decay * mean + (1 - decay) * value for mean, value in pairs]
    own = [value.clone() for value in batch_statistics(module)]
    average.store(trained_parameters(module))
    average.copy_to(trained_parameters(module))
    torch.testing.assert_close(batch_statistics(module), expected)
    average.restore(trained_parameters(module))
    assert all(torch.equal(*pair) for pair in zip(batch_statistics(module), own, strict=True))
    # Through a checkpoint and back.
    again = WeightAverage(network(), decay=0.5)
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    assert all(torch.equal(*pair) for pair in zip(again.shadow_statistics, average.shadow_statistics, strict=True))
    assert "shadow_statistics" not in WeightAverage(nn.Linear(2, 2), 0.5).state_dict()


def test_a_look_ahead_leaves_statistics_as_they_are():
    module = network()
    before = [value.clone() for value in batch_statistics(module)]
    with kept_batch_statistics(module):
        module(torch.randn(8, 3, 4, 4))
    assert all(torch.equal(*pair) for pair in zip(batch_statistics(module), before, strict=True))


@pytest.fixture
def with_batch_norm(tmp_path):
    """Options for an AutoencoderDC whose decoder has batch norms, as the published ones have."""
    config = {**FOREIGN["AutoencoderDC"]().config, "decoder_norm_types": "batch_norm"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderDC"}))
    options = {"autoencoder": tmp_path / "config.json", "autoencoder_overrides": None, "ssl": "none"}
    return {**options, "resolution": 16}


def test_a_run_with_batch_norms_resumes_as_if_nothing_had_happened(tmp_path, with_batch_norm):
    whole = train(tmp_path / "whole", **with_batch_norm)
    run = train_interrupted(tmp_path / "run", **with_batch_norm)
    assert_same_training_state(checkpoint(run), checkpoint(whole))
    ours, theirs = weights(run / "model"), weights(whole / "model")
    means = [name for name in ours if name.endswith("running_mean")]
    assert means and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    raw = weights(checkpoint(whole))
    assert not any(torch.equal(theirs[name], raw[f"autoencoder.{name}"]) for name in means)
