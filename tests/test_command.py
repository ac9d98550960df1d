"""What a command sets before torch is imported."""

import os
import platform
import subprocess
import sys

import pytest

from tcae_diffusers.command import MALLOC_VARIABLES, SPIN_COUNT, limit_spinning


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(
    ("given", "cleared_again"), [({}, False), ({"MALLOC_MMAP_MAX_": "100"}, True), ({"GLIBC_TUNABLES": ""}, True)]
)
def test_memory_that_was_freed_is_used_again_unless_the_environment_sets_the_allocator(given, cleared_again):
    code = """
import resource
from tcae_diffusers.command import keep_freed_memory

keep_freed_memory()
for index in range(9):
    if index == 1:
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _ = b"x" * 2**26
    del _
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first) * resource.getpagesize() / 2**26)
"""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    times = float(done.stdout)  # that a block was cleared, of eight
    assert times > 7.5 if cleared_again else times < 0.5
