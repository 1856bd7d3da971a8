"""The process of a backend: crashes, hangs and wrong declarations are reported."""

import copy
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from refinedet.backends.reference import SpecBackend
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.options import SuiteOptions
from refinedet.conformance.registry import CHECKS
from refinedet.conformance.runner import (
    FAILED,
    LIMITED,
    NOT_IMPLEMENTED,
    PASSED,
    SuiteProcess,
    outcome_of,
    run_suite,
    select,
)
from refinedet.errors import BackendError

BACKENDS = """
import os, sys, time
from types import SimpleNamespace
from refinedet.backends.interface import Limitation
from refinedet.backends.operations import OPERATIONS
from refinedet.backends.reference import SpecBackend

COUNT = [0]

class Faulty(SpecBackend):
    name = "its own name"
    limitations = ()
    changed = {}

    @property
    def operations(self):
        return SimpleNamespace(**{**OPERATIONS, **self.changed})

class Crashes(Faulty):
    changed = {"box_iou": lambda a, b: os.abort()}

class Exits(Faulty):
    changed = {"box_iou": lambda a, b: os._exit(3)}

class Hangs(Faulty):
    changed = {"box_iou": lambda a, b: time.sleep(600)}

class Wrong(Faulty):
    changed = {"box_iou": lambda a, b: OPERATIONS["box_iou"](a, b) * (1 + (a == 0.5).any())}

class Declared(Wrong):
    limitations = (Limitation("box_iou.parity", "twice as much"),)

class Holds(Faulty):
    limitations = (Limitation("box_iou.parity", "no longer"),)

class CrashDeclared(Crashes):
    limitations = (Limitation("box_iou.parity", "ends the process", crashes=True),)

class Unknown(Faulty):
    limitations = (Limitation("box_iou.nonsense", "none"),)

class Partial(Faulty):
    operations = SimpleNamespace(anchors=OPERATIONS["anchors"])

def unsteady(a, b):
    right = OPERATIONS["box_iou"](a, b)
    COUNT[0] += right.size > 0
    return right + (COUNT[0] == 9)  # wrong once

class Unsteady(Faulty):
    changed = {"box_iou": unsteady}

class Odd(Faulty):
    @property
    def operations(self):
        raise RuntimeError("odd\\nindeed")

class Raises(Faulty):
    def __init__(self):
        raise RuntimeError("no device")

class Dies(Faulty):
    def __init__(self):
        os._exit(7)

class Threads(Faulty):
    def __init__(self):
        raise RuntimeError(os.environ["OPENBLAS_NUM_THREADS"])

class Prints(Faulty):
    changed = {"box_iou": lambda a, b: print("noise") or OPERATIONS["box_iou"](a, b)}
"""
PARITY = CHECKS["box_iou.parity"]


OPTIONS = SuiteOptions(profile="quick", limit=60.0)


@pytest.fixture
def suite_process(tmp_path, monkeypatch):
    """Makes the process of one of the backends above."""
    (tmp_path / "faulty_backends.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name, **options):
        choice = BackendChoice(f"faulty_backends:{name}")
        made.append(SuiteProcess(choice, replace(OPTIONS, **options)))
        return made[-1]

    yield make
    for process in made:
        process.close()


def test_a_crash_fails_its_check_alone(suite_process):
    crashing = suite_process("Crashes")
    outcome = crashing.run(PARITY)
    assert outcome.state == FAILED
    assert outcome.failure.message == "box_iou.parity ends the process (signal 6)"
    assert outcome.backend == "faulty_backends:Crashes"
    assert crashing.run(CHECKS["clip_boxes.parity"]).state == PASSED


def test_a_status_is_reported_too(suite_process):
    assert "ends the process (status 3)" in suite_process("Exits").run(PARITY).failure.message


def test_a_hang_fails_its_check_alone(suite_process):
    hanging = suite_process("Hangs", limit=0.5)  # of a check; loading may take longer
    outcome = hanging.run(PARITY)
    assert outcome.state == FAILED
    assert outcome.failure.message == "box_iou.parity does not end within 0.5 s"
    assert 0.5 <= outcome.seconds < 5
    hanging.options = OPTIONS
    assert hanging.run(CHECKS["clip_boxes.parity"]).state == PASSED


def test_a_failure_has_the_smallest_input_and_a_snippet_that_shows_it(
    suite_process, capsys, monkeypatch
):
    outcome = suite_process("Wrong").run(PARITY)
    assert outcome.state == FAILED
    assert outcome.failure.error > outcome.failure.tolerance > 0
    assert outcome.worst > 1
    exec(outcome.failure.snippet, {})
    out = capsys.readouterr().out
    assert out.startswith("box_iou.parity: box_iou differs")
    assert "error    " in out


def test_nothing_is_left_in_the_users_folder(suite_process, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    suite_process("Wrong").run(PARITY)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_declared_limitation_that_fails_is_limited(suite_process):
    declared = suite_process("Declared")
    outcome = declared.run(PARITY)
    assert (outcome.state, outcome.reason) == (LIMITED, "twice as much")
    assert outcome.failure.message.startswith("box_iou differs")


def test_a_declared_limitation_that_passes_fails(suite_process):
    outcome = suite_process("Holds").run(PARITY)
    assert outcome.state == FAILED
    assert outcome.failure.message == "passes, but is declared as a limitation: no longer"


def test_a_declared_crash_is_not_run(suite_process):
    outcome = suite_process("CrashDeclared").run(PARITY)
    assert (outcome.state, outcome.reason) == (LIMITED, "ends the process")


def test_a_limitation_of_no_check_is_refused(suite_process):
    with pytest.raises(BackendError, match=r"'box_iou\.nonsense': there is no such check"):
        suite_process("Unknown").run(PARITY)


def test_a_missing_operation_is_not_implemented(suite_process):
    outcome = suite_process("Partial").run(PARITY)
    assert (outcome.state, outcome.reason) == (NOT_IMPLEMENTED, "operation box_iou")
    assert outcome.failure is None


def test_a_result_that_is_not_repeatable_fails(suite_process):
    outcome = suite_process("Unsteady", profile="default").run(PARITY)
    assert outcome.state == FAILED
    assert "two runs on the same input give different results" in outcome.failure.message


def test_an_unforeseen_error_fails_the_check(suite_process):
    outcome = suite_process("Odd").run(PARITY)
    assert outcome.state == FAILED
    assert outcome.failure.message == "the check cannot use the result: RuntimeError: odd"
    assert "faulty_backends:Odd" in outcome.failure.snippet


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", "raises RuntimeError: no device"),
        ("Dies", r"loading it ends the process \(status 7\)"),
        ("Absent", "has no attribute 'Absent'"),
    ],
)
def test_a_backend_that_does_not_load_is_an_error(suite_process, name, message):
    with pytest.raises(BackendError, match=f"backend faulty_backends:{name}: .*{message}"):
        suite_process(name).start()


