"""Evaluations that were interrupted: killed, half a line, another model, no memory."""

import dataclasses
import json
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

from refinedet.backends.reference import SpecNetwork
from refinedet.cli.app import main
from refinedet.errors import DataError, WriteError
from refinedet.evaluation.dataset_run import evaluate
from refinedet.evaluation.resume_journal import (
    ResumeJournal,
    data_digest,
    evaluation_subject,
)
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import resolve
from refinedet.spec.detection import Detections
from refinedet.spec.fusion import FusionConfig
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

SUBJECT = {"model": "1", "settings": "2", "data set": "3"}


def detections(count, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    low = rng.random((count, 2)) * 100
    boxes = np.hstack([low, low + rng.random((count, 2)) * 30]).astype(dtype)
    return Detections(boxes, rng.random(count).astype(dtype), rng.integers(1, 4, count))


def same(a, b):
    return all(x.dtype == y.dtype and (x == y).all() for x, y in zip(a, b, strict=True))


@pytest.fixture
def journal(tmp_path):
    """A journal of three images, closed."""
    opened = ResumeJournal(tmp_path / "journal.jsonl", SUBJECT)
    for image_id, count in ((7, 3), (2, 0), (9, 5)):
        opened.add(image_id, detections(count, image_id))
    opened.close()
    return opened.path


def finished(path, subject=SUBJECT):
    opened = ResumeJournal(path, subject, resume=True)
    results = dict(opened.finished())
    opened.close()
    return results


def test_what_was_added_is_read_back_bit_for_bit(journal):
    results = finished(journal)
    assert list(results) == [7, 2, 9]
    for image_id, count in ((7, 3), (2, 0), (9, 5)):
        assert same(results[image_id], detections(count, image_id))


def test_double_precision_is_kept(tmp_path):
    opened = ResumeJournal(tmp_path / "journal.jsonl", SUBJECT)
    opened.add(1, detections(4, dtype=np.float64))
    opened.close()
    assert same(finished(opened.path)[1], detections(4, dtype=np.float64))


def test_a_journal_is_truncated_where_it_is_incomplete(journal):
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    for size in range(len(content)):  # killed after any number of bytes
        journal.write_bytes(content[:size])
        kept = finished(journal)
        whole = sum(size >= len(b"".join(lines[: n + 1])) for n in range(4))
        assert list(kept) == [7, 2, 9][: max(whole - 1, 0)]
        assert journal.read_bytes() == b"".join(lines[: max(whole, 1)])


@pytest.mark.parametrize(
    "line", [b"\0" * 50 + b"\n", b"{}\n", b"[]\n", b'{"image_id": 4, "boxes": 3}\n', b"\xff\n"]
)
def test_images_after_a_damaged_line_are_run_again(journal, line):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    assert list(finished(journal)) == [7]
    opened = ResumeJournal(journal, SUBJECT, resume=True)
    opened.add(2, detections(1))
    opened.close()
    assert list(finished(journal)) == [7, 2]


def test_a_journal_is_not_begun_anew_by_mistake(journal):
    with pytest.raises(DataError, match=r"journal\.jsonl: an evaluation was interrupted"):
        ResumeJournal(journal, SUBJECT)
    assert list(finished(journal)) == [7, 2, 9]


@pytest.mark.parametrize("name", [*SUBJECT, "version"])
def test_a_journal_of_something_else_is_refused(journal, name):
    lines = journal.read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0]) | {name: "other"}
    journal.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines[1:]))
    with pytest.raises(DataError, match=f"was begun with another {name}; remove the file"):
        ResumeJournal(journal, SUBJECT, resume=True)
    assert journal.exists()


def test_what_is_not_a_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path.name}: not a file; remove it"):
        ResumeJournal(tmp_path, SUBJECT, resume=True)
    with pytest.raises(DataError, match="/dev/zero: not a file"):
        ResumeJournal(Path("/dev/zero"), SUBJECT, resume=True)


def test_a_full_disk_is_one_line(journal):
    opened = ResumeJournal(journal, SUBJECT, resume=True)
    opened.close()
    opened._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(WriteError, match=r"journal\.jsonl: cannot write: No space left .*; free"):
        opened.add(1, detections(3))
    opened._file.raw.close()


def test_the_digests_differ_by_model_settings_and_data(noise):
    config = preset("refinedet_eighth_128")
    subject = evaluation_subject("1", config, "spec", noise)
    assert evaluation_subject("1", config, "spec", noise) == subject

    def differing(**change):
        now = {"model": "1", "config": config, "backend": "spec", "dataset": noise} | change
        other = evaluation_subject(*now.values())
        return {name for name in subject if subject[name] != other[name]}

    assert differing(model="2") == {"model"}
    lower = dataclasses.replace(config, detection=dataclasses.replace(config.detection, score=0.1))
    assert differing(config=lower) == {"settings"}
    assert differing(fusion=FusionConfig()) == {"settings"}
    assert differing(backend="other") == {"backend"}
    assert differing(dataset=dataclasses.replace(noise, records=noise.records[1:])) == {"data set"}
    renamed = dataclasses.replace(noise, class_names=("a", "c"))
    assert differing(dataset=renamed) == {"data set"}
    image = noise.records[4].path
    image.write_bytes(image.read_bytes() + b"0")
    assert differing() == {"data set"}


