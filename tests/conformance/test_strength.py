"""The suite detects wrong backends, and the specification passes."""

import copy
from dataclasses import replace

import numpy as np
import pytest

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.reference import SpecBackend
from refinedet.conformance.comparison import CheckedBackend, CheckFailedError
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.runner import run_check, select

from .defects import DEFECTS, wrong_backend

SEEDS = [0, *np.random.default_rng(2018).integers(0, 2**32, 10).tolist()]


def test_there_are_enough_defects():
    assert len(DEFECTS) >= 230
    assert len({(d.check, d.module, d.name) for d in DEFECTS}) == len(DEFECTS)
    assert {d.check for d in DEFECTS} <= CHECKS.keys()


def run_pinned(check, backend):
    """Run the pinned cases, which are the same for every seed; return their counts."""
    checked = CheckedBackend(backend)
    for case in check.pinned:
        check.run(checked, copy.deepcopy(case))
    return checked


def run_drawn(check, backend, pinned, seed, **options):
    """Run the cases drawn for a seed, as if the pinned ones had just been run."""
    checked = CheckedBackend(backend, compared=pinned.compared, undecided=pinned.undecided)
    run_check(replace(check, pinned=()), checked, seed=seed, **options)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.check}: {d.name}")
def test_every_defect_is_detected_by_its_check(defect, tmp_path):
    check, backend = CHECKS[defect.check], wrong_backend(defect, tmp_path)
    try:
        pinned = run_pinned(check, backend)
    except CheckFailedError:
        return
    for seed in SEEDS:
        with pytest.raises(CheckFailedError):
            run_drawn(check, backend, pinned, seed, shrink=False)


@pytest.mark.parametrize("check", select(), ids=lambda c: c.name)
def test_the_specification_always_passes(check):
    pinned = run_pinned(check, SpecBackend())
    for seed in SEEDS if check.share else SEEDS[:1]:
        run_drawn(check, SpecBackend(), pinned, seed)
