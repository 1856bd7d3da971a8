"""Whatever ends a part of a job, or the command itself, is told by its name, and leaves nothing."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from refinedet.adapters.mindspore.launch import Job as Part
from refinedet.adapters.mindspore.launch import _watch

SIGNALS = [(signal.SIGTERM, 1, "was ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")]


def started(job, folder, name):
    """A launch whose ranks are at work, with a folder of its own for temporary files."""
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = job.start(job.launch(job.train(name, judged=False)), env=environment)
    deadline = time.monotonic() + 120
    while len(list(temporary.glob("*/[01].json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None
    return process, temporary


def left(temporary):
    """Processes that still run what is in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(temporary).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("number", "status", "message"), SIGNALS)
def test_told_to_end_it_clears_all_away(job, tmp_path, number, status, message):
    process, temporary = started(job, tmp_path, f"told-{number}")
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert message in err
    assert err.count("\n") == 1
    assert not list(temporary.glob("refinedet-launch-*"))
    assert not left(temporary)


def test_two_launches_do_not_share_logs(job, tmp_path):
    process, _ = started(job, tmp_path, "first")
    try:
        status, _, err = job.run(job.launch(job.train("second", judged=False)))
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert status == 1
    assert f"--logs: {job.folder / 'logs'}: another launch uses it; choose" in err
    assert err.count("\n") == 1


def test_a_folder_named_mindspore_where_the_command_runs(job, tmp_path):
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    status, _, err = job.run(
        job.launch(job.train("elsewhere", settings=["input.batch_size=3"])), cwd=tmp_path
    )
    assert status == 1
    assert "input.batch_size: 3 images" in err


@pytest.fixture
def part(tmp_path):
    return Part(("train",), 2, 1, 0, "127.0.0.1", 1, None, tmp_path)


@pytest.fixture
def process():
    running = subprocess.Popen(["sleep", "60"])
    yield running
    running.kill()
    running.wait()


def ended():
    """The number of a process that is no more."""
    over = subprocess.Popen(["true"])
    over.wait()
    return over.pid


def note(folder, rank):
    content = {"rank": rank, "pid": os.getpid(), "status": None}
    (folder / f"{rank}.json").write_text(json.dumps(content))


def test_a_killed_msrun_is_named(part, process, tmp_path):
    note(tmp_path, 0)
    process.kill()
    process.wait()
    message = _watch(part, tmp_path, process)
    assert message == f"MindSpore's launcher, msrun, was killed; see {tmp_path / 'msrun.log'}"


def test_a_killed_scheduler_is_named(part, process, tmp_path):
    """At once; the ranks notice after twenty seconds."""
    note(tmp_path, 0)
    (tmp_path / "scheduler.json").write_text(json.dumps({"pid": ended()}))
    assert "scheduler was killed" in _watch(part, tmp_path, process)
