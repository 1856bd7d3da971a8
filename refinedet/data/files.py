"""Files of a data set: annotation files, and files looked up by the names in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refinedet.data.dataset import Location
from refinedet.data.findings import POLICY, Findings
from refinedet.errors import DataError
from refinedet.support.files import read_regular_file


class FileFinder:
    """Looks up files by the names in annotations, which may not lead out of a folder."""

    missing = "missing annotation"
    """Kind of finding for a name without a file."""

    def __init__(self, root: Path, findings: Findings) -> None:
        """Raise a ``DataError`` unless ``root`` is a folder with something in it."""
        try:
            if not any(root.iterdir()):
                raise DataError("empty folder", path=root)
        except OSError as error:
            raise DataError(f"cannot read the folder: {error.strerror}", path=root) from None
        self.root = root
        self._inside = os.path.realpath(root).rstrip(os.sep) + os.sep
        self._findings = findings

    def find(self, where: Location, name: str) -> Path | None:
        """The regular file of that name; None and a finding where there is none.

        Args:
            where: the row that holds the name, for the finding.
        """
        try:
            path = self.root / name
            real = os.path.realpath(path)  # follows links: they may not lead out either
            if Path(name).is_absolute() or ".." in path.parts[len(self.root.parts) :]:
                reason = f"{name} is not below {self.root}"
                return self._refuse("path leaves the folder", where, reason)
            if not real.startswith(self._inside):
                reason = f"{name} leads to {real}"
                return self._refuse("path leaves the folder", where, reason)
            status = path.stat()
        except FileNotFoundError:
            return self._refuse(self.missing, where, f"there is no {self.root / name}")
        except (OSError, ValueError) as error:
            reason = str(error.strerror if isinstance(error, OSError) else "not a file's name")
            return self._refuse(self.missing, where, f"{name}: {reason}")
        if not stat.S_ISREG(status.st_mode):
            return self._refuse(self.missing, where, f"{path} is not a file")
        return self._accept(where, path, real, status.st_size)

    def _accept(self, where: Location, path: Path, real: str, size: int) -> Path | None:
        """The path, if a regular file of this real path and size may be used."""
        return path

    def _refuse(self, kind: str, where: Location, reason: str) -> Path | None:
        advice = ": left out" if POLICY[kind] == "skip" else "; keep all files in one folder"
        self._findings.add(kind, where, reason + advice)
        return None


class ImageFinder(FileFinder):
    """Looks up images: they are not empty, and each is listed once, under one name."""

    missing = "missing image"

    def _accept(self, where: Location, path: Path, real: str, size: int) -> Path | None:
        if size == 0:
            return self._refuse("unreadable image", where, f"{path} is empty")
        first = self._findings.images_listed.setdefault(real, where)
        if first is not where:
            reason = f"{path} is the image of {first}; list each image once"
            self._findings.add("duplicate id", where, reason)
            return None
        return path


def read_file(path: Path) -> bytes:
    """The bytes of an annotation file.

    Raises:
        DataError: it cannot be read, is not a regular file, or is empty.
    """
    try:
        data = read_regular_file(path)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    if not data.strip():
        raise DataError("empty file", path=path)
    return data


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without the white space around them.

    Raises:
        DataError: as ``read_file``; names the line that is not UTF-8.
    """
    data = read_file(path)
    try:
        return [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text; save it as UTF-8", path=path, key=f"line {line}") from None


def parse_float(text: str) -> float:
    """``float`` of a number as other programs write it, so not of 1_0 or of other scripts' digits.

    Raises:
        ValueError: not a number.
    """
    return float(_plain_digits(text))


def parse_int(text: str) -> int:
    """``int``, as strict as ``parse_float``."""
    return int(_plain_digits(text))


def _plain_digits(text: str) -> str:
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number")
    return text
