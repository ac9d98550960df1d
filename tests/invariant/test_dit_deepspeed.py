"""`train_dit` with DeepSpeed's ZeRO over two gloo ranks equals `train_dit` without; needs DeepSpeed."""

import errno
import functools
import os
import signal

import pytest
import torch
from accelerate import DistributedType, PartialState

from tcae_diffusers.trainer import deepspeed_zero
from tcae_diffusers.training import train_dit

from ..accelerate_configs import launch_environment
from ..latent_commands import assert_close, assert_equal, calibrated, fork_ranks, home, tensors_of, train, weights

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

# As in test_dit_sharded.py: clipping is active, and the large epsilon keeps weights a smooth function of gradients.
SMALL = {"train_batch_size": 2, "num_layers": 2, "max_grad_norm": 0.1, "adam_epsilon": 1e-3}
VARIANTS = {
    "zero-2": {
        **SMALL,
        "extra_ema_decays": [0.9],
        "posthoc_ema_sigmas": [0.05],
        "posthoc_ema_steps": 3,
        "sample_steps": 3,
        "pipeline_steps": 3,
    },
    "zero-1": {**SMALL, "train_batch_size": 1, "gradient_accumulation_steps": 2},
    "zero-2 bf16": {
        **SMALL,
        "transformer": "tc-dit",
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
    },
}
STAGES = {"zero-1": 1, "zero-2": 2, "zero-2 bf16": 2}


@pytest.fixture(autouse=True, scope="module")
def deepspeed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield pytest.importorskip("deepspeed")


def use_deepspeed(stage):
    """Let this process's `train_dit` run under DeepSpeed on the CPU, as the shipped configuration has it."""
    import deepspeed.comm.torch

    # Shared memory between ranks, which would be compiled first; gloo does without.
    deepspeed.comm.torch.build_shm_op = lambda: None
    os.environ.pop("ACCELERATE_USE_CPU")
    os.environ.update(launch_environment("deepspeed_zero2", num_processes=2, zero_stage=stage))
    os.environ["LOCAL_SIZE"] = "2"
    start_accelerator, optimize = train_dit.start_accelerator, train_dit.optimize

    def start_zero(*arguments):
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        return start_accelerator(*arguments)

    def checked(run, *arguments):
        assert run.model.zero_optimization_stage() == stage
        optimize(run, *arguments)
        (state,) = run.optimizer.optimizer.state.values()
        assert state["exp_avg"].numel() < 0.6 * run.pipeline.transformer.num_parameters()
        assert all(parameter.dtype == torch.float32 for parameter in run.pipeline.transformer.parameters())

    train_dit.start_accelerator, train_dit.optimize = start_zero, checked


def train_on_two_ranks(folder, stage, before=lambda rank: None, **options):
    """`train_dit` in two forked processes; `before(rank)` is called in each. Returns their exit codes."""
    # Before there are two processes that would both make it.
    calibrated()

    def rank_run(rank):
        if stage is not None:
            use_deepspeed(stage)
        before(rank)
        train(folder, **options)

    return fork_ranks(rank_run)


@functools.cache
def uninterrupted(name, sharded):
    folder = home() / f"{name} {'sharded' if sharded else 'whole'}"
    assert train_on_two_ranks(folder, STAGES[name] if sharded else None, **VARIANTS[name]) == [0, 0]
    return folder


