"""Two ranks train and evaluate as one does; whatever ends one of them ends the job."""

import contextlib
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from refinedet.models.checkpoint import load_checkpoint, newest_checkpoint

PARTS = ("arm_offsets", "arm_logits", "odm_offsets", "odm_logits", "total")
CLOSE = 1e-5
"""Tolerance without batch normalisation, relative: ten times what was seen."""
NORMALISED_LOSS, NORMALISED_STEP = 2e-5, 5e-3
"""With it: one rank has MindSpore's own, whose gradient is less exact; the second is of the
L2 norm of all momentum buffers after one step."""


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "total" in row]


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def norm(tensors):
    return np.sqrt(sum(np.square(tensor.astype(np.float64)).sum() for tensor in tensors))


def test_losses_are_those_of_one_rank_with_the_whole_batch(trained):
    one, two = map(rows, trained)
    assert len(one) == len(two) == 6
    for mine, other in zip(one, two, strict=True):
        for part in PARTS:
            assert other[part] == pytest.approx(mine[part], rel=CLOSE)


def test_parameters_are_those_of_one_rank(trained):
    one, two = (newest_checkpoint(run / "checkpoints", print) for run in trained)
    assert one.steps_done == two.steps_done == 6
    for kind in ("parameters", "momentum_buffers"):
        mine, other = getattr(one, kind), getattr(two, kind)
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert np.abs(other[name] - value).max() <= CLOSE * np.abs(value).max(), (kind, name)


def test_batch_normalisation_is_over_all_ranks(normalised):
    one, two = map(rows, normalised)
    assert len(one) == len(two) == 2
    for mine, other in zip(one, two, strict=True):
        for part in PARTS:
            assert other[part] == pytest.approx(mine[part], rel=NORMALISED_LOSS)
    first = "checkpoints/step-00000001.safetensors"
    one, two = (load_checkpoint(run / first) for run in normalised)
    difference = [
        two.momentum_buffers[name] - value for name, value in one.momentum_buffers.items()
    ]
    assert norm(difference) <= NORMALISED_STEP * norm(one.momentum_buffers.values())
    averages = [name for name in one.parameters if ".moving_" in name]
    assert averages
    for name in averages:
        np.testing.assert_allclose(two.parameters[name], one.parameters[name], rtol=1e-5, atol=1e-6)


def test_in_float16_all_ranks_skip_the_same_steps(job):
    """The loss scale begins too large for both, and comes down until a step trains.

    Nearer to what float16 holds two ranks overflow less: each adds up its own images in
    float16, and what they have in common in float32.
    """
    half = "model.optimizer={precision: float16, loss_scale: 16777216, loss_scale_window: 4}"
    settings = [half, "model.schedule.steps=16"]
    runs = job.folder / "one-half", job.folder / "two-half"
    for run, wrap in zip(runs, (list, job.launch), strict=True):
        status, out, err = job.run(wrap(job.train(run, settings=settings, judged=False)))
        assert status == 0, (out, err)
    one, two = map(rows, runs)
    for steps in (one, two):
        assert [row["loss_scale"] for row in steps[:7]] == [2.0**n for n in range(24, 17, -1)]
        assert all(row["skipped"] for row in steps[:7])
        assert not all(row["skipped"] for row in steps)
        assert steps[-1]["total"] < steps[0]["total"]
    assert two[0]["total"] == pytest.approx(one[0]["total"], rel=1e-3)


def test_metrics_are_those_of_one_rank_to_the_last_digit(job, trained):
    # Shares of six images: in batches of three, so that both compute the same batches.
    model = ["eval", "--model", trained[0], "--batch-size", "3", *job.data()]
    alone = job.run([*model, "--output", job.folder / "alone"])
    shared = job.run(job.launch([*model, "--output", job.folder / "shared"]))
    assert (alone[0], shared[0]) == (0, 0), (alone, shared)
    for name in ("evaluation.json", "evaluation.txt", "results.json"):
        files = [(job.folder / folder / name).read_bytes() for folder in ("alone", "shared")]
        assert files[0] == files[1], name
    assert alone[1].strip().splitlines()[-1] in shared[1]


def test_the_first_rank_alone_writes(trained):
    one, two = map(names, trained)
    assert one == two
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
    assert f"rank 1 (process {pid}) was killed" in err
    assert err.count("\n") == 1
    assert not processes_of(process.pid, "0")
    status, out, err = job.run(job.launch(job.train("killed", "--resume")))
    assert status == 0, (out, err)
    ends = [newest_checkpoint(r / "checkpoints", print) for r in (trained[1], run)]
    assert ends[0].steps_done == ends[1].steps_done == 6
    for kind in ("parameters", "momentum_buffers"):
        for name, value in getattr(ends[0], kind).items():
            np.testing.assert_array_equal(getattr(ends[1], kind)[name], value, err_msg=name)


def processes_of(launcher, rank):
    """The living processes of a rank that a launcher started."""
    expected = {
        f"REFINEDET_LAUNCHER={launcher}".encode(),
        b"MS_ROLE=MS_WORKER",
        f"RANK_ID={rank}".encode(),
    }
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if expected <= set((process / "environ").read_bytes().split(b"\0")):
                found.append(process.name)
    return found


def test_a_full_disk_ends_all_ranks_with_one_line(job, trained):
    """The first alone writes; here no file may grow as large as a checkpoint."""
    run = job.folder / "full"
    shutil.copytree(trained[1], run)
    (run / "checkpoints" / "step-00000006.safetensors").unlink()
    limit = (3_000_000, 3_000_000)
    status, _, err = job.run(
        job.launch(job.train("full", "--resume")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert status == 1
    assert err.count("\n") == 1
    assert "step-00000006.safetensors: cannot write: File too large" in err
    assert names(run / "checkpoints") == ["step-00000002.safetensors", "step-00000004.safetensors"]


def test_what_every_rank_refuses_is_told_once(job, trained):
    command = job.launch(job.train("odd", settings=["input.batch_size=3"]))
    status, _, err = job.run(command)
    assert status == 1
    assert "input.batch_size: 3 images cannot be shared equally among 2 ranks" in err
    assert err.count("\n") == 1
    assert not (job.folder / "odd").exists()


def test_other_sessions_end_with_the_command(job):
    """Even ``kill -9`` of the command leaves no rank behind."""
    process = job.start(job.launch(job.train("left")))
    deadline = time.monotonic() + 60
    while not processes_of(process.pid, "1") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(process.pid, "1")
    process.kill()
    process.communicate()
    while processes_of(process.pid, "1") and time.monotonic() < deadline + 20:
        time.sleep(0.1)
    assert not processes_of(process.pid, "0") + processes_of(process.pid, "1")
