"""What a command sets before torch is imported."""

import os
import subprocess
import sys

import pytest

from tcae_diffusers.command import SPIN_COUNT, limit_spinning


@pytest.mark.parametrize(
    ("given", "spin_count"),
    [({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_briefly_unless_the_environment_says_how_they_wait(monkeypatch, given, spin_count):
    monkeypatch.setattr(os, "environ", dict(given))
    limit_spinning()
    assert os.environ == given | ({} if spin_count is None else {"GOMP_SPINCOUNT": spin_count})


def test_the_first_line_of_a_command_is_its_own_and_torch_is_imported_with_its_settings(tmp_path):
    code = """
import importlib.abc, os, sys
from tcae_diffusers.training.commands import train_tcae

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ["GOMP_SPINCOUNT"])

sys.meta_path.insert(0, Watch())
train_tcae(["--output_dir", sys.argv[1], "--autoencoder", "no-such-preset"])
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(SPIN_COUNT)]
    (line,) = done.stderr.splitlines()
    assert "error: --autoencoder no-such-preset" in line and done.returncode == 2
