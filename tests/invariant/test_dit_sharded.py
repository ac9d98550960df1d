"""`train_dit` with parameters sharded by FSDP2 over two gloo ranks equals `train_dit` with whole ones."""

import errno
import functools
import os
import shutil

import pytest
import torch
from accelerate import DistributedType, PartialState
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.tensor import DTensor

from tcae_diffusers.models.tcae.transformer_tc_dit import TCDiTFeedForward
from tcae_diffusers.training import online_frechet, train_dit

from ..accelerate_configs import launch_environment
from ..latent_commands import (
    assert_close,
    assert_equal,
    calibrated,
    fork_ranks,
    home,
    signalling,
    tensors_of,
    train,
    weights,
    with_tokens,
)

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

# Clipping is active. The large epsilon keeps weights a smooth function of the gradients: Adam turns the rounding noise
# of one that is zero, such as that of the keys' bias, into steps of full size.
SMALL = {"train_batch_size": 2, "num_layers": 2, "max_grad_norm": 0.1, "adam_epsilon": 1e-3}
VARIANTS = {
    "dit": {
        **SMALL,
        "extra_ema_decays": [0.9],
        "posthoc_ema_sigmas": [0.05, 0.1],
        "posthoc_ema_steps": 3,
        "sample_steps": 3,
        "pipeline_steps": 3,
        # An odd number, so the ranks draw unequal shares.
        "gfd_steps": 3,
        "gfd_samples": 9,
    },
    "tc-dit": {
        **SMALL,
        "transformer": "tc-dit",
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "repa_weight": 0.5,
        "repa_projector_width": 8,
    },
    # Two heads of 32: Muon trains matrices of 64x64 and more.
    "muon": {**SMALL, "optimizer": "muon", "attention_head_dim": 32},
}


