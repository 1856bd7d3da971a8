"""The suite convicts wrong backends, and frees right ones."""

import copy
from dataclasses import replace

import numpy as np
import pytest

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.reference import SpecBackend
from refinedet.conformance.comparison import CheckedBackend, CheckFailedError
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.runner import judge, select

from .defects import DEFECTS, wrong_backend

SEEDS = [0, *np.random.default_rng(2018).integers(0, 2**32, 10).tolist()]


def test_there_are_enough_defects():
    assert len(DEFECTS) >= 80
    assert len({(d.check, d.module, d.name) for d in DEFECTS}) == len(DEFECTS)
    assert {d.check for d in DEFECTS} <= CHECKS.keys()


def judge_pinned(check, backend):
    """The pinned cases, which are the same for every seed, and what was counted of them."""
    subject = CheckedBackend(backend)
    for case in check.pinned:
        check.run(subject, copy.deepcopy(case))
    return subject


def judge_drawn(check, backend, pinned, seed, **options):
    """The cases that are drawn for a seed, as if the pinned ones had just been judged."""
    subject = CheckedBackend(backend, cases=pinned.cases, masked=pinned.masked)
    judge(replace(check, pinned=()), subject, number=seed, **options)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.check}: {d.name}")
def test_every_defect_is_convicted_by_its_check(defect, tmp_path):
    check, backend = CHECKS[defect.check], wrong_backend(defect, tmp_path)
    try:
        pinned = judge_pinned(check, backend)
    except CheckFailedError:
        return
    for seed in SEEDS:
        with pytest.raises(CheckFailedError):
            judge_drawn(check, backend, pinned, seed, shrink=False)


@pytest.mark.parametrize("check", [c for c in select() if not c.given], ids=lambda c: c.name)
def test_the_contract_is_never_convicted(check):
    pinned = judge_pinned(check, SpecBackend())
    for seed in SEEDS if check.share else SEEDS[:1]:
        judge_drawn(check, SpecBackend(), pinned, seed)
