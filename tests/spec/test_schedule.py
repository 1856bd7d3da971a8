"""Learning rate: published schedules, hand arithmetic, and laws."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinedet.spec.config import ScheduleConfig
from refinedet.spec.presets import preset
from refinedet.spec.schedule import learning_rate
from refinedet.spec.unread import without_unread

from .strategies import refused


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-3), (79_999, 1e-3), (80_000, 1e-4), (99_999, 1e-4), (100_000, 1e-5), (119_999, 1e-5)],
)
def test_the_authors_schedule(step, rate):
    # Solver of the authors' VOC07 release: 1e-3, a tenth at 80k and 100k, 120k steps.
    schedule = preset("refinedet_vgg16_320").schedule
    assert learning_rate(step, schedule) == pytest.approx(rate, rel=1e-12)


def test_warm_up_by_hand():
    schedule = ScheduleConfig(
        steps=10, rate=0.5, warmup_steps=4, warmup_rate=0.1, milestones=(6, 8), factor=0.5
    )
    # 0.1, then 0.4 / 4 more each step; 0.5 at step 4; half of it from 6 and from 8 on.
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [learning_rate(s, schedule) for s in range(10)] == pytest.approx(expected, rel=1e-12)


def test_cosine_by_hand():
    # 0.1 + 0.8 * (1 + cos(pi * d)) / 2 for d = 0, 1/4, 1/2, 3/4: cos is 1, r, 0, -r.
    schedule = ScheduleConfig(
        "cosine", steps=6, rate=0.9, warmup_steps=2, warmup_rate=0.5, final_rate=0.1
    )
    r = math.sqrt(0.5)
    expected = [0.5, 0.7, 0.9, 0.1 + 0.4 * (1 + r), 0.5, 0.1 + 0.4 * (1 - r)]
    assert [learning_rate(s, schedule) for s in range(6)] == pytest.approx(expected, rel=1e-12)


def test_cosine_has_no_milestones_and_multistep_no_final_rate():
    cosine = {"kind": "cosine", "steps": 10, "rate": 1.0}
    a, b = ScheduleConfig(**cosine, milestones=()), ScheduleConfig(**cosine)
    assert [learning_rate(s, a) for s in range(10)] == [learning_rate(s, b) for s in range(10)]
    with refused("schedule.milestones: is not read with kind cosine; leave it out"):
        ScheduleConfig(**cosine, milestones=(2,))
    with refused("schedule.final_rate: is not read with kind multistep; leave it out"):
        ScheduleConfig(steps=10, rate=1.0, milestones=(), final_rate=0.5)
    multistep = ScheduleConfig(steps=10, rate=1.0, milestones=())
    assert [learning_rate(s, multistep) for s in range(10)] == [1.0] * 10


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_a_step_outside_the_training_is_refused(step):
    with refused(f"step: {step} is outside 0..9"):
        learning_rate(step, ScheduleConfig(steps=10))


def test_a_training_that_only_warms_up():
    schedule = ScheduleConfig("cosine", steps=2, rate=1.0, warmup_steps=2, milestones=())
    assert [learning_rate(s, schedule) for s in range(2)] == [0.0, 0.5]


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 40))
    warmup = draw(st.integers(0, steps))
    rate = draw(st.floats(1e-3, 10))
    milestones = draw(st.sets(st.integers(warmup + 1, 60), max_size=3))
    fields = {
        "kind": draw(st.sampled_from(["multistep", "cosine"])),
        "steps": steps,
        "rate": rate,
        "warmup_steps": warmup,
        "warmup_rate": rate * draw(st.floats(0, 1)),
        "milestones": tuple(sorted(milestones)),
        "factor": draw(st.floats(0, 1)),
        "final_rate": rate * draw(st.floats(0, 1)),
    }
    return ScheduleConfig(**without_unread(ScheduleConfig, fields, ()))


@given(schedule=schedules())
def test_it_rises_to_the_rate_without_a_jump_and_never_rises_again(schedule):
    rates = [learning_rate(s, schedule) for s in range(schedule.steps)]
    warm = schedule.warmup_steps
    slack = 1e-12 * schedule.rate
    pairs = list(pairwise(rates))
    assert all(a <= b + slack for a, b in pairs[:warm])
    assert all(a >= b - slack for a, b in pairs[warm:])
    if warm:
        assert rates[0] == schedule.warmup_rate
        rise = (schedule.rate - schedule.warmup_rate) / warm
        assert all(b - a == pytest.approx(rise, abs=slack) for a, b in pairs[:warm])
    if warm < schedule.steps:
        assert rates[warm] == pytest.approx(schedule.rate, rel=1e-12)


@given(schedule=schedules())
def test_a_longer_training_with_the_same_milestones_begins_the_same(schedule):
    if schedule.kind == "multistep":
        longer = ScheduleConfig(**{**vars(schedule), "steps": schedule.steps + 5})
        for step in range(schedule.steps):
            assert learning_rate(step, schedule) == learning_rate(step, longer)
