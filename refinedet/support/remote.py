"""Folders at a URL: data sets that are copied in, runs that are copied out.

    file:///mnt/store/coco    a folder of this machine, as a mounted one
    s3://bucket/coco          Amazon's S3, and whatever speaks its protocol
    obs://bucket/coco         Huawei's OBS: through moxing where that is, else as S3

A file is copied beside its goal and renamed, and gets the time that the store says: as with
rsync, a file of the same size and time is there already, so an interrupted copy goes on.
Requests that fail in passing are sent again by the store's own library, which knows which
ones those are and how long to wait: botocore for S3, moxing for OBS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from refinedet.errors import RemoteError
from refinedet.support.files import replacing

CACHE = Path("data-cache")
"""Where copies of data sets lie if nobody says where."""
KEYS = "the URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the endpoint in "
CHECK = {
    "file": "the path and its permissions",
    "s3": KEYS + "AWS_ENDPOINT_URL",
    "obs": KEYS + "S3_ENDPOINT",
}
"""Kinds of URL, and what to look at when one fails."""
ATTEMPTS = 5
"""Times that a request to S3 is sent, the first included; the waits add up to 15 s at most."""
ROUNDS = 2
"""s3fs repeats all that where a connection broke or was silent; at most this often, the first
time included. In the middle of a file it alone does."""
CONNECT, SILENCE = 3, 10
"""Seconds that S3 has to take a connection, and that it may be silent on one."""
THREADS = 16
"""Files on their way at once: a request waits for the network, not for this machine."""
BLOCK = 32 << 20
"""Bytes of a file that are asked for at once."""
SETTINGS = "settings.yaml"
"""The file that makes a folder a run: copied in last, and out before every checkpoint."""


class Entry(NamedTuple):
    """A file of a store: its size in bytes, and when it was written, ms since 1970."""

    size: int
    time: int


class Store(Protocol):
    """A folder at a URL. Names are relative to it, with slashes. All raise ``RemoteError``."""

    url: str

    def entries(self) -> dict[str, Entry]:
        """All files below, by name; empty where no such folder is."""

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """Copy a file to ``path``, which is not there yet; OSError if that cannot be written."""

    def put(self, path: Path, name: str) -> None:
        """Copy a file to the store; whoever reads it sees the old content or the new."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""


def open_store(url: str) -> Store:
    """The store at a URL; nothing is asked of it yet.

    Raises:
        RemoteError: another kind of URL, no folder in it, or a missing library.
    """
    scheme, _, place = url.partition("://")
    if scheme not in CHECK or not place.strip("/"):
        raise RemoteError(
            "is no URL of a folder; give file://, s3:// or obs:// and where", key=repr(url)
        )
    url = url.rstrip("/")
    if scheme == "obs" and (moxing := _moxing()):
        return MoxingStore(url, moxing)
    return FsspecStore(url)


