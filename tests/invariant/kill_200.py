"""The stress run beside `test_tokenizer_kill.py`, which `make test` does not collect: 200 kills of each phase."""

from collections import Counter

import pytest

from .. import tokenizer_commands
from ..tokenizer_kills import LONG, kill_and_resume


@pytest.mark.slow
def test_killed_200_times_in_joint_training(tmp_path):
    whole = tokenizer_commands.train(tmp_path / "whole", **LONG)
    hits = kill_and_resume(tokenizer_commands.train, tmp_path / "run", whole, kills=200, seed=1)
    print(f"\nsteps saved at each kill: {sorted(Counter(hits).items())}")
    assert len(hits) == 200
