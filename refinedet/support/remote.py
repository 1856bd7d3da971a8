"""Folders at a URL, and copies of them on this machine.

    file:///mnt/store/coco    a folder of this machine, such as a mounted one
    s3://bucket/coco          Amazon's S3, and other services with its protocol
    obs://bucket/coco         Huawei's OBS: through moxing if it is installed, else as S3

A file is written under another name, renamed, and given the store's modification time. As with
rsync, a file of the same size and time is not copied again, so an interrupted copy continues.
Requests that fail temporarily are repeated by the store's own library, which knows which they
are and how long to wait: botocore for S3, moxing for OBS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from refinedet.errors import RemoteError
from refinedet.support.files import replacing

CACHE = Path("data-cache")
"""Default folder of the copies of data sets."""
KEYS = "the URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the endpoint in "
CHECK = {
    "file": "the path and its permissions",
    "s3": KEYS + "AWS_ENDPOINT_URL",
    "obs": KEYS + "S3_ENDPOINT",
}
"""Schemes of URLs, and what to check when a request fails."""
ATTEMPTS = 5
"""Attempts of a request to S3, the first included; the waits between them are at most 15 s."""
ROUNDS = 2
"""Attempts of s3fs, each with all of botocore's, after a connection broke or timed out. In the
middle of a file only s3fs repeats."""
CONNECT, SILENCE = 3, 10
"""Timeouts in seconds: to connect to S3, and to read from it."""
THREADS = 16
"""Files transferred at once: requests wait for the network, not for this machine."""
BLOCK = 32 << 20
"""Bytes of a file in one request."""


class Entry(NamedTuple):
    """A file of a store: its size in bytes and its modification time in ms since 1970."""

    size: int
    time: int


class Store(Protocol):
    """A folder at a URL. Names are relative to it, with slashes. All raise ``RemoteError``."""

    url: str

    def entries(self) -> dict[str, Entry]:
        """All files below the URL, by name; empty if there is no such folder."""

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """Copy a file to ``path``, which does not exist; OSError if it cannot be written."""

    def put(self, path: Path, name: str) -> None:
        """Copy a file to the store; its readers see the old content or the new."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


def open_store(url: str) -> Store:
    """The store at a URL; no request is sent yet.

    Raises:
        RemoteError: another scheme, no folder in the URL, or a missing library.
    """
    scheme, _, folder = url.partition("://")
    if scheme not in CHECK or not folder.strip("/"):
        raise RemoteError(
            "is no URL of a folder; give file://, s3:// or obs:// and its path", path=repr(url)
        )
    url = url.rstrip("/")
    if scheme == "obs" and (moxing := _moxing()):
        return MoxingStore(url, moxing)
    return FsspecStore(url)


class FsspecStore:
    """A store through fsspec: a folder, or a bucket of S3."""

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
        with _remote_errors(self.url):
            files = self._files.find(self._root, detail=True)
        if self._root in files:
            raise RemoteError("is a file; give the URL of its folder", path=self.url)
        return {
            path.removeprefix(self._root + "/"): Entry(info["size"], _milliseconds(info))
            for path, info in files.items()
            if not path.endswith("/")  # S3's object for a folder
        }

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """See ``Store``."""
        with path.open("wb") as file:
            for start in range(0, entry.size, BLOCK):
                end = min(start + BLOCK, entry.size)
                with _remote_errors(f"{self.url}/{name}"):
                    block = self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
                file.write(block)

    def put(self, path: Path, name: str) -> None:
        """See ``Store``."""
        goal = f"{self._root}/{name}"
        with _remote_errors(f"{self.url}/{name}"):
            if self.scheme == "file":
                Path(goal).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(goal)) as draft:
                    self._files.put_file(str(path), str(draft))
            else:  # S3 shows an object once it is complete
                self._files.put_file(str(path), goal)

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with _remote_errors(f"{self.url}/{name}"):
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm_file(f"{self._root}/{name}")


