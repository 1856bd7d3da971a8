"""The command ``launch``: ``train`` or ``eval`` on several devices, through MindSpore's ``msrun``.

``msrun`` starts the workers of this machine, and on the first machine the scheduler by which
all find each other. It tells little of a worker that fails; so each worker notes how it ended
(``refinedet.adapters.mindspore.worker``), and this command watches the notes: the first
worker that fails ends the job, and its own line is the job's.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from refinedet.adapters.mindspore.ranktable import read_rank_table, require_fit
from refinedet.adapters.mindspore.worker import FOLDER, LAUNCHER, SCHEDULER
from refinedet.backends.process_group import LOST
from refinedet.errors import BackendError

COMMANDS = ("train", "eval")
TARGETS = ("cpu", "gpu", "ascend")
PORT = 8118
"""Of the scheduler, where nobody says another; ``msrun``'s own."""
ERROR = "refinedet: error: "
"""Begins the line with which a worker says why it ended."""
CHATTER = "[INFO] "
"""Begins lines of MindSpore's communication that GLOG_v does not silence."""
OFTEN = 0.2
"""Seconds between two looks at the workers."""
GRACE = 30.0
"""Seconds that ``msrun`` may take to end after the last worker."""
MSRUN = """
import sys
sys.path[:] = filter(None, sys.path)  # the folder of the user, who may have a mindspore in it
from mindspore.parallel.cluster.run import main
main()
"""