def state_of(checkpoint):
    """All tensors and numbers of a checkpoint, but for random states."""
    read = deepspeed_zero.CheckpointFiles(None).load
    files = [*(checkpoint / "pytorch_model").glob("*.pt"), *checkpoint.glob("custom_checkpoint_*.pkl")]
    return {key: torch.as_tensor(v) for file in files for key, v in tensors_of(read(file), file.name).items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_what_they_train_without_deepspeed(name):
    whole, sharded = uninterrupted(name, sharded=False), uninterrupted(name, sharded=True)
    exported = sorted(path.parent.relative_to(whole) for path in whole.rglob("diffusion_pytorch_model.safetensors"))
    assert len(exported) == {"zero-2": 5}.get(name, 2)
    for part in exported:
        assert_close(weights(sharded / part), weights(whole / part))
    if name == "zero-2":
        assert_close(weights(sharded / "ema_snapshots"), weights(whole / "ema_snapshots"))
    last = "checkpoints/step-00000006"
    trained = torch.load(sharded / last / "pytorch_model/mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert_close(trained, weights(whole / last))
    for file in (whole / last).glob("custom_checkpoint_*.pkl"):
        ours, theirs = (tensors_of(torch.load(run / last / file.name, weights_only=True)) for run in (sharded, whole))
        assert_close(*({k: torch.as_tensor(v) for k, v in state.items()} for state in (ours, theirs)))


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_after_2_of_6_steps_and_resumed_equals_uninterrupted(tmp_path, name):
    options, stage = VARIANTS[name], STAGES[name]

    def stop_in_second_step(rank):
        step, calls = train_dit.compute_losses, []

        def interrupted(*arguments):
            calls.append(1)
            if rank == 1 and len(calls) == options.get("gradient_accumulation_steps", 1) + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        train_dit.compute_losses = interrupted

    assert train_on_two_ranks(tmp_path, stage, before=stop_in_second_step, **options) == [0, 0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert train_on_two_ranks(tmp_path, stage, **options, resume="latest") == [0, 0]
    expected = uninterrupted(name, sharded=True)
    ours, theirs = (state_of(run / "checkpoints/step-00000006") for run in (tmp_path, expected))
    assert any("exp_avg" in key for key in ours) and any("shadow_params" in key for key in ours)
    assert_equal(ours, theirs)
    part = "pipeline/transformer"
    assert_equal(weights(tmp_path / part), weights(expected / part))


@pytest.mark.parametrize("spoiled", ["loss and gradient", "loss alone"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path, spoiled):
    def spoil_third_step(rank):
        step, calls = train_dit.compute_losses, []

        def spoil(*arguments):
            calls.append(1)
            losses = step(*arguments)
            if rank == 1 and len(calls) == 3:
                loss = losses["loss"]
                losses["loss"] = loss * float("nan") if spoiled == "loss and gradient" else loss + float("inf")
            return losses

        train_dit.compute_losses = spoil

    for stage in (2, None):
        assert train_on_two_ranks(tmp_path / f"{stage}", stage, before=spoil_third_step, **SMALL) == [0, 0]
    states = [weights(tmp_path / f"{stage}" / "pipeline/transformer") for stage in (2, None)]
    assert_close(*states)
    assert all(value.isfinite().all() for value in states[0].values())
    for stage in (2, None):
        guard = torch.load(tmp_path / f"{stage}/checkpoints/step-00000006/custom_checkpoint_1.pkl", weights_only=True)
        assert (guard["skipped"], guard["in_a_row"]) == (1, 0)


def test_a_checkpoint_of_other_sharding_is_refused(tmp_path, capfd):
    for stage, other in ((2, None), (None, 2), (1, 2)):
        folder = tmp_path / f"{stage} {other}"
        assert train_on_two_ranks(folder, stage, **SMALL, max_train_steps=2) == [0, 0]
        capfd.readouterr()
        assert train_on_two_ranks(folder, other, **SMALL, max_train_steps=2, resume="latest") == [2, 2]
        assert "its sharding is" in capfd.readouterr().err


@pytest.mark.parametrize("broken_rank", [0, 1])
def test_a_disk_that_fills_on_one_rank_ends_both_instead_of_leaving_one_waiting(tmp_path, capfd, broken_rank):
    def fill(rank):
        save = torch.save

        def full(state, file, *arguments, **options):
            if rank == broken_rank and "step-00000006" in str(file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return save(state, file, *arguments, **options)

        torch.save = full

    assert train_on_two_ranks(tmp_path, 2, before=fill, **SMALL) == [2, 2]
    assert "the disk is full" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero_stage: 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device"),
    ],
)
def test_the_command_refuses_what_is_not_supported_by_name(tmp_path, capfd, setting, named):
    def set_variables(rank):
        os.environ.update(setting)

    assert train_on_two_ranks(tmp_path / "run", 2, before=set_variables, **SMALL) == [2, 2]
    assert named in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