def shard(command=train_dit, **environment):
    """Let this process's `command` shard; accelerate itself does so on accelerators only."""
    os.environ.update({**launch_environment("fsdp2", num_processes=2), **environment})
    start_accelerator, start = command.start_accelerator, command.start

    def start_sharded(*arguments):
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return start_accelerator(*arguments)

    def checked(arguments):
        training = start(arguments)
        parameters = list(training.side.model.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        assert sum(p.to_local().numel() for p in parameters) < 0.7 * sum(p.numel() for p in parameters)
        return training

    command.start_accelerator, command.start = start_sharded, checked


def save_distances(folder):
    """Let this process's runs write each online distance to a file of `folder`."""
    log = online_frechet.OnlineFrechet.log

    def written(self, accelerator, ema, step):
        distance = log(self, accelerator, ema, step)
        (folder / f"distance-{accelerator.process_index}-{step}").write_text(repr(distance))

    online_frechet.OnlineFrechet.log = written


def train_on_ranks(folder, sharded, before=lambda rank: None, ranks=2, **options):
    """`train_dit` in forked processes; `before(rank)` is called in each. Returns their exit codes."""
    folder.mkdir(exist_ok=True)
    # Before there are processes that would all make it.
    calibrated()
    if "repa_weight" in options:
        options["latents"] = with_tokens()

    def rank_run(rank):
        before(rank)
        if sharded:
            shard()
        save_distances(folder)
        train(folder / "run", **options)

    return fork_ranks(rank_run, world_size=ranks)


@functools.cache
def uninterrupted(name, sharded):
    options = VARIANTS[name]
    if "gfd_steps" in options:
        options = {**options, "gfd_reference": home() / "images"}
    folder = home() / f"{name} {'sharded' if sharded else 'whole'}"
    assert train_on_ranks(folder, sharded, **options) == [0, 0]
    return folder


def sharded_state(checkpoint, scratch):
    """All tensors and numbers of a sharded checkpoint, put together."""
    parts = ("pytorch_model_fsdp_0", "optimizer_0", "averages")

    def put_together(rank):
        for part in parts:
            dcp_to_torch_save(checkpoint / part, scratch / f"{part}.pt")

    # In a process of its own: reading starts threads, and ones with threads cannot fork further ranks.
    assert fork_ranks(put_together, world_size=1) == [0]
    found = {}
    for part in parts:
        found |= tensors_of(torch.load(scratch / f"{part}.pt", weights_only=True), part)
    found |= tensors_of(torch.load(checkpoint / "custom_checkpoint_0.pkl", weights_only=True), "guard")
    return {key: torch.as_tensor(value) for key, value in found.items()}


def last_checkpoint(folder):
    return folder / "run" / "checkpoints" / "step-00000006"


@pytest.mark.parametrize("name", VARIANTS)
def test_two_sharded_ranks_train_what_two_whole_ones_train(tmp_path, name):
    whole, sharded = uninterrupted(name, sharded=False), uninterrupted(name, sharded=True)
    state = sharded_state(last_checkpoint(sharded), tmp_path)
    for key, value in weights(last_checkpoint(whole)).items():
        torch.testing.assert_close(state[f"pytorch_model_fsdp_0/model/{key}"], value, atol=1e-5, rtol=1e-4)
    exported = sorted(path.parent.relative_to(whole) for path in whole.rglob("diffusion_pytorch_model.safetensors"))
    assert len(exported) == {"dit": 5}.get(name, 2)
    snapshots = sorted(path.relative_to(whole) for path in whole.rglob("run/ema_snapshots/*"))
    assert len(snapshots) == {"dit": 4}.get(name, 0)
    for part in exported:
        assert_close(weights(sharded / part), weights(whole / part))
        assert (sharded / part / "config.json").read_text() == (whole / part / "config.json").read_text()
    if snapshots:
        assert sorted(path.relative_to(sharded) for path in sharded.rglob("run/ema_snapshots/*")) == snapshots
        assert_close(weights(sharded / "run/ema_snapshots"), weights(whole / "run/ema_snapshots"))
    assert (sharded / "run/run.json").read_text() == (whole / "run/run.json").read_text()


def test_activations_recomputed_by_the_launch_configuration_change_no_bit(tmp_path):
    options = {**VARIANTS["tc-dit"], "gradient_checkpointing": False, "latents": with_tokens()}
    expected = sharded_state(last_checkpoint(uninterrupted("tc-dit", sharded=True)), tmp_path)

    def rank_run(rank):
        calls = []
        forward = TCDiTFeedForward.forward

        def counted(self, hidden_states):
            if torch.is_grad_enabled():
                calls.append(self)
            return forward(self, hidden_states)

        TCDiTFeedForward.forward = counted
        shard(FSDP_ACTIVATION_CHECKPOINTING="true")
        train(tmp_path / "run", **options)
        # In each of two layers, for both halves of 6 steps, once forward and once for the gradients.
        assert len(calls) == 2 * 2 * 6 * 2, len(calls)

    assert fork_ranks(rank_run) == [0, 0]
    (tmp_path / "recomputed").mkdir()
    assert_equal(sharded_state(last_checkpoint(tmp_path), tmp_path / "recomputed"), expected)


def test_the_online_distance_of_sharded_ranks_is_that_of_whole_ones():
    whole, sharded = uninterrupted("dit", sharded=False), uninterrupted("dit", sharded=True)
    distances = sorted(path.name for path in whole.glob("distance-*"))
    assert distances == ["distance-0-3", "distance-0-6", "distance-1-3", "distance-1-6"]
    for name in distances:
        expected = float((whole / name).read_text())
        assert expected > 0
        assert float((sharded / name).read_text()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_after_2_of_6_steps_and_resumed_equals_uninterrupted(tmp_path, name):
    options = {key: value for key, value in VARIANTS[name].items() if key not in ("gfd_steps", "gfd_samples")}

    def stop_in_second_step(rank):
        second = options.get("gradient_accumulation_steps", 1) + 1
        train_dit.compute_losses = signalling(train_dit.compute_losses, second if rank == 1 else None)

    folder = tmp_path / "stopped"
    assert train_on_ranks(folder, True, before=stop_in_second_step, **options) == [0, 0]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (folder / "run" / "pipeline").exists()
    assert train_on_ranks(folder, True, **options, resume="latest") == [0, 0]
    expected = uninterrupted(name, sharded=True)
    ours, theirs = (sharded_state(last_checkpoint(run), tmp_path) for run in (folder, expected))
    assert any("exp_avg" in key for key in ours) and any("shadow_params" in key for key in ours)
    assert_equal(ours, theirs)
    part = "run/pipeline/transformer"
    assert_equal(weights(folder / part), weights(expected / part))


def test_four_sharded_ranks_go_on_where_two_stopped(tmp_path):
    whole = uninterrupted("dit", sharded=True)
    folder = shutil.copytree(whole, tmp_path / "four")
    shutil.rmtree(last_checkpoint(folder))
    options = {key: value for key, value in VARIANTS["dit"].items() if key not in ("gfd_steps", "gfd_samples")}
    quarter = {**options, "train_batch_size": 1, "resume": "latest"}
    assert train_on_ranks(folder, True, ranks=4, **quarter) == [0] * 4
    assert_close(*(sharded_state(last_checkpoint(each), tmp_path) for each in (folder, whole)))


def test_a_checkpoint_of_whole_parameters_is_refused_by_sharded_ranks_and_the_other_way(tmp_path, capfd):
    for sharded in (True, False):
        folder = tmp_path / f"{sharded}"
        assert train_on_ranks(folder, sharded, **SMALL, max_train_steps=2) == [0, 0]
        capfd.readouterr()
        assert train_on_ranks(folder, not sharded, **SMALL, max_train_steps=2, resume="latest") == [2, 2]
        assert "its sharding is" in capfd.readouterr().err


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path):
    def spoil_third_step(rank):
        step, calls = train_dit.compute_losses, []

        def spoiled(*arguments):
            calls.append(1)
            losses = step(*arguments)
            return {**losses, "loss": losses["loss"] * float("nan")} if rank == 1 and len(calls) == 3 else losses

        train_dit.compute_losses = spoiled

    states = {}
    for sharded in (True, False):
        folder = tmp_path / f"{sharded}"
        assert train_on_ranks(folder, sharded, before=spoil_third_step, **SMALL) == [0, 0]
        states[sharded] = weights(folder / "run/pipeline/transformer")
    state = sharded_state(last_checkpoint(tmp_path / "True"), tmp_path)
    assert state["guard/skipped"] == 1 and state["guard/in_a_row"] == 0
    assert_close(states[True], states[False])
    assert all(value.isfinite().all() for value in states[True].values())


@pytest.mark.parametrize("broken_rank", [0, 1])
@pytest.mark.parametrize("part", ["pytorch_model_fsdp_0", "averages"])
def test_a_disk_that_fills_on_one_rank_ends_both_instead_of_leaving_one_waiting(tmp_path, capfd, broken_rank, part):
    def fill(rank):
        write = torch.distributed.checkpoint.FileSystemWriter.write_data

        def full(self, plan, planner: SavePlanner):
            if rank == broken_rank and f"step-00000006/{part}" in str(self.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, plan, planner)

        torch.distributed.checkpoint.FileSystemWriter.write_data = full

    assert train_on_ranks(tmp_path, True, before=fill, **SMALL) == [2, 2]
    assert "the disk is full" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
