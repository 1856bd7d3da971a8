"""Runs: what is in the folder, and that an interrupted training arrives where a whole one does."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from refinedet.backend import find_backend
from refinedet.checkpoint import CheckpointError, checkpoints, load_checkpoint
from refinedet.data.dataset import DataError
from refinedet.settings import from_yaml, resolve
from refinedet.training import TrainingError, train

STEPS = 6
ASSIGNMENTS = [
    "model.image_size=[64, 128]",
    f"model.schedule.steps={STEPS}",
    "model.schedule.warmup_steps=2",
    "input.batch_size=2",
    "train.checkpoint_every=2",
]


def settings_of(*more):
    return resolve("refinedet_eighth_128", None, [*ASSIGNMENTS, *more], ("a", "b"))


@pytest.fixture
def backend():
    return find_backend("mindspore-cpu")


def write_coco(dataset, path):
    """The data set as a COCO file, for a process of its own."""
    images = [
        {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height}
        for r in dataset.records
    ]
    annotations = []
    for record in dataset.records:
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            x, y, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": label,
                    "bbox": [x, y, right - x, bottom - y],
                    "area": (right - x) * (bottom - y),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(dataset.class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def assert_same(left, right):
    assert left.steps_done == right.steps_done
    for mine, other in (
        (left.parameters, right.parameters),
        (left.velocities, right.velocities),
    ):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_killed_at_any_moment_it_arrives_where_an_undisturbed_run_does(backend, noise, tmp_path):
    """kill -9 three times, wherever it happens to be; then on to the end."""
    whole = train(backend, noise, None, settings_of(), tmp_path / "whole")
    annotations = tmp_path / "truth.json"
    write_coco(noise, annotations)
    run = tmp_path / "killed"
    command = [
        *(sys.executable, "-I", "-m", "refinedet", "train", "--run", str(run), "--layout", "coco"),
        *("--annotations", str(annotations), "--pictures", str(noise.records[0].path.parent)),
        *("--preset", "refinedet_eighth_128"),
        *(part for text in ASSIGNMENTS for part in ("--set", text)),
    ]
    for seconds in (0.2, 1.5, 3.0):
        resumed = [*command, "--resume"] if run.exists() else command
        process = subprocess.Popen(resumed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        metrics = run / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(seconds)  # from the start of the run: compiling, stepping, saving
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = load_checkpoint(checkpoints(run / "checkpoints")[0])
    assert_same(last, whole)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_run_folder_is_complete_and_repeats_itself(backend, noise, tmp_path):
    first = train(backend, noise, noise, settings_of(), tmp_path / "first")
    again = train(backend, noise, noise, settings_of(), tmp_path / "again")
    assert_same(first, again)
    run = tmp_path / "first"
    assert sorted(path.name for path in run.iterdir()) == [
        "cache",
        "checkpoints",
        "curves.png",
        "detections.png",
        "evaluation.json",
        "evaluation.txt",
        "log.txt",
        "metrics.jsonl",
        "settings.yaml",
    ]
    assert [p.name for p in checkpoints(run / "checkpoints")] == [
        f"step-{n:08d}.safetensors" for n in (6, 4, 2)
    ]
    assert from_yaml(run / "settings.yaml") == settings_of()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert {"total", "learning_rate", "seconds"} <= rows[0].keys()
    assert {"AP", "AP50", "VOC07", "VOC12"} <= rows[-1].keys()
    other = train(backend, noise, None, settings_of("input.seed=1"), tmp_path / "other")
    name = "backbone.conv1_1.weight"
    assert not np.array_equal(other.parameters[name], first.parameters[name])


def test_what_cannot_start_or_go_on_is_one_line(backend, noise, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("keep me")
    with pytest.raises(TrainingError, match="is not empty"):
        train(backend, noise, None, settings_of(), run)
    assert [path.name for path in run.iterdir()] == ["mine.txt"]
    with pytest.raises(TrainingError, match="no run to resume"):
        train(backend, noise, None, settings_of(), tmp_path / "mistyped", resume=True)
    for record in noise.records:
        record.path.write_bytes(record.path.read_bytes()[:100])
    with pytest.raises(DataError, match="no readable picture"):
        train(backend, noise, None, settings_of(), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    backend, noise, tmp_path
):
    settings = settings_of(
        "model.schedule.warmup_steps=0",
        "model.schedule.rate=1000",
        "model.optimizer.clip_norm=null",
    )
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"finite.*positions \d+ to \d+.*newest checkpoint"):
        train(backend, noise, None, settings, run)
    for path in checkpoints(run / "checkpoints"):
        load_checkpoint(path)


def test_other_settings_are_not_resumed(backend, noise, tmp_path):
    run = tmp_path / "run"
    train(backend, noise, None, settings_of("model.schedule.steps=2"), run)
    with pytest.raises(CheckpointError, match=r"model\.schedule\.rate"):
        train(
            backend,
            noise,
            None,
            settings_of("model.schedule.steps=2", "model.schedule.rate=0.01"),
            run,
            resume=True,
        )
