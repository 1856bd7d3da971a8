"""The command ``launch``: ``train`` or ``eval`` on several devices, through MindSpore's ``msrun``.

``msrun`` starts the ranks of this machine, and on the first machine the scheduler through which
all ranks connect. It reports little about a rank that fails. So each rank writes its
process id and exit status to a file (``refinedet.adapters.mindspore.rank``), and this command
watches these files: the first rank that fails ends the job, and its error line becomes the job's.
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

from refinedet.adapters.mindspore.rank import FOLDER, LAUNCHER, SCHEDULER
from refinedet.adapters.mindspore.ranktable import read_rank_table, require_fit
from refinedet.backends.process_group import SEE_OTHER_LOG
from refinedet.errors import BackendError, UsageError

COMMANDS = ("train", "eval")
TARGETS = ("cpu", "gpu", "ascend")
PORT = 8118
"""Default port of the scheduler, as in ``msrun``."""
ERROR = "refinedet: error: "
"""Prefix of a rank's error line."""
CHATTER = "[INFO] "
"""Prefix of log lines of MindSpore's communication module that GLOG_v does not suppress."""
OFTEN = 0.2
"""Seconds between checks of the ranks."""
GRACE = 30.0
"""Seconds that ``msrun`` may take to end after the last rank."""
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
    size: int
    """Number of ranks on all machines."""
    nodes: int
    node_rank: int
    address: str
    port: int
    table: Path | None
    logs: Path

    @property
    def ranks(self) -> range:
        """The ranks on this machine."""
        here = self.size // self.nodes
        return range(self.node_rank * here, (self.node_rank + 1) * here)

    def log(self, rank: int) -> Path:
        """The log file of a rank of this machine, as ``msrun`` names it."""
        return self.logs / f"worker_{rank}.log"

    def msrun(self, script: Path) -> list[str]:
        """The arguments of ``msrun``, which runs the Python file ``script`` in each rank."""
        options = {
            "worker_num": self.size,
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
        """The ranks' environment; ``folder`` contains the ``python`` that they run."""
        defaults = {"GLOG_v": "3"}  # MindSpore logs errors only
        if target_of(self.command) == "cpu":  # else each rank takes all cores
            defaults["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(self.ranks)))
        return {
            **defaults,
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
    ranks: Annotated[int, typer.Option(min=1, help="Ranks on all machines, one per device.")],
    rank_table_file: Annotated[
        Path | None, typer.Option(help="Huawei's rank table, for HCCL.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Index of this machine, from 0.")] = 0,
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.")] = "127.0.0.1",
    master_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help=f"A free port of machine 0; {PORT} on several machines."
        ),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the logs of the ranks.")] = Path(
        "launch-logs"
    ),
) -> None:
    """Run train or eval with several ranks, one per device, on one or more machines."""
    _require_command(command)
    if ranks % nodes:
        raise UsageError(f"{ranks} is not a multiple of the {nodes} machines", key="ranks")
    if node_rank >= nodes:
        raise UsageError(f"is {node_rank}; {nodes} machines are 0 to {nodes - 1}", key="node_rank")
    if nodes > 1 and master_addr in ("127.0.0.1", "localhost"):
        raise UsageError(
            "give the address of machine 0, to which the others connect", key="master_addr"
        )
    if not master_addr:
        raise UsageError("is empty; give the address of machine 0", key="master_addr")
    if rank_table_file is not None:
        require_fit(rank_table_file, read_rank_table(rank_table_file), ranks, nodes)
    port = master_port or (PORT if nodes > 1 else 0)
    if node_rank == 0:
        port = _free_port(master_addr, port)
    if importlib.util.find_spec("mindspore") is None:
        raise BackendError(
            "MindSpore is not installed; run: pip install 'refinedet[cpu]'", key="launch"
        )
    logs.mkdir(parents=True, exist_ok=True)
    job = Job(tuple(command), ranks, nodes, node_rank, master_addr, port, rank_table_file, logs)
    with _locked(logs), _ended_by_signals():
        typer.echo(f"ranks {job.ranks[0]} to {job.ranks[-1]} of {ranks}; their logs are in {logs}")
        with tempfile.TemporaryDirectory(prefix="refinedet-launch-") as folder:
            _run(job, Path(folder))


