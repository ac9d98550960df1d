"""When a run warns of a collapsing teacher."""

import math

from tcae_diffusers.self_supervision.collapse_monitor import CollapseMonitor

HEALTHY = {"teacher_class_entropy": 1.0, "teacher_class_mean_entropy": 2.0}
ONE_HOT = {"teacher_class_entropy": 0.01, "teacher_class_mean_entropy": 0.02}


def warnings(monitor, entries, first_step=1000):
    return [monitor.add(first_step + step, entry) for step, entry in enumerate(entries)]


def test_nothing_is_said_in_the_first_steps():
    monitor = CollapseMonitor(16, first_step=300, window=3)
    assert warnings(monitor, [ONE_HOT] * 20, first_step=0) == [None] * 20


def test_a_collapse_is_said_once_per_window_and_a_single_odd_entry_never():
    monitor = CollapseMonitor(16, window=4)
    said = warnings(monitor, [ONE_HOT] * 8)
    assert [message is not None for message in said] == [False, False, False, True] * 2
    assert "one-hot collapse of the class tokens" in said[3]
    assert warnings(CollapseMonitor(16, window=4), [HEALTHY, HEALTHY, ONE_HOT, HEALTHY] * 3) == [None] * 12


def test_patch_tokens_are_judged_by_their_own_prototypes_and_missing_ones_are_passed_over():
    uniform = {"teacher_patch_entropy": math.log(8), "teacher_patch_mean_entropy": math.log(8)}
    unmasked = {"teacher_patch_entropy": math.nan, "teacher_patch_mean_entropy": math.nan}
    entries = [{**HEALTHY, **patch} for patch in (uniform, unmasked, unmasked)]
    assert "uniform collapse of the patch" in warnings(CollapseMonitor(64, 8, window=3), entries)[-1]
    assert "constant collapse of the patch" in warnings(CollapseMonitor(64, 64, window=3), entries)[-1]
    assert warnings(CollapseMonitor(64, window=3), [{**HEALTHY, **unmasked}] * 3) == [None] * 3