class FsspecStore:
    """A store that fsspec reads and writes: a folder, or a bucket of S3."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scheme = url.partition("://")[0]
        try:
            import fsspec

            self._files: Any = fsspec.filesystem(
                "file" if self.scheme == "file" else "s3",
                skip_instance_cache=True,
                use_listings_cache=False,
                **_connection(url, self.scheme),
            )
            self._files.retries = ROUNDS
        except ImportError as error:
            raise RemoteError(f"{error}; pip install 'refinedet[remote]'", path=url) from error
        path = self.url if self.scheme != "obs" else url.replace("obs://", "s3://", 1)
        self._root: str = self._files._strip_protocol(path)

    def entries(self) -> dict[str, Entry]:
        """See ``Store``."""
        with _told(self.url):
            found = self._files.find(self._root, detail=True)
        if self._root in found:
            raise RemoteError("is a file; give the URL of its folder", path=self.url)
        return {
            path.removeprefix(self._root + "/"): Entry(info["size"], _milliseconds(info))
            for path, info in found.items()
            if not path.endswith("/")  # the mark of a folder
        }

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """See ``Store``."""
        with path.open("wb") as file:
            for start in range(0, entry.size, BLOCK):
                end = min(start + BLOCK, entry.size)
                with _told(f"{self.url}/{name}"):
                    block = self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
                file.write(block)

    def put(self, path: Path, name: str) -> None:
        """See ``Store``."""
        goal = f"{self._root}/{name}"
        with _told(f"{self.url}/{name}"):
            if self.scheme == "file":
                Path(goal).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(goal)) as draft:
                    self._files.put_file(str(path), str(draft))
            else:  # S3 shows an object when all of it has arrived
                self._files.put_file(str(path), goal)

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with _told(f"{self.url}/{name}"):
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm_file(f"{self._root}/{name}")


class MoxingStore:
    """A bucket of OBS, by the library that ModelArts' images have."""

    def __init__(self, url: str, moxing: Any) -> None:
        self.url = url
        self._files = moxing.file

    def entries(self) -> dict[str, Entry]:
        """See ``Store``."""
        with _told(self.url), ThreadPoolExecutor(THREADS) as pool:
            if not self._files.exists(self.url):
                return {}
            names = self._files.list_directory(self.url, recursive=True)
            told = pool.map(lambda name: self._files.stat(f"{self.url}/{name}"), names)
            return {
                name: Entry(stat.length, stat.mtime_nsec // 1_000_000)
                for name, stat in zip(names, told, strict=True)
                if not stat.is_directory
            }

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """See ``Store``."""
        with _told(f"{self.url}/{name}"):
            self._files.copy(f"{self.url}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        """See ``Store``."""
        with _told(f"{self.url}/{name}"):
            self._files.copy(str(path), f"{self.url}/{name}")

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with _told(f"{self.url}/{name}"):
            if self._files.exists(f"{self.url}/{name}"):
                self._files.remove(f"{self.url}/{name}", recursive=False)


def _moxing() -> Any:
    """The library of ModelArts, or None. PyPI's project of that name is another: no ``file``."""
    try:
        import moxing
    except ImportError:
        return None
    return moxing if hasattr(moxing, "file") else None


def _connection(url: str, scheme: str) -> dict[str, Any]:
    """Arguments of fsspec's file system. What is not here, botocore finds in its own places."""
    if scheme == "file":
        return {}
    config: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "connect_timeout": CONNECT,
        "read_timeout": SILENCE,
    }
    if scheme == "s3":
        return {"config_kwargs": config}
    endpoint = os.environ.get("S3_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:  # Amazon's would be asked, and told the keys' name
        raise RemoteError(
            "no endpoint; set S3_ENDPOINT, as https://obs.cn-north-4.myhuaweicloud.com", path=url
        )
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    config |= {
        "s3": {"addressing_style": "virtual"},  # OBS expected the bucket in the host's name,
        "request_checksum_calculation": "when_required",  # and knows none of Amazon's newer
        "response_checksum_validation": "when_required",  # checksums
    }
    return {"endpoint_url": endpoint, "config_kwargs": config}


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Every failure in the block as a RemoteError: the libraries have dozens of kinds."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        check = CHECK[url.partition("://")[0]]
        raise RemoteError(f"{reason.rstrip('.')}; check {check}", path=url) from error


def _milliseconds(info: Mapping[str, Any]) -> int:
    seconds = info["mtime"] if "mtime" in info else info["LastModified"].timestamp()
    return int(seconds * 1000)


def _is_there(path: Path, entry: Entry) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns // 1_000_000) == entry


def _require_inside(url: str, name: str) -> None:
    """Refuse a name that leads elsewhere: keys of a bucket are any text."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise RemoteError(f"has the name {name!r}, which is none in a folder; rename it", path=url)


def copy_in(store: Store, entries: Mapping[str, Entry], folder: Path) -> int:
    """Copy files from a store into a folder, but for those that are there already.

    Args:
        entries: the store's files to copy.
        folder: made if need be. What else is in it stays.
    Returns:
        How many were copied.
    Raises:
        RemoteError: the store fails, or a name leads out of the folder; then nothing is copied.
        OSError: the folder cannot be written to.
    """
    for name in entries:
        _require_inside(store.url, name)
    missing = {n: e for n, e in entries.items() if not _is_there(folder / n, e)}

    def fetch(name: str) -> None:
        entry, goal = entries[name], folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        with replacing(goal) as draft:
            store.get(name, entry, draft)
            if draft.stat().st_size != entry.size:
                raise RemoteError("changed meanwhile; run again", key=f"{store.url}/{name}")
            os.utime(draft, ns=(entry.time * 1_000_000, entry.time * 1_000_000))

    with ThreadPoolExecutor(THREADS) as pool:
        copied = pool.map(fetch, missing)  # the first failure withdraws those not begun
        for _ in tqdm(copied, "copying", len(missing), disable=None, delay=2, unit="file"):
            pass
    return len(missing)


def copy_data(url: str, cache: Path, say: Callable[[str], None]) -> Path:
    """A data set's copy on this machine, brought up to date.

    Files that the store has no more are not removed. Not for two processes at once.

    Args:
        url: of the data set's folder.
        cache: folder of all such copies; made if need be.
        say: is told how much was copied.
    Returns:
        The copy's folder, ``CACHE/BUCKET/FOLDER``.
    Raises:
        RemoteError, OSError: as ``copy_in``; also where there is no file.
    """
    store = open_store(url)
    place = store.url.partition("://")[2].strip("/")
    _require_inside(url, place)
    entries = store.entries()
    if not entries:
        raise RemoteError("no file there; check the URL", path=url)
    folder = cache / place
    copied = copy_in(store, entries, folder)
    say(f"{url}: {len(entries)} files in {folder}, {copied} of them copied now")
    return folder


class RunCopy:
    """A run's copy at a URL: all of its folder but the cache of images, which it can remake."""

    def __init__(self, url: str, run: Path, *, resume: bool) -> None:
        """Look at the URL; a run to resume that is not on this machine is copied in.

        Args:
            run: the run's folder.
            resume: the URL may hold the run already.
        Raises:
            RemoteError: the store fails, or holds a run and ``resume`` is not given.
            OSError: the folder cannot be written to.
        """
        self._store = open_store(url)
        self._run = run
        entries = self._store.entries()
        if SETTINGS in entries:
            if not resume:
                raise RemoteError("holds a run; choose another --train-url, or --resume", path=url)
            if not (run / SETTINGS).exists():
                begin = {SETTINGS: entries.pop(SETTINGS)}
                copy_in(self._store, entries, run)
                copy_in(self._store, begin, run)
        # What this run has at the store, and how it was when it was sent; None: not by us.
        self._sent: dict[str, tuple[int, int] | None] = dict.fromkeys(self._names())

    def _names(self) -> Iterable[str]:
        """The run's files; checkpoints last: with one, the rest of its time is there too."""
        found = (p.relative_to(self._run) for p in self._run.rglob("*") if p.is_file())
        kept = [p for p in found if p.parts[0] != "cache" and not p.name.startswith(".")]
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
        """Copy out what is new, remove what the run has removed; a failure is only told."""
        try:
            self._send()
        except RemoteError as error:
            tqdm.write(f"{error}. It will be tried again")

    def finish(self) -> None:
        """``save`` once more, after the run's end.

        Raises:
            RemoteError: the copy is not whole; says how to make it so.
        """
        try:
            self._send()
        except RemoteError as error:
            raise RemoteError(
                f"{error}. The run is whole in {self._run}; the same command with --resume "
                "copies it out"
            ) from error
