"""A study goes on from what it has, and shows no figures of other options as its own."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "studies" / "study_commands.py"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The module, whose commands only leave their result; `ran` lists them."""
    spec = importlib.util.spec_from_file_location("study_commands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result, ran = tmp_path / "run" / "pipeline", []

    def run(argv, check):
        ran.append(argv[3:])
        result.touch()

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    return SimpleNamespace(command=module.command, result=result, ran=ran)


def test_what_is_there_is_not_made_again(study):
    for _ in range(2):
        study.command("training.train_dit", "--max_train_steps", 4, result=study.result)
    assert study.ran == [["--max_train_steps", "4"]]


def test_a_result_of_other_options_is_refused(study):
    study.command("training.train_dit", "--max_train_steps", 4, result=study.result)
    with pytest.raises(SystemExit, match=r"pipeline belongs to another command, python -m .* 4; choose"):
        study.command("training.train_dit", "--max_train_steps", 8, result=study.result)
    # Deleted, it is made with these.
    study.result.unlink()
    study.command("training.train_dit", "--max_train_steps", 8, result=study.result)
    assert study.ran[-1] == ["--max_train_steps", "8"]
