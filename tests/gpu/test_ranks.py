"""Two ranks that `accelerate launch` starts learn what one learns: NCCL on two GPUs, gloo as the rehearsal."""

import os
import subprocess
import sys

import pytest

from ..latent_commands import home
from ..tokenizer_commands import OPTIONS, SMOOTH, assert_close_state, train, with_effect
from .conftest import needs_gpus


def launch_two(folder, environment, **options) -> None:
    """`train_tcae` in two processes of this machine, each as a user starts it."""
    options = {**with_effect(OPTIONS, options), "train_data": home() / "images", **options, "output_dir": folder}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tcae_diffusers.training.train_tcae", *argv],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
def test_two_ranks_equal_one(device, tmp_path):
    if device == "cuda":
        needs_gpus(2)
    whole = train(tmp_path / "whole", **SMOOTH, train_batch_size=8)
    launch_two(tmp_path / "divided", {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}, **SMOOTH)
    assert_close_state(tmp_path / "divided", whole)