class MoxingStore:
    """A bucket of OBS, through the library of ModelArts' images."""

    def __init__(self, url: str, moxing: Any) -> None:
        self.url = url
        self._files = moxing.file

    def entries(self) -> dict[str, Entry]:
        """See ``Store``."""
        with _remote_errors(self.url), ThreadPoolExecutor(THREADS) as pool:
            if not self._files.exists(self.url):
                return {}
            names = self._files.list_directory(self.url, recursive=True)
            stats = pool.map(lambda name: self._files.stat(f"{self.url}/{name}"), names)
            return {
                name: Entry(stat.length, stat.mtime_nsec // 1_000_000)
                for name, stat in zip(names, stats, strict=True)
                if not stat.is_directory
            }

    def get(self, name: str, entry: Entry, path: Path) -> None:
        """See ``Store``."""
        with _remote_errors(f"{self.url}/{name}"):
            self._files.copy(f"{self.url}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        """See ``Store``."""
        with _remote_errors(f"{self.url}/{name}"):
            self._files.copy(str(path), f"{self.url}/{name}")

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with _remote_errors(f"{self.url}/{name}"):
            if self._files.exists(f"{self.url}/{name}"):
                self._files.remove(f"{self.url}/{name}", recursive=False)


def _moxing() -> Any:
    """ModelArts' library, or None. A different project on PyPI has this name, but no ``file``."""
    try:
        import moxing
    except ImportError:
        return None
    return moxing if hasattr(moxing, "file") else None


def _connection(url: str, scheme: str) -> dict[str, Any]:
    """Arguments of fsspec's file system; botocore reads the keys from its usual variables."""
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
    if not endpoint:  # else the name of the key would be sent to Amazon
        raise RemoteError(
            "no endpoint; set S3_ENDPOINT, as https://obs.cn-north-4.myhuaweicloud.com", path=url
        )
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    config |= {
        # OBS expects the bucket in the host's name, and lacks Amazon's newer checksums.
        "s3": {"addressing_style": "virtual"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return {"endpoint_url": endpoint, "config_kwargs": config}


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """Raise every failure in the block as a RemoteError: the libraries have many classes."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        check = CHECK[url.partition("://")[0]]
        raise RemoteError(f"{reason.rstrip('.')}; check {check}", path=url) from error


def _milliseconds(info: Mapping[str, Any]) -> int:
    seconds = info["mtime"] if "mtime" in info else info["LastModified"].timestamp()
    return int(seconds * 1000)


def _is_current(path: Path, entry: Entry) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns // 1_000_000) == entry


def _require_inside(url: str, name: str) -> None:
    """Refuse a name that leads out of the folder: a bucket's keys can be any text."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise RemoteError(
            f"has the key {name!r}, which cannot be a path in a folder; rename it", path=url
        )


def copy_in(store: Store, entries: Mapping[str, Entry], folder: Path) -> int:
    """Copy files from a store into a folder, except those that are current.

    Args:
        entries: the store's files to copy.
        folder: created if it is missing. Its other files stay.
    Returns:
        The number of files copied.
    Raises:
        RemoteError: a request fails; or a name leads out of the folder, then nothing is copied.
        OSError: the folder cannot be written to.
    """
    for name in entries:
        _require_inside(store.url, name)
    missing = {n: e for n, e in entries.items() if not _is_current(folder / n, e)}

    def fetch(name: str) -> None:
        entry, goal = entries[name], folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        with replacing(goal) as draft:
            store.get(name, entry, draft)
            if draft.stat().st_size != entry.size:
                raise RemoteError("changed during the copy; run again", path=f"{store.url}/{name}")
            os.utime(draft, ns=(entry.time * 1_000_000, entry.time * 1_000_000))

    with ThreadPoolExecutor(THREADS) as pool:
        copied = pool.map(fetch, missing)  # the first failure cancels those not begun
        for _ in tqdm(copied, "copying", len(missing), disable=None, delay=2, unit="file"):
            pass
    return len(missing)


def copy_data(url: str, cache: Path, log: Callable[[str], None]) -> Path:
    """Copy a data set to this machine, or bring its copy up to date.

    Files that were removed from the store stay. Only one process at a time may do this.

    Args:
        url: of the data set's folder.
        cache: folder of all such copies; created if it is missing.
        log: called with a line that states how many files were copied.
    Returns:
        The copy's folder, ``CACHE/BUCKET/FOLDER``.
    Raises:
        RemoteError, OSError: as ``copy_in``; also if there is no file at the URL.
    """
    store = open_store(url)
    name = store.url.partition("://")[2].strip("/")
    _require_inside(url, name)
    entries = store.entries()
    if not entries:
        raise RemoteError("no file there; check the URL", path=url)
    folder = cache / name
    copied = copy_in(store, entries, folder)
    log(f"{url}: {len(entries)} files in {folder}, {copied} of them copied now")
    return folder