# The program


@pytest.fixture
def evaluation(tmp_path, noise):
    """Options of ``eval`` on the noisy images, with the specification as the backend."""
    small = ["model.image_size=[64, 64]", "model.detection.score=0.3"]
    settings = resolve("refinedet_eighth_128", None, small, noise.class_names)
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, Checkpoint(settings, initial_parameters(settings.model, 0), None, 0))
    lines = []
    for record in noise.records:
        boxes = [
            ",".join(str(int(v)) for v in (*box, label))
            for box, label in zip(record.boxes, record.labels, strict=True)
        ]
        lines.append(" ".join([record.path.name, *boxes]))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = ["eval", "--model", weights, "--backend", "spec", "--batch-size", "1"]
    options += ["--layout", "text", "--annotations", tmp_path / "list.txt"]
    return [*map(str, options), "--images", str(noise.records[0].path.parent)]


def called(monkeypatch, capsys, options):
    monkeypatch.setattr("sys.argv", ["refinedet", *map(str, options)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, capsys.readouterr().err


KILLED = """
import os, signal, sys
from refinedet.evaluation.resume_journal import ResumeJournal
from refinedet.cli.app import main
add = ResumeJournal.add
def deadly(self, image_id, detections):
    add(self, image_id, detections)
    if image_id == 4:
        os.kill(os.getpid(), signal.SIGKILL)
ResumeJournal.add = deadly
main()
"""


def test_a_killed_evaluation_is_resumed_where_it_was(evaluation, tmp_path, monkeypatch, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert called(monkeypatch, capsys, [*evaluation, "--output", whole])[0] == 0
    program = [sys.executable, "-I", "-c", KILLED, *evaluation, "--output", str(output)]
    child = subprocess.run(program, capture_output=True, timeout=100, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    unfinished = output / "unfinished.jsonl"
    assert [p.name for p in output.iterdir()] == [unfinished.name]
    assert unfinished.read_bytes().count(b"\n") == 1 + 4
    with unfinished.open("ab") as file:
        file.write(b'{"image_id": 9, "dtype": "flo')

    status, err = called(monkeypatch, capsys, [*evaluation, "--output", output])
    assert status == 1
    assert "an evaluation was interrupted here; resume it" in err
    other = [*evaluation, "--output", output, "--resume", "--protocol", "paper"]
    status, err = called(monkeypatch, capsys, other)
    assert (status, err.count("\n")) == (1, 1)
    assert "unfinished.jsonl: was begun with another settings" in err

    runs = []
    real = SpecNetwork.scored_boxes
    monkeypatch.setattr(
        SpecNetwork, "scored_boxes", lambda self, x: runs.append(len(x)) or real(self, x)
    )
    assert called(monkeypatch, capsys, [*evaluation, "--output", output, "--resume"])[0] == 0
    assert sum(runs) == 10 - 4
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in whole.iterdir())
    for name in ("results.json", "evaluation.json", "evaluation.txt", "detections.png"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_evaluation_killed_while_scoring_runs_no_image_again(
    evaluation, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("refinedet.evaluation.model_run.write_evaluation", lambda *_: sys.exit(9))
        assert called(patch, capsys, [*evaluation, "--output", output])[0] == 9
    monkeypatch.setattr(SpecNetwork, "scored_boxes", lambda *_: pytest.fail("ran again"))
    assert called(monkeypatch, capsys, [*evaluation, "--output", output, "--resume"])[0] == 0
    assert not (output / "unfinished.jsonl").exists()


def test_resume_of_nothing_begins(evaluation, tmp_path, monkeypatch, capsys):
    options = [*evaluation, "--output", tmp_path / "out", "--resume"]
    assert called(monkeypatch, capsys, options)[0] == 0
    assert (tmp_path / "out" / "results.json").exists()


# Memory


def test_raw_outputs_are_not_kept(noise):
    alive, most = set(), []

    class Network:
        config = dataclasses.replace(preset("refinedet_eighth_128"), num_classes=3)

        def scored_boxes(self, images):
            rng = np.random.default_rng(len(most))
            boxes = np.sort(rng.random((len(images), 1008, 2, 2), np.float32), axis=2)
            opened = boxes.reshape(-1, 1008, 4), rng.random((len(images), 1008, 3), np.float32)
            for array in (boxes, *opened):
                alive.add(id(array))
                weakref.finalize(array, alive.discard, id(array))
            del boxes
            most.append(len(alive))
            return opened

    evaluator = evaluate(Network(), noise, batch_size=2)
    assert len(most) == 5
    assert max(most) <= 6  # of one batch before, at most, and of this one
    assert all(array.base is None for results in evaluator.detections.values() for array in results)


def test_data_digest_does_not_depend_on_paths(noise, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    records = []
    for record in noise.records:
        (moved / record.path.name).write_bytes(record.path.read_bytes())
        records.append(dataclasses.replace(record, path=moved / record.path.name))
    assert data_digest(dataclasses.replace(noise, records=records)) == data_digest(noise)
    assert cv2.imread(str(records[0].path)) is not None
