"""Runs: what is in the folder, and that an interrupted training arrives where a whole one does."""

import itertools
import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from refinedet.backends.interface import Backend, StepLosses
from refinedet.backends.registry import find_backend
from refinedet.errors import BackendError, CheckpointError, DataError, TrainingError
from refinedet.models.checkpoint import checkpoints, load_checkpoint
from refinedet.settings import from_yaml, resolve
from refinedet.spec.optimizer import LossScale, next_loss_scale
from refinedet.training.loop import OVERFLOWS, train
from refinedet.training.preparation import prepare_datasets

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


def run_training(*arguments, **options):
    return train(prepare_datasets(*arguments, **options))


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
        (left.momentum_buffers, right.momentum_buffers),
    ):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_killed_at_any_moment_it_arrives_where_an_undisturbed_run_does(backend, noise, tmp_path):
    """kill -9 three times, wherever it happens to be; then on to the end."""
    whole = run_training(backend, noise, None, settings_of(), tmp_path / "whole")
    annotations = tmp_path / "ground_truth.json"
    write_coco(noise, annotations)
    run = tmp_path / "killed"
    command = [
        *(sys.executable, "-I", "-m", "refinedet", "train", "--run", str(run), "--layout", "coco"),
        *("--annotations", str(annotations), "--images", str(noise.records[0].path.parent)),
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
    first = run_training(backend, noise, noise, settings_of(), tmp_path / "first")
    again = run_training(backend, noise, noise, settings_of(), tmp_path / "again")
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
    other = train(
        prepare_datasets(backend, noise, None, settings_of("input.seed=1"), tmp_path / "other")
    )
    name = "backbone.conv1_1.weight"
    assert not np.array_equal(other.parameters[name], first.parameters[name])


def test_what_cannot_start_or_go_on_is_one_line(backend, noise, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("keep me")
    with pytest.raises(TrainingError, match="is not empty"):
        run_training(backend, noise, None, settings_of(), run)
    assert [path.name for path in run.iterdir()] == ["mine.txt"]
    with pytest.raises(TrainingError, match="no run to resume"):
        train(
            prepare_datasets(
                backend, noise, None, settings_of(), tmp_path / "mistyped", resume=True
            )
        )
    for record in noise.records:
        record.path.write_bytes(record.path.read_bytes()[:100])
    with pytest.raises(DataError, match="no readable image"):
        run_training(backend, noise, None, settings_of(), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run"]


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
        run_training(backend, noise, None, settings, run)
    for path in checkpoints(run / "checkpoints"):
        load_checkpoint(path)


def test_other_settings_are_not_resumed(backend, noise, tmp_path):
    run = tmp_path / "run"
    run_training(backend, noise, None, settings_of("model.schedule.steps=2"), run)
    with pytest.raises(CheckpointError, match=r"model\.schedule\.rate"):
        train(
            prepare_datasets(
                backend,
                noise,
                None,
                settings_of("model.schedule.steps=2", "model.schedule.rate=0.01"),
                run,
                resume=True,
            )
        )


# In float16

HALF = ("model.optimizer.precision=float16", "model.optimizer.loss_scale_window=2")


def test_a_training_in_float16_goes_on_bit_for_bit_with_its_loss_scale(backend, noise, tmp_path):
    """The scale begins too large: steps are skipped before the stop and after it."""
    steps = "model.schedule.steps=14"
    settings = settings_of(*HALF, steps, "model.optimizer.loss_scale=4194304")
    whole = run_training(backend, noise, None, settings, tmp_path / "whole")
    interrupted = find_backend("mindspore-cpu")
    complete = interrupted.batches
    interrupted.batches = lambda *arguments: itertools.islice(complete(*arguments), 3)
    run = tmp_path / "run"
    train(
        prepare_datasets(interrupted, noise, None, settings, run)
    )  # ends after three steps, two are kept
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-00000002.safetensors"]
    kept = load_checkpoint(checkpoints(run / "checkpoints")[0])
    assert kept.loss_scale == LossScale(2.0**20)
    assert_same(run_training(backend, noise, None, settings, run, resume=True), whole)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert {row["skipped"] for row in rows} == {True, False}
    scale, good = 2.0**22, 0
    for row in rows:
        assert row["loss_scale"] == scale
        now = next_loss_scale(LossScale(scale, good), not row["skipped"], 2)
        scale, good = now.scale, now.good_steps
    assert whole.loss_scale == LossScale(scale, good)


class Overflowing(Backend):
    """A backend in float16 whose trainer skips the steps from ``first`` to ``last``."""

    name, precisions = "overflowing", ("float32", "float16")
    capabilities = frozenset({"trainer", "batches"})

    def missing(self):
        return None

    def __init__(self, first, last):
        self.first, self.last = first, last

    def trainer(self, config, parameters, momentum_buffers, steps_done, loss_scale):
        self.held, self.at = parameters, steps_done
        self.scale = loss_scale or LossScale(config.optimizer.scale)
        return self

    def step(self, batch):
        self.at += 1
        skipped = self.first <= self.at <= self.last
        self.scale = next_loss_scale(self.scale, not skipped, 1000)
        return StepLosses(1.0, 1.0, 1.0, 1.0, 4.0, skipped)

    def parameters(self):
        return self.held

    def momentum_buffers(self):
        return {n: np.zeros_like(p) for n, p in self.held.items() if ".moving_" not in n}

    def loss_scale(self):
        return self.scale

    def batches(self, dataset, config, settings, cache, step):
        return iter(range(step, config.schedule.steps))


def test_a_run_whose_every_step_overflows_ends_with_one_line(noise, tmp_path):
    settings = settings_of(*HALF, "model.schedule.steps=100", "model.schedule.warmup_steps=0")
    with pytest.raises(TrainingError) as caught:
        run_training(Overflowing(11, 100), noise, None, settings, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(
        f"step {10 + OVERFLOWS}: the gradient overflowed float16 in {OVERFLOWS} "
    )
    assert "with a loss scale of 1; " in message
    assert "\n" not in message
    # Fewer in a row are what a loss scale that follows the gradient meets.
    train(
        prepare_datasets(Overflowing(11, 9 + OVERFLOWS), noise, None, settings, tmp_path / "other")
    )
    short = settings_of(*HALF)
    with pytest.raises(TrainingError, match=f"step {STEPS}: .* in {STEPS} steps in a row"):
        run_training(Overflowing(1, STEPS), noise, None, short, tmp_path / "short")


def test_a_loss_that_is_not_finite_in_float16_says_that_float32_may_help(noise, tmp_path):
    backend = Overflowing(1, 1)
    backend.step = lambda batch: StepLosses(*[math.nan] * 5, True)
    with pytest.raises(TrainingError, match=r"not finite.*model\.optimizer\.precision=float32"):
        run_training(backend, noise, None, settings_of(*HALF), tmp_path / "run")


def test_a_backend_without_float16_is_refused_and_leaves_nothing(noise, tmp_path):
    backend = Overflowing(1, 1)
    backend.precisions = ("float32",)
    with pytest.raises(BackendError, match="overflowing: trains in float32 only; set "):
        run_training(backend, noise, None, settings_of(*HALF), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
