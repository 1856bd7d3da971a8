"""A process of its own for a backend, which may crash or hang without ending this one."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from hypothesis.configuration import set_hypothesis_home_dir
from tqdm import tqdm

import refinedet.conformance.checks  # noqa: F401 - fills the registry
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.registry import declared_limitations
from refinedet.errors import BackendError
from refinedet.spec.errors import RefineDetError

STARTING = threading.Lock()
"""Held while a process starts, because it inherits the environment variables of this one."""


class ProcessEndedError(Exception):
    """The process crashed or hung; the message completes a sentence: "... ends the process"."""


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start here multiply matrices on one thread, unless the user chose a number.

    The order of additions is then the same on every machine. Where others use the cores too,
    OpenBLAS's threads wait for each other and take four times as long.
    """
    chosen = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = chosen or "1"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = chosen


class BackendProcess:
    """A process that holds one backend and calls functions with it."""

    def __init__(self, backend: BackendChoice, load_limit: float) -> None:
        """A process that has not started yet.

        Args:
            load_limit: seconds within which the backend must be ready.
        """
        self.backend = backend
        self.load_limit = load_limit
        self._process: Any = None
        self._folder: Any = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()  # one thread may close it while another waits for a result

    def start(self) -> None:
        """Start the process and load the backend, if that has not been done.

        Raises:
            BackendError: the backend is unknown or cannot run here.
        """
        if self._pipe is not None:
            return
        context = multiprocessing.get_context("spawn")
        with self._lock:
            self._pipe, remote_end = context.Pipe()
            self._folder = tempfile.TemporaryDirectory(prefix="refinedet-")
            arguments = (remote_end, self._folder.name, self.backend)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            with STARTING, _one_thread():
                self._process.start()
            remote_end.close()
        try:
            fault = self._receive(self.load_limit)
        except ProcessEndedError as error:
            fault = f"backend {self.backend.name}: loading it {error}"
        if fault is not None:
            self.close()
            raise BackendError(str(fault))

    def call(
        self, function: Callable[..., Any], *arguments: Any, limit: float | None = None
    ) -> Any:
        """The result of ``function(backend, *arguments)``, computed in the process.

        Args:
            function: importable by its name; raises nothing.
            limit: seconds until the process counts as hanging and is ended; None for no limit.
        Raises:
            BackendError: see ``start``.
            ProcessEndedError: the process crashed or hung. The next call starts a new one.
        """
        self.start()
        assert self._pipe is not None
        try:
            with contextlib.suppress(OSError):  # a process that has died is noticed below
                self._pipe.send((function, arguments))
            return self._receive(limit)
        except ProcessEndedError:
            self.close()
            raise

    def _receive(self, limit: float | None) -> Any:
        assert self._pipe is not None
        try:
            if self._pipe.poll(limit):
                return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"status {code}"
            raise ProcessEndedError(f"ends the process ({how})") from None
        raise ProcessEndedError(f"does not end within {limit:g} s")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._pipe is not None:
                self._process.kill()
                self._process.join()
                self._pipe.close()
                self._pipe = None
                self._folder.cleanup()


def _serve(pipe: Connection, folder: str, chosen: BackendChoice) -> None:
    """The process: sends None once the backend is ready, or its fault; then results of calls."""
    faulthandler.enable()
    set_hypothesis_home_dir(folder)  # otherwise Hypothesis writes into the user's folder
    tqdm.set_lock(threading.RLock())  # the default lock is a semaphore, which a kill would leak
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too and ends this
    with contextlib.redirect_stdout(sys.stderr):
        try:
            backend = chosen.find()
            declared_limitations(backend)
        except RefineDetError as error:
            pipe.send(str(error))
            return
        except Exception as error:
            traceback.print_exc()
            pipe.send(f"backend {chosen.name}: raises {type(error).__name__}: {error}")
            return
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                function, arguments = pipe.recv()
                pipe.send(function(backend, *arguments))