def target_of(command: Sequence[str]) -> str:
    """The device that a command names, ``cpu`` if none; another backend by its name."""
    target = "cpu"
    for i, argument in enumerate(command):
        name, _, value = argument.partition("=")
        if name in ("--backend", "--target"):
            target = value or "".join(command[i + 1 : i + 2])
    return target.removeprefix("mindspore-")


def _require_command(command: list[str]) -> None:
    if command[0] not in COMMANDS:
        raise BackendError(
            f"runs {' or '.join(COMMANDS)}, as: launch --ranks 2 -- train ...", key="launch"
        )
    if any(argument.partition("=")[0] == "--device-id" for argument in command):
        raise UsageError("each rank has a device of its own; leave it out", key="device_id")
    if (target := target_of(command)) not in TARGETS:
        raise BackendError(
            f"{target} cannot run several ranks; "
            f"give --target {', '.join(TARGETS[:-1])} or {TARGETS[-1]}",
            key="launch",
        )


def _free_port(address: str, port: int) -> int:
    """Check that the port is free; for 0, choose a free one. Return it."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"{address}:{port}: {reason}; choose another port, or --master-addr",
                key="master_port",
            ) from error
        return int(tried.getsockname()[1])


@contextmanager
def _locked(logs: Path) -> Iterator[None]:
    """Lock the log folder for this job, which reads the errors of failed ranks from it."""
    handle = os.open(logs, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{logs}: another launch uses it; choose another folder", key="logs"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise an error on SIGTERM and SIGHUP, to kill the ranks and remove the folder."""

    def end(number: int, frame: object) -> None:
        for other in before:  # a second signal must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        raise BackendError(
            f"was ended by {signal.Signals(number).name}; train continues with --resume",
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
    script, python = folder / "rank.py", folder / "python"
    script.write_text("from refinedet.adapters.mindspore.rank import main\n\nmain()\n")
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
    """The status that each rank has written, by rank."""
    notes = (json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json")))
    return {note["rank"]: note for note in notes}


def _watch(job: Job, folder: Path, process: subprocess.Popen[bytes]) -> str | None:
    """Wait for the end of the job; return why it failed, or None."""
    ended: float | None = None
    while True:
        running = process.poll() is None  # read first, so that no later status is missed
        notes = _notes(folder)
        scheduler = folder / SCHEDULER
        if process.returncode is not None and process.returncode < 0:
            return f"MindSpore's launcher, msrun, was killed; see {job.logs / 'msrun.log'}"
        killed = [n for n in notes.values() if n["status"] is None and not _lives(n["pid"])]
        if killed:
            rank, pid = killed[0]["rank"], killed[0]["pid"]
            return (
                f"rank {rank} (process {pid}) was killed, or ran out of memory; "
                f"its log is {job.log(rank)}; train continues with --resume"
            )
        failed = [n for n in notes.values() if n["status"]]
        if failed:
            errors = [(n["rank"], _error_line(job.log(n["rank"]))) for n in failed]
            causes = [(rank, line) for rank, line in errors if line and SEE_OTHER_LOG not in line]
            if causes:
                return f"{causes[0][1]} (rank {causes[0][0]})"
            rank, status = failed[0]["rank"], failed[0]["status"]
            return f"rank {rank} ended with status {status}; see {job.log(rank)}"
        at_work = [n for n in notes.values() if n["status"] is None]
        if at_work and scheduler.exists() and not _lives(json.loads(scheduler.read_text())["pid"]):
            return (
                f"MindSpore's scheduler was killed; see {job.logs / 'scheduler.log'}; "
                "train continues with --resume"
            )
        if notes.keys() == set(job.ranks) and all(n["status"] == 0 for n in notes.values()):
            ended = ended or time.monotonic()
            if not running or time.monotonic() - ended > GRACE:
                return None
        elif not running:
            return f"the ranks did not start; see {job.logs / 'msrun.log'}"
        time.sleep(OFTEN)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _error_line(log: Path) -> str | None:
    """The last error line in a rank's log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return errors[-1] if errors else None


def _end(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill the ranks, each in a session of its own, msrun and the scheduler, if they still run."""
    groups = [note["pid"] for note in _notes(folder).values()]
    for group in [*groups, process.pid]:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Print a log while it is written, except its error lines, which the job reports at its end."""
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
