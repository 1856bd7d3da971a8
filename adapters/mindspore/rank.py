"""One rank of a job, started by MindSpore's launcher for ``refinedet launch``.

It runs the command line. In the job's folder it writes a note with its process id, and with its
exit status when it ends. It ends when the command that launched it ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from refinedet.adapters.mindspore.ranktable import read_rank_table
from refinedet.support.files import write_json

FOLDER = "REFINEDET_LAUNCH_FOLDER"
SCHEDULER = "scheduler.json"
"""The note of MindSpore's scheduler; the ranks' notes are named by their numbers."""
LAUNCHER = "REFINEDET_LAUNCHER"
"""Variables with the job's folder, and the process id of the command that launched it."""
OFTEN = 1.0
"""Seconds between two checks that the launcher runs."""


def main() -> None:
    """Run the command line in this rank; as the scheduler, let MindSpore schedule."""
    launcher = int(os.environ[LAUNCHER])
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    if os.environ["MS_ROLE"] == "MS_SCHED":
        write_json(Path(os.environ[FOLDER]) / SCHEDULER, {"pid": os.getpid()})
        from mindspore import communication

        communication.init()  # ends the process when all ranks have ended
        return
    rank = int(os.environ["RANK_ID"])
    note = Path(os.environ[FOLDER]) / f"{rank}.json"
    write_json(note, {"rank": rank, "pid": os.getpid(), "status": None})
    status: object = 1
    try:
        if table := os.environ.get("RANK_TABLE_FILE"):
            devices = {r: d for server in read_rank_table(Path(table)) for r, d in server.items()}
            os.environ["DEVICE_ID"] = str(devices[rank])
        from refinedet.cli.app import main as command_line

        command_line()
    except SystemExit as stop:  # so ends every command
        status = stop.code or 0
        raise
    finally:
        write_json(note, {"rank": rank, "pid": os.getpid(), "status": status})


def _end_with(launcher: int) -> None:
    """End this process when that one has ended, even by ``kill -9``."""
    while True:
        try:
            os.kill(launcher, 0)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(OFTEN)
