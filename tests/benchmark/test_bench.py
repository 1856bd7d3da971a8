"""Benchmarks give every row they promise; how long things take is not a test's business."""

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

from refinedet.backends.interface import Backend
from refinedet.backends.registry import BackendChoice
from refinedet.benchmark.run import Row, detection_rows, input_rows, measure, table
from refinedet.spec.config import replace
from refinedet.spec.presets import preset

CONFIG = replace(preset("refinedet_eighth_128"), image_size=(64, 128), num_classes=4)


class Seer(Backend):
    """A backend for detection alone."""

    name = "seer"
    capabilities = frozenset({"network"})

    def missing(self):
        return None

    def network(self, config, parameters):
        raise NotImplementedError


def test_rows_of_the_host_are_complete():
    rows = [*input_rows(CONFIG, 1), *detection_rows(CONFIG, 1)]
    assert [row.name for row in rows] == [
        "input: decode",
        "input: augment and resize",
        "input: normalise",
        "input: match and encode",
        "input: whole sample",
        "detections: sparse",
        "detections: dense",
        "detections: dense, no limit before NMS",
    ]
    assert all(0 < row.seconds < 60 for row in rows)
    assert len(table(rows).splitlines()) == len(rows) + 1


def test_a_network_is_measured_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-I", "-m", "refinedet.benchmark.run"],
        input=pickle.dumps(("forward 2", BackendChoice("spec"), CONFIG, 1)),
        capture_output=True,
        check=True,
    )
    name, seconds, first, peak, backend = json.loads(done.stdout)
    assert (name, backend) == ("forward 2", "spec")
    assert (seconds > 0, first > 0, peak > 10**7) == (True, True, True)


def test_several_backends_stand_side_by_side(monkeypatch):
    """What does not train has no such row; the host's rows are no backend's, and come once."""

    def measured(work, chosen, config, repeat, environment):
        return Row(work, 2.0 if chosen.name == "spec" else 3.0, backend=chosen.name)

    monkeypatch.setattr("refinedet.benchmark.run._in_process", measured)
    monkeypatch.setattr(
        "refinedet.benchmark.run.input_rows", lambda *_: [Row("input: decode", 1.0)]
    )
    monkeypatch.setattr("refinedet.benchmark.run.detection_rows", lambda *_: [])
    monkeypatch.setitem(sys.modules, "seers", SimpleNamespace(Seer=Seer))
    rows = list(measure([BackendChoice("spec"), BackendChoice("seers:Seer")], CONFIG, 1))
    assert [(row.name, row.backend) for row in rows] == [
        ("input: decode", ""),
        ("forward 1", "spec"),
        ("forward 1", "seers:Seer"),
        ("forward 8", "spec"),
        ("forward 8", "seers:Seer"),
        ("train 8", "spec"),
    ]
    lines = table(rows).splitlines()
    assert lines[3].split() == ["forward", "1,", "seers:Seer", "3.00", "s", "1.50"]
    assert [line.endswith("1.50") for line in lines[1:]] == [False, False, True, False, True, False]


def test_rows_come_as_they_are_measured():
    rows = measure([BackendChoice("spec")], CONFIG, 1)
    assert next(rows).name == "input: decode"
