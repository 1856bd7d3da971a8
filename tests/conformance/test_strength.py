"""The suite convicts wrong backends, and frees right ones."""

import numpy as np
import pytest

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.reference import SpecBackend
from refinedet.conformance.judge import Subject, Violation
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.runner import judge, select

from .defects import DEFECTS, wrong_backend

SEEDS = [0, *np.random.default_rng(2018).integers(0, 2**32, 10).tolist()]


def test_there_are_enough_defects():
    assert len(DEFECTS) >= 80
    assert len({(d.check, d.module, d.name) for d in DEFECTS}) == len(DEFECTS)
    assert {d.check for d in DEFECTS} <= CHECKS.keys()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.check}: {d.name}")
def test_every_defect_is_convicted_by_its_check(defect, tmp_path):
    check, backend = CHECKS[defect.check], wrong_backend(defect, tmp_path)
    for seed in SEEDS:
        with pytest.raises(Violation) as caught:
            judge(check, Subject(backend), number=seed, shrink=False)
        if any(caught.value.case is case for case in check.pinned):
            break  # pinned cases come first, whatever the seed


@pytest.mark.parametrize("check", [c for c in select() if not c.given], ids=lambda c: c.name)
def test_the_contract_is_never_convicted(check):
    for seed in SEEDS if check.share else SEEDS[:1]:
        judge(check, Subject(SpecBackend()), number=seed)
