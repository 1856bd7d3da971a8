"""Two workers train and evaluate as one does; whatever ends one of them ends the job."""

import json
import os
import signal
import time

import numpy as np
import pytest

from refinedet.checkpoint import load_checkpoint, newest_checkpoint

PARTS = ("arm_offsets", "arm_logits", "odm_offsets", "odm_logits", "total")
LOSS, PARAMETER = 2e-5, 2e-4
"""Tolerances, relative to the loss and to the largest change of a tensor; seen: docs."""


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "total" in row]


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_losses_are_those_of_one_worker_with_the_whole_batch(trained):
    one, two = map(rows, trained)
    assert len(one) == len(two) == 6
    # The first step starts from the same parameters; later ones from those that rounding moved.
    for mine, other in zip(one, two, strict=True):
        np.testing.assert_allclose([mine[p] for p in PARTS], [other[p] for p in PARTS], rtol=1e-3)
    for part in PARTS:
        assert one[0][part] == pytest.approx(two[0][part], rel=LOSS)


def test_parameters_are_those_of_one_worker(trained):
    first = [load_checkpoint(run / "checkpoints" / "step-00000002.safetensors") for run in trained]
    for kind in ("parameters", "velocities"):
        one, two = (getattr(checkpoint, kind) for checkpoint in first)
        assert one.keys() == two.keys()
        for name, value in one.items():
            scale = max(np.abs(value).max(), 1e-3)
            assert np.abs(two[name] - value).max() <= PARAMETER * scale, (kind, name)


def test_figures_are_those_of_one_worker_to_the_last_digit(job, trained):
    model = ["eval", "--model", trained[0], *job.data()]
    alone = job.run([*model, "--output", job.folder / "alone"])
    shared = job.run(job.launch([*model, "--output", job.folder / "shared"]))
    assert (alone[0], shared[0]) == (0, 0), (alone, shared)
    for name in ("evaluation.json", "evaluation.txt", "results.json"):
        files = [(job.folder / folder / name).read_bytes() for folder in ("alone", "shared")]
        assert files[0] == files[1], name
    assert alone[1].strip().splitlines()[-1] in shared[1]


def test_the_first_worker_alone_writes(trained):
    one, two = map(names, trained)
    assert one == two
    assert "training on" in (trained[1].parent / "logs" / "worker_0.log").read_text()
    assert (trained[1] / "log.txt").read_text().count("training on") == 1


def test_killed_it_ends_at_once_and_goes_on_to_the_same_end(job, trained):
    run = job.folder / "killed"
    process = job.start(job.launch(job.train("killed")))
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-00000002*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int(processes_of(process.pid, "1")[0])
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    assert f"worker 1 (process {pid}) was killed" in err
    assert err.count("\n") == 1
    assert not processes_of(process.pid, "0")
    status, out, err = job.run(job.launch(job.train("killed", "--resume")))
    assert status == 0, (out, err)
    ends = [newest_checkpoint(r / "checkpoints", print) for r in (trained[1], run)]
    assert ends[0].steps_done == ends[1].steps_done == 6
    for kind in ("parameters", "velocities"):
        for name, value in getattr(ends[0], kind).items():
            np.testing.assert_array_equal(getattr(ends[1], kind)[name], value, err_msg=name)


def processes_of(launcher, rank):
    """The living workers of a rank that a launcher started."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as file:
                variables = dict(v.split(b"=", 1) for v in file.read().split(b"\0") if b"=" in v)
        except OSError:
            continue
        mine = variables.get(b"REFINEDET_LAUNCHER") == str(launcher).encode()
        worker = variables.get(b"MS_ROLE") == b"MS_WORKER"
        if mine and worker and variables.get(b"RANK_ID") == rank.encode():
            found.append(entry.name)
    return found
