"""A run's copy at a URL: copied out while the run is trained, copied in to resume it.

``settings.yaml`` makes a folder a run: it is copied in last, and out before every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from refinedet.errors import RemoteError
from refinedet.models import run_folder
from refinedet.support.remote import copy_in, open_store


class RunCopy:
    """A run's copy at a URL: its whole folder, except the cache of images."""

    def __init__(self, url: str, run: Path, *, resume: bool) -> None:
        """Copy in a run to resume, if it is at the URL and not on this machine.

        Args:
            run: the run's folder.
            resume: the URL may hold the run.
        Raises:
            RemoteError: a request fails; or the URL holds a run and ``resume`` is False.
            OSError: the folder cannot be written to.
        """
        self._store = open_store(url)
        self._run = run
        entries = self._store.entries()
        if run_folder.SETTINGS in entries:
            if not resume:
                raise RemoteError("holds a run; choose another URL, or resume the run", path=url)
            if not (run / run_folder.SETTINGS).exists():
                last = {run_folder.SETTINGS: entries.pop(run_folder.SETTINGS)}
                copy_in(self._store, entries, run)
                copy_in(self._store, last, run)
        # Names at the store, with size and time when they were sent; None if by another process.
        self._sent: dict[str, tuple[int, int] | None] = dict.fromkeys(self._names())

    def _names(self) -> Iterable[str]:
        """The run's files, checkpoints last: the files that go with one are sent before it."""
        files = (p.relative_to(self._run) for p in self._run.rglob("*") if p.is_file())
        kept = [p for p in files if p.parts[0] != run_folder.CACHE and not p.name.startswith(".")]
        return [p.as_posix() for p in sorted(kept, key=lambda p: (len(p.parts), p))]

    def _send(self) -> None:
        names = self._names()
        for name in names:
            stat = (self._run / name).stat()
            now = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(name) != now:
                self._store.put(self._run / name, name)
                self._sent[name] = now
        for name in self._sent.keys() - set(names):
            self._store.remove(name)
            del self._sent[name]

    def save(self) -> None:
        """Copy new files out, remove those that the run removed; a failure is only printed."""
        try:
            self._send()
        except RemoteError as error:
            tqdm.write(f"{error}. The copy is tried again later")

    def finish(self) -> None:
        """As ``save``, after the run's end.

        Raises:
            RemoteError: the copy is incomplete.
        """
        try:
            self._send()
        except RemoteError as error:
            raise RemoteError(
                f"{error.reason}. The run in {self._run} is complete; resume it to copy it out",
                path=error.path,
                key=error.key,
            ) from error
