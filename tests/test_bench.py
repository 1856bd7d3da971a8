"""Benchmarks give every row they promise; how long things take is not a test's business."""

import json
import pickle
import subprocess
import sys

from refinedet.bench import bench, detection_rows, input_rows, table
from refinedet.choice import Choice
from refinedet.spec.config import preset, replace

CONFIG = replace(preset("refinedet_eighth_128"), image_size=(64, 128), num_classes=4)


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
        [sys.executable, "-I", "-m", "refinedet.bench"],
        input=pickle.dumps(("forward 2", Choice("spec"), CONFIG, 1)),
        capture_output=True,
        check=True,
    )
    name, seconds, first, peak = json.loads(done.stdout)
    assert (name, seconds > 0, first > 0, peak > 10**7) == ("forward 2", True, True, True)


def test_rows_come_as_they_are_measured():
    rows = bench(Choice("spec"), CONFIG, 1)
    assert next(rows).name == "input: decode"
