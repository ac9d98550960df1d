import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext

import pytest

from tcae_diffusers import files
from tcae_diffusers.files import place_to_write, write_json


def killed_while_writing(path, monkeypatch):
    """A process dies by SIGKILL when all is written and nothing has its name yet."""
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(files.os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            write_json(path, {"half": True})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_no_failure_and_a_disk_that_fails_is(tmp_path, monkeypatch, code):
    sync = os.fsync

    def without_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", without_folders)
    with nullcontext() if code == errno.EINVAL else pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "a.json", {"whole": True})
    assert (tmp_path / "a.json").exists()


def test_a_write_clears_what_a_killed_one_left(tmp_path, monkeypatch):
    # Characters that mean something in a pattern.
    path = tmp_path / "run[0]*.json"
    killed_while_writing(path, monkeypatch)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".{path.name}.")
    write_json(tmp_path / "run.json", {})
    assert left.exists()
    write_json(path, {"whole": True})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.json", path.name]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_what_a_dead_process_of_this_machine_left_is_cleared(tmp_path, monkeypatch, kind):
    path = tmp_path / "data"
    own = place_to_write(path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        theirs = own.with_name(own.name.replace(f"-{os.getpid()}.", f"-{alive.pid}."))
        theirs.mkdir() if kind == "folder" else theirs.touch()
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(files.platform, "node", lambda: "another")
            assert place_to_write(path) != own and theirs.exists()
        assert place_to_write(path) == own and theirs.exists()
        alive.communicate(b"\n")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(files.platform, "node", lambda: "another")
        place_to_write(path)
    assert theirs.exists()
    place_to_write(path)
    assert not theirs.exists()
