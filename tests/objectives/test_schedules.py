import math

import pytest

from tcae_diffusers.objectives import schedules


def test_cosine_with_warmup_is_linear_then_half_a_cosine():
    values = [schedules.cosine_with_warmup(step, 14, 1.0, 0.1, warmup_steps=4) for step in range(14)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * i / 9)) for i in range(10)]
    assert values[4:] == pytest.approx(expected)
    assert values[-1] == pytest.approx(0.1)


def test_published_endpoints():
    assert schedules.teacher_momentum(0, 100) == pytest.approx(0.996)
    assert schedules.teacher_momentum(99, 100) == pytest.approx(1.0)
    assert schedules.weight_decay(0, 100) == pytest.approx(0.04)
    assert schedules.weight_decay(99, 100) == pytest.approx(0.4)
    assert schedules.teacher_temperature(0, 100) == pytest.approx(0.04)
    assert schedules.teacher_temperature(15, 100) == pytest.approx(0.055)
    assert schedules.teacher_temperature(30, 100) == schedules.teacher_temperature(99, 100) == pytest.approx(0.07)


def test_steps_past_the_end_keep_the_last_value():
    assert schedules.cosine_with_warmup(500, 10, 1.0, 0.2) == pytest.approx(0.2)
    assert schedules.cosine_with_warmup(0, 1, 1.0, 0.2) == pytest.approx(1.0)
    assert schedules.cosine_with_warmup(3, 4, 1.0, 0.2, warmup_steps=4) == pytest.approx(1.0)
    assert schedules.teacher_temperature(0, 10, warmup_fraction=0.0) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.cosine_with_warmup(0, 0, 1.0, 0.0), "total_steps is 0"),
        (lambda: schedules.cosine_with_warmup(0, 5, 1.0, 0.0, warmup_steps=6), "warmup_steps is 6"),
        (lambda: schedules.teacher_temperature(0, 5, warmup_fraction=2), "warmup_fraction is 2"),
    ],
)
def test_wrong_lengths_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
