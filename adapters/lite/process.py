"""Where MindSpore Lite runs: in this process, or in a Lite process under another interpreter.

A Lite process answers in time or is ended, and each of its failures is an error of one line. It
has a session of its own, so that ending it also ends what it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from refinedet.adapters.lite import process_main
from refinedet.errors import BackendError
from refinedet.spec.types import Array

VARIABLE = "REFINEDET_LITE_PYTHON"
LIMITS = {"start": 120, "convert": 3600, "load": 1200, "run": 600}
"""Seconds for an answer."""
PATIENCE = 5
"""Seconds for a Lite process to end by itself."""
HOW_TO = "it needs NumPy and mindspore-lite, see docs/ascend310.md"
ERROR_LINE = re.compile(r"^\[ERROR\] .*?\] \w+\] (.*)$", re.M)
"""An error in Lite's log; the first one shows the cause, later ones its consequences."""

T = TypeVar("T")


class Interpreter(NamedTuple):
    """A Python that has Lite."""

    path: str
    source: str
    """The argument or variable that names it, for errors."""

    def __str__(self) -> str:
        return f"{self.source} {self.path}"


def other_interpreter(lite_python: Path | None) -> Interpreter | None:
    """The interpreter that the argument or the variable names, or None."""
    if lite_python is not None:
        # A path has lost its "./", without which a name is searched for on PATH.
        path = lite_python.absolute() if lite_python.is_file() else lite_python
        return Interpreter(str(path), "lite_python")
    named = os.environ.get(VARIABLE)
    return Interpreter(named, VARIABLE) if named else None


THIS = Interpreter(sys.executable, "this Python,")


def lacks_lite(python: Interpreter | None) -> str | None:
    """Why Lite cannot be used, in this process or under that interpreter."""
    if python is None:
        if find_spec("mindspore_lite") is None:
            return (
                "MindSpore Lite is not installed for this Python; name an interpreter that has it "
                f"as lite_python or in {VARIABLE}; {HOW_TO}"
            )
        return None
    try:
        LiteProcess(python)
    except BackendError as error:
        return str(error)
    return None


class Runner(Protocol):
    """A loaded model; see ``process_main.Detector``."""

    inputs: list[Any]

    def run(self, images: Array) -> dict[str, Array]:
        """The outputs by name. Raises BackendError, one line."""


class InProcess:
    """A model that this process runs. Lite holds Python's lock while it does."""

    def __init__(self, path: Path, **given: Any) -> None:
        os.environ.setdefault(process_main.QUIET, "4")  # errors are reported by the exception
        self._detector = _one_line(lambda: process_main.Detector(str(path), **given))
        self.inputs = self._detector.inputs

    def run(self, images: Array) -> dict[str, Array]:
        """See ``Runner``."""
        return _one_line(lambda: self._detector.run(images))


def _one_line(work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:  # Lite's, and those of a package that is damaged
        reason = " ".join(str(error).split())
        raise BackendError(f"{type(error).__name__}: {reason}", key="MindSpore Lite") from error


class LiteProcess:
    """A process that runs ``process_main.py``."""

    def __init__(self, python: Interpreter) -> None:
        self._python = python
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python.path, "-I", process_main.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise BackendError(
                f"cannot start it: {error.strerror}; {HOW_TO}", key=python
            ) from error
        weakref.finalize(self, _end, self._process, self._log)
        self.versions, _ = self._in_time("start", self._greeted)

    def _greeted(self) -> tuple[dict[str, Any], dict[str, Array]]:
        assert self._process.stdout is not None
        greeting = self._process.stdout.read(len(process_main.GREETING))
        if len(greeting) < len(process_main.GREETING):
            raise EOFError
        if greeting != process_main.GREETING:
            raise ValueError("no greeting")
        return process_main.receive(self._process.stdout)

    def ask(
        self, call: str, given: dict[str, Any], arrays: dict[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Send the process a call; its answer and arrays.

        Raises:
            BackendError: Lite or the process failed; one line.
        """
        logged = os.fstat(self._log.fileno()).st_size

        def asked() -> tuple[dict[str, Any], dict[str, Array]]:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            head = {"call": call, "given": given, "limit": LIMITS[call]}
            process_main.send(stdin, head, arrays or {})
            return process_main.receive(stdout)

        head, outputs = self._in_time(call, asked)
        if "error" in head:
            cause = ERROR_LINE.search(self._logged(logged))
            why = f" ({cause[1]})" if cause else ""
            raise BackendError(f"{' '.join(head['error'].split())}{why}", key="MindSpore Lite")
        return head, outputs

    def _in_time(self, call: str, work: Callable[[], T]) -> T:
        """The result of ``work``; a process that does not answer in time is ended."""
        process, late = self._process, threading.Event()

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(LIMITS[call], stop)
        timer.daemon = True
        timer.start()
        try:
            return work()
        except (EOFError, OSError, ValueError) as error:
            # It has ended, unless its answer is malformed.
            malformed = isinstance(error, ValueError)
            if malformed:
                _kill(process)
            raise BackendError(self._fate(call, late.is_set(), malformed)) from error
        finally:
            timer.cancel()

    def _fate(self, call: str, late: bool, malformed: bool) -> str:
        begun = f"{self._python}: "
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # it closed its output and lives
            _kill(self._process)
            status = self._process.wait()
        if late or status == -signal.SIGALRM:
            return f"{begun}no answer to {call!r} within {LIMITS[call]} s; the process was ended"
        lines = self._logged(0).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        shown = f": {last[:300]}" if last else ""
        if malformed:
            return f"{begun}does not run as a Python interpreter{shown}; {HOW_TO}"
        if call == "start":
            return (
                f"{begun}cannot run MindSpore Lite, it ended with status {status}{shown}; {HOW_TO}"
            )
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return (
            f"{begun}its Lite process ({self._process.pid}) ended {how} at {call!r}{shown}; if "
            "nobody ended it, memory may have run out: see dmesg"
        )

    def _logged(self, start: int) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size - start, start).decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # does nothing to one that is known to have ended


def _end(process: subprocess.Popen[bytes], log: Any) -> None:
    """End a process whose owner is gone: first by closing its input."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended, and what was not sent cannot be
            pipe.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    log.close()


class Remote:
    """A model that a Lite process runs."""

    def __init__(self, python: Interpreter, path: Path, **given: Any) -> None:
        self._lite = LiteProcess(python)
        head, _ = self._lite.ask("load", {"path": str(path), **given})
        self.inputs = head["inputs"]

    def run(self, images: Array) -> dict[str, Array]:
        """See ``Runner``."""
        _, outputs = self._lite.ask("run", {}, {"images": np.ascontiguousarray(images)})
        return outputs