@pytest.mark.parametrize(("chosen", "threads"), [(None, "1"), ("2", "2")])
def test_products_use_one_thread_unless_the_user_chose(suite_process, monkeypatch, chosen, threads):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", chosen)
    with pytest.raises(BackendError, match=f": {threads}$"):
        suite_process("Threads").start()
    assert os.environ.get("OPENBLAS_NUM_THREADS") == chosen


def test_the_output_of_a_backend_is_not_in_the_report(suite_process, capfd):
    assert suite_process("Prints").run(PARITY).state == PASSED
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise" in err


def test_an_unknown_backend_is_an_error_before_any_check():
    with pytest.raises(BackendError, match="no 'nonsense'"):
        next(run_suite([BackendChoice("spec"), BackendChoice("nonsense")], [PARITY], OPTIONS))


def outcomes(name, checks, jobs):
    """The outcomes of the checks without their seconds."""
    ran = run_suite([BackendChoice(name)], checks, OPTIONS, jobs)
    return [replace(outcome, seconds=0) for outcome in ran]


def test_jobs_change_neither_the_outcomes_nor_their_order():
    checks = select(text="box_iou clip_boxes softmax nms")
    alone = outcomes("spec", checks, jobs=1)
    assert [outcome.check for outcome in alone] == [check.name for check in checks]
    assert outcomes("spec", checks, jobs=3) == alone


def test_a_crash_fails_its_check_alone_among_several_jobs(suite_process):
    suite_process("Crashes")
    checks = [PARITY, *select(text="clip_boxes softmax nms")]
    states = [outcome.state for outcome in outcomes("faulty_backends:Crashes", checks, jobs=2)]
    assert states == [FAILED] + [PASSED] * (len(checks) - 1)


def test_a_backend_that_does_not_load_is_an_error_with_several_jobs(suite_process):
    suite_process("Raises")
    with pytest.raises(BackendError, match="no device"):
        outcomes("faulty_backends:Raises", [PARITY, PARITY], jobs=2)


def test_select_by_level_and_words():
    assert {c.level for c in select(["operations"])} == {"operations"}
    assert {c.name.split(".")[0] for c in select(text="box_iou nms")} == {"box_iou", "nms"}
    assert select(text="nonsense") == []


def test_a_backend_that_writes_into_its_arguments_does_not_change_the_pinned_cases():
    def clip(boxes):
        return boxes.clip(0, 1, out=boxes)

    class Writes(SpecBackend):
        operations = SimpleNamespace(clip_boxes=clip)

    check = CHECKS["clip_boxes.parity"]
    before = copy.deepcopy(check.pinned)
    failure = outcome_of(Writes(), check, "quick").failure
    assert failure.message == "clip_boxes changes its argument [0]"
    for (boxes,), (expected,) in zip(check.pinned, before, strict=True):
        np.testing.assert_array_equal(boxes, expected)
