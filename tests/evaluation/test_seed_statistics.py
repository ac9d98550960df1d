"""Differences over training seeds: against scipy's own tests and simulation, and through the command."""

import json

import numpy as np
import pytest
from scipy import stats

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.figure_differences import comparison_table
from tcae_diffusers.evaluation.results.kinds.study_unit import MeasuredPart, StudyUnitResult
from tcae_diffusers.evaluation.results.seed_statistics import SeedDifference, holm, paired_over_seeds

from .conftest import evaluate


def test_intervals_and_p_values_are_those_of_the_paired_t_test():
    generator = np.random.default_rng(0)
    for count in (2, 3, 5, 9):
        first, second = generator.normal(3, 2, count), generator.normal(2, 1, count)
        found = paired_over_seeds(dict(enumerate(first)), {**dict(enumerate(second)), 99: 0.0})
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval(0.95)
        assert found.seeds == list(range(count))
        assert found.mean == pytest.approx(float((low + high) / 2))
        assert found.interval == pytest.approx(float((high - low) / 2))
        assert found.p_value == pytest.approx(float(test.pvalue))
    assert paired_over_seeds({0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0}) is None


def test_seeds_that_do_not_vary_leave_no_doubt():
    assert SeedDifference(1.0, 0.0, [0, 1]).p_value == 0.0
    assert SeedDifference(0.0, 0.0, [0, 1]).p_value == 1.0


def test_holm_is_the_step_down_of_bonferroni():
    # The example of Holm's procedure with four hypotheses at 0.05: the first and the last but one are found.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]
    # Definition: an adjusted value is the least level at which the procedure rejects.
    p_values = np.random.default_rng(1).uniform(0, 0.1, 7)
    for index, adjusted in enumerate(holm(list(p_values))):
        assert rejected(p_values, index, adjusted * 1.0001) and not rejected(p_values, index, adjusted * 0.9999)


def rejected(p_values, index, level):
    """Holm's procedure, step by step."""
    for rank, place in enumerate(np.argsort(p_values)):
        if p_values[place] > level / (len(p_values) - rank):
            return False
        if place == index:
            return True


@pytest.mark.parametrize(("count", "level"), [(3, 0.05), (5, 0.05), (5, 0.01)])
def test_the_smallest_detectable_difference_is_found_in_four_of_five_simulated_studies(count, level):
    effect = SeedDifference(0.0, 2.0, list(range(count))).smallest_detectable(level)
    draws = np.random.default_rng(count).normal(effect, 2.0, (20_000, count))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < level
    assert found.mean() == pytest.approx(0.8, abs=0.012)


def unit(folder, arm, seed, value, dit_steps=500, name="gFD-x", measured=None):
    entry = {"name": name, "value": value, "samples": 100, "better": "lower", "interval": 50.0}
    data = {"spec": "images", "fingerprint": "x"}
    part = MeasuredPart(measure="generation", figures=[entry], data=data, dit_steps=dit_steps)
    path = folder / f"{arm}-seed{seed}.json"
    made = StudyUnitResult(study="s", arm=arm, seed=seed, commit="c", parts=[part], cost={}, path=path)
    made.save(path)
    return made


def test_runs_are_paired_by_seed_and_judged_as_a_family(tmp_path):
    """What all arms of a seed share does not hide a difference, and an interval over images plays no part."""
    shared, units = {0: 0.0, 1: 300.0, 2: -200.0}, []
    for seed, common in shared.items():
        units.append(unit(tmp_path, "a", seed, 1000 + common))
        units.append(unit(tmp_path, "b", seed, 900 + common + seed))
        units.append(unit(tmp_path, "c", seed, 1000 + common + 40 * (seed - 1)))
    (row,) = comparison_table(units)
    assert row["conditions"]["DiT steps"] == 500
    assert row["values"]["a"]["value"] == pytest.approx(1000 + 100 / 3)
    assert row["values"]["a"]["by_seed"] == {0: 1000.0, 1: 1300.0, 2: 800.0}
    pairs = {(pair["first"], pair["second"]): pair for pair in row["differences"]}
    near = pairs["a", "b"]
    assert near["difference"] == pytest.approx(99.0) and near["larger"] and near["better"] == "b"
    expected = stats.ttest_rel([1000, 1300, 800], [900, 1201, 702]).pvalue
    assert near["p_value"] == pytest.approx(float(expected)) and near["p_holm"] == pytest.approx(3 * float(expected))
    assert near["smallest_detectable"] == pytest.approx(
        SeedDifference(99, 1.0, [0, 1, 2]).smallest_detectable(0.05 / 3)
    )
    assert not pairs["a", "c"]["larger"] and pairs["a", "c"]["better"] is None
    # Alone, a minus b would be significant; the family decides.
    weak = [unit(tmp_path, "d", seed, 1000 + common - (20, 22, 30)[seed]) for seed, common in shared.items()]
    alone = comparison_table([each for each in units if each.arm == "a"] + weak)[0]["differences"][0]
    assert alone["larger"] and alone["p_holm"] == alone["p_value"]
    among = {(p["first"], p["second"]): p for p in comparison_table([*units, *weak])[0]["differences"]}["a", "d"]
    assert among["p_value"] == alone["p_value"] < 0.05 < among["p_holm"] and not among["larger"]


def test_one_seed_has_no_interval_and_two_records_of_one_are_refused(tmp_path):
    units = [unit(tmp_path, arm, 0, value) for arm, value in (("a", 1.0), ("b", 2.0))]
    (pair,) = comparison_table(units)[0]["differences"]
    assert pair["interval"] is None and pair["larger"] is None and "p_value" not in pair
    with pytest.raises(InputError, match="a has two results for gFD-x"):
        comparison_table([*units, unit(tmp_path, "a", 0, 3.0)])
    # Figures after other numbers of steps are not subtracted.
    assert len(comparison_table([*units, unit(tmp_path, "a", 0, 3.0, dit_steps=2000)])) == 2


def test_the_command_compares_the_arms_of_a_folder_of_records(tmp_path, capsys):
    for arm, value in (("a", 10.0), ("b", 20.0)):
        for seed in range(3):
            unit(tmp_path / "results", arm, seed, value + seed / 10 + (arm == "b") * seed / 20)
    command = ["compare", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "out")]
    assert evaluate(*command) == 0
    assert "a is better (3 seeds, Holm's p" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored["subjects"] == ["a", "b"] and stored["rows"][0]["differences"][0]["seeds"] == [0, 1, 2]
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "could have shown" in html and "Cost of b, seed 2" in html
    assert evaluate(*command, "--figures", "gFD-y") == 2
    assert "no figure 'gFD-y'; expected one of gFD-x" in capsys.readouterr().err
