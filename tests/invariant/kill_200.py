"""The stress run beside `test_tokenizer_kill.py`, which `make test` does not collect: 200 kills of each phase."""

from collections import Counter

import pytest

from ..tokenizer_commands import finetune, train
from ..tokenizer_kills import LONG, kill_and_resume


@pytest.mark.slow
@pytest.mark.parametrize("command", [train, finetune], ids=["joint training", "decoder"])
def test_killed_200_times_at_random_moments_and_resumed_equals_uninterrupted(tmp_path, command):
    whole = command(tmp_path / "whole", **LONG)
    hits = kill_and_resume(command, tmp_path / "run", whole, kills=200, seed=1)
    print(f"\nsteps saved at each kill: {sorted(Counter(hits).items())}")
    assert len(hits) == 200