@dataclass(frozen=True)
class Job:
    """The part of a job that is on this machine."""

    command: tuple[str, ...]
    workers: int
    """On all machines."""
    nodes: int
    node_rank: int
    address: str
    port: int
    table: Path | None
    logs: Path

    @property
    def ranks(self) -> range:
        """Of the workers of this machine."""
        here = self.workers // self.nodes
        return range(self.node_rank * here, (self.node_rank + 1) * here)

    def log(self, rank: int) -> Path:
        """What a worker of this machine prints."""
        return self.logs / f"worker_{rank}.log"

    def msrun(self, script: Path) -> list[str]:
        """The arguments of ``msrun``; ``script`` is what it has Python run."""
        options = {
            "worker_num": self.workers,
            "local_worker_num": len(self.ranks),
            "master_addr": self.address,
            "master_port": self.port,
            "node_rank": self.node_rank,
            "log_dir": self.logs,
            "join": True,
        }
        if self.table is not None:
            options["rank_table_file"] = self.table.absolute()
        named = [f"--{name}={value}" for name, value in options.items()]
        return [*named, str(script), *self.command]

    def environment(self, inherited: Mapping[str, str], folder: Path) -> dict[str, str]:
        """Of the workers. ``folder`` is the job's, and holds the ``python`` that they run."""
        wishes = {"GLOG_v": "3"}  # of MindSpore only errors
        if target_of(self.command) == "cpu":  # else each worker takes all cores
            wishes["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(self.ranks)))
        return {
            **wishes,
            **inherited,
            "PATH": f"{folder}{os.pathsep}{inherited.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            FOLDER: str(folder),
            LAUNCHER: str(os.getpid()),
        }


def launch(
    command: Annotated[
        list[str], typer.Argument(help="After --: train or eval, with its options.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="On all machines; one a device.")],
    rank_table_file: Annotated[
        Path | None, typer.Option(help="Huawei's table of the devices, for HCCL.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.")] = "127.0.0.1",
    master_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help=f"A free port of machine 0; {PORT} on several machines."
        ),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for what each worker prints.")] = Path(
        "launch-logs"
    ),
) -> None:
    """Run train or eval with several workers, each on a device, on one machine or many."""
    _require_command(command)
    if workers % nodes:
        raise BackendError(
            f"{workers} are not as many on each of {nodes} machines", key="--workers"
        )
    if node_rank >= nodes:
        raise BackendError(
            f"is {node_rank}; {nodes} machines are 0 to {nodes - 1}", key="--node-rank"
        )
    if nodes > 1 and master_addr in ("127.0.0.1", "localhost"):
        raise BackendError(
            "give the address of machine 0; the others look there", key="--master-addr"
        )
    if not master_addr:
        raise BackendError("is empty; give the address of machine 0", key="--master-addr")
    if rank_table_file is not None:
        require_fit(rank_table_file, read_rank_table(rank_table_file), workers, nodes)
    port = master_port or (PORT if nodes > 1 else 0)
    if node_rank == 0:
        port = _free_port(master_addr, port)
    if importlib.util.find_spec("mindspore") is None:
        raise BackendError(
            "MindSpore is not installed; run: pip install 'refinedet[cpu]'", key="launch"
        )
    logs.mkdir(parents=True, exist_ok=True)
    job = Job(tuple(command), workers, nodes, node_rank, master_addr, port, rank_table_file, logs)
    with _own(logs), _told_to_end():
        typer.echo(f"workers {job.ranks[0]} to {job.ranks[-1]} of {workers}; they print to {logs}")
        with tempfile.TemporaryDirectory(prefix="refinedet-launch-") as folder:
            _run(job, Path(folder))


def target_of(command: Sequence[str]) -> str:
    """The device that a command names, ``cpu`` if none; another backend by its name."""
    found = "cpu"
    for i, argument in enumerate(command):
        name, _, value = argument.partition("=")
        if name in ("--backend", "--target"):
            found = value or "".join(command[i + 1 : i + 2])
    return found.removeprefix("mindspore-")


def _require_command(command: list[str]) -> None:
    if command[0] not in COMMANDS:
        raise BackendError(
            f"runs {' or '.join(COMMANDS)}, as: launch --workers 2 -- train ...", key="launch"
        )
    if any(argument.partition("=")[0] == "--device-id" for argument in command):
        raise BackendError("each worker has a device of its own; leave it out", key="--device-id")
    if (target := target_of(command)) not in TARGETS:
        raise BackendError(
            f"{target} runs alone; give --target {', '.join(TARGETS[:-1])} or {TARGETS[-1]}",
            key="launch",
        )


def _free_port(address: str, port: int) -> int:
    """The port, or any for 0, after a look whether it is free."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise BackendError(
                f"{address}:{port}: {reason}; choose another port, or --master-addr",
                key="--master-port",
            ) from error
        return int(tried.getsockname()[1])


@contextmanager
def _own(logs: Path) -> Iterator[None]:
    """Keep other jobs out of a folder of logs: the reason of a failure is read there."""
    handle = os.open(logs, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackendError(
                f"{logs}: another launch prints there; choose another folder", key="--logs"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Make of SIGTERM and SIGHUP an error, so that workers and folder are cleared away."""

    def end(number: int, frame: object) -> None:
        for other in before:  # a second one must not disturb the clearing away
            signal.signal(other, signal.SIG_IGN)
        raise BackendError(
            f"was told to end ({signal.Signals(number).name}); train goes on with --resume",
            key="launch",
        )

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(job: Job, folder: Path) -> None:
    script, python = folder / "worker.py", folder / "python"
    script.write_text("from refinedet.adapters.mindspore.worker import main\n\nmain()\n")
    # msrun runs whatever `python` is first on PATH.
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    for rank in job.ranks:
        job.log(rank).unlink(missing_ok=True)
    with (job.logs / "msrun.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", MSRUN, *job.msrun(script)],
            env=job.environment(os.environ, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with _shown(job.log(0)):
            reason = _watch(job, folder, process)
    finally:
        _end(folder, process)
    if reason is not None:
        raise BackendError(reason)


def _notes(folder: Path) -> dict[int, dict[str, Any]]:
    """What the workers have noted, by rank."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json")))
    return {note["rank"]: note for note in found}


def _watch(job: Job, folder: Path, process: subprocess.Popen[bytes]) -> str | None:
    """Wait for the end of the job; why it failed, or None."""
    ended: float | None = None
    while True:
        running = process.poll() is None  # before the notes are read: all are there then
        notes = _notes(folder)
        scheduler = folder / SCHEDULER
        if process.returncode is not None and process.returncode < 0:
            return f"MindSpore's launcher, msrun, was killed; see {job.logs / 'msrun.log'}"
        killed = [n for n in notes.values() if n["status"] is None and not _lives(n["pid"])]
        if killed:
            rank, pid = killed[0]["rank"], killed[0]["pid"]
            return (
                f"worker {rank} (process {pid}) was killed, or ran out of memory; "
                f"its log is {job.log(rank)}; train goes on with --resume"
            )
        failed = [n for n in notes.values() if n["status"]]
        if failed:
            said = [(n["rank"], _last_words(job.log(n["rank"]))) for n in failed]
            own = [(rank, line) for rank, line in said if line and LOST not in line]
            if own:
                return f"{own[0][1]} (worker {own[0][0]})"
            rank, status = failed[0]["rank"], failed[0]["status"]
            return f"worker {rank} ended with status {status}; see {job.log(rank)}"
        at_work = [n for n in notes.values() if n["status"] is None]
        if at_work and scheduler.exists() and not _lives(json.loads(scheduler.read_text())["pid"]):
            return (
                f"MindSpore's scheduler was killed; see {job.logs / 'scheduler.log'}; "
                "train goes on with --resume"
            )
        if notes.keys() == set(job.ranks) and all(n["status"] == 0 for n in notes.values()):
            ended = ended or time.monotonic()
            if not running or time.monotonic() - ended > GRACE:
                return None
        elif not running:
            return f"the workers did not start; see {job.logs / 'msrun.log'}"
        time.sleep(OFTEN)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _last_words(log: Path) -> str | None:
    """The error line at the end of a worker's log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return said[-1] if said else None


def _end(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """End what still runs: the workers, each in a session of its own, msrun, the scheduler."""
    groups = [note["pid"] for note in _notes(folder).values()]
    for group in [*groups, process.pid]:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Show on the terminal what is written to a log, but for its last words."""
    over = threading.Event()

    def show() -> None:
        shown = 0
        while True:
            last = over.is_set()
            with suppress(OSError), log.open("rb") as file:
                file.seek(shown)
                fresh = file.read()
                fresh = fresh if last else fresh[: fresh.rfind(b"\n") + 1]
                shown += len(fresh)
                for line in fresh.decode(errors="replace").splitlines():
                    if not line.startswith((ERROR, CHATTER)):
                        print(line, flush=True)
            if last:
                return
            time.sleep(OFTEN)

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
