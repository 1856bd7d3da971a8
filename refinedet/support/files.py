"""Reading regular files only, and writing files whole or not at all.

A file is written under a temporary name in the same folder, forced to the disk, and renamed:
its readers see the old content or the new, also after a crash. If writing fails, the old
content stays and the temporary file is removed. A killed process may leave a hidden file
``.NAME.TOKEN.SUFFIX``, which nothing reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from refinedet.errors import WriteError

ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "its folder is a file",
    errno.EACCES: "check the folder's permissions",
    errno.EROFS: "choose a folder that can be written to",
    errno.EISDIR: "choose the name of a file",
    errno.EINVAL: "choose the name of a file",
    errno.EEXIST: "choose another folder",
}


def require_regular_file(path: Path) -> None:
    """Refuse a folder, a named pipe or a device; links are followed, and no file is opened.

    A reader might wait for a pipe, and read a device without end.

    Raises:
        OSError: with the ``strerror`` "not a file". A path where nothing is passes.
        ValueError: a path that no file can have.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file", str(path))


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes; as ``open`` and ``require_regular_file``."""
    require_regular_file(path)
    return path.open("rb")


def read_regular_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file, the first ``limit`` of them if given; as ``open_regular_file``."""
    with open_regular_file(path) as file:
        return file.read(-1 if limit is None else limit)


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content, read in blocks; errors as ``open_regular_file``."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def require_replaceable(path: Path) -> None:
    """Refuse a path where no file can be written, before there is anything to write.

    Raises:
        WriteError: a folder, a named pipe or a device, which would be replaced; no folder for it.
    """
    try:
        _require_no_other(path)
        if not path.parent.is_dir():
            code = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
            raise OSError(code, os.strerror(code))
        if not os.access(path.parent, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _failure("write", path, error) from error


def require_folder(path: Path) -> None:
    """Refuse a path that is no folder and where none can be created.

    Raises:
        WriteError: it, or what it is in, is no folder.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        which = "is" if there == path else f"{there} is"
        raise WriteError(f"{which} no folder; choose another folder", path=path)


def make_folder(path: Path) -> None:
    """Create a folder, and those that it is in; one that exists is left as it is.

    Raises:
        WriteError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure("create", path, error) from error


def _require_no_other(path: Path) -> None:
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    require_regular_file(path)


def _failure(what: str, path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0)
    failure = WriteError(f"cannot {what}: {reason}{'; ' + advice if advice else ''}", path=path)
    failure.errno = error.errno
    return failure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file, which replaces ``path`` when the block ends without an error.

    Args:
        path: the file to replace. Its folder must exist.
    Yields:
        An unused name in the same folder, with the same suffix. The block creates the file
        and closes it.
    Raises:
        WriteError: a folder, a named pipe or a device; an error of the system, in the block
            or after it: disk full, no folder, no permission. ``errno`` holds the system's code.
    """
    if not path.name:  # an empty option, such as from an unset shell variable
        raise WriteError("cannot write: choose the name of a file", path=path)
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        _require_no_other(path)
        yield draft
        _force_to_disk(draft)
        draft.replace(path)
    except WriteError:
        raise
    except OSError as error:
        raise _failure("write", path, error) from error
    finally:
        with suppress(OSError):
            draft.unlink()
    with suppress(OSError):  # the rename is done; some systems cannot force a folder
        _force_to_disk(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file, or leave the old one.

    Args:
        path: the file to replace; its folder must exist.
        content: bytes, or text, which is stored as UTF-8 with unchanged line ends.
    Raises:
        WriteError: as ``replacing``.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as draft:
        draft.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON as ``write_atomically`` does."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
