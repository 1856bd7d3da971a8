"""The journal of an evaluation, by which an interrupted one is resumed.

A file of JSON lines. The first identifies the evaluation: digests of the model's file, of
the settings and of the data. Each other line holds the detections of one image, and is
written as soon as they are computed. A journal is truncated at its first line that is
incomplete or damaged: the images from there on are run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refinedet.data.dataset import Dataset
from refinedet.errors import DataError, WriteError
from refinedet.settings import Settings, to_yaml
from refinedet.spec.config import Config
from refinedet.spec.detection import Detections
from refinedet.spec.fusion import FusionConfig
from refinedet.support.files import file_digest, require_regular_file
from refinedet.version import __version__

FORMAT = "refinedet resume journal 1"


class ResumeJournal:
    """The images that are done. One process at a time may have it open."""

    def __init__(self, path: Path, subject: Mapping[str, str], resume: bool = False) -> None:
        """Begin a journal, or continue it.

        Args:
            path: the file; its folder exists.
            subject: what is evaluated: ``evaluation_subject``.
            resume: continue the file if there is one.
        Raises:
            DataError: there is a journal and ``resume`` is False, or it is of another
                evaluation, or ``path`` is not a regular file.
        """
        self.path = path
        self._done = 0
        header = {"format": FORMAT, "version": __version__, **subject}
        if path.exists():
            try:
                require_regular_file(path)
            except OSError as error:
                reason = f"{error.strerror}; remove it, or choose another folder"
                raise DataError(reason, path=path) from error
            if not resume:
                raise DataError(
                    "an evaluation was interrupted here; resume it, or remove the file", path=path
                )
            self._done = self._valid_bytes(header)
        self._file: BinaryIO = path.open("r+b" if self._done else "wb")
        if self._done:
            self._file.truncate(self._done)
            self._file.seek(self._done)
        else:
            self._write(header)

    def _valid_bytes(self, header: dict[str, str]) -> int:
        """Bytes of the complete lines at the start of the file."""
        size = 0
        with self.path.open("rb") as file:
            for line in file:
                entry = _entry(line)
                if entry is None:
                    break
                if size == 0:
                    self._require_header(entry, header)
                elif _detections(entry) is None:
                    break
                size += len(line)
        return size

    def _require_header(self, entry: Mapping[str, object], header: dict[str, str]) -> None:
        for name, value in header.items():
            if entry.get(name) != value:
                raise DataError(
                    f"was begun with another {name}; "
                    "remove the file to begin anew, or choose another folder",
                    path=self.path,
                )

    def finished(self) -> Iterator[tuple[int, Detections]]:
        """Image id and detections of every image that was done when it was opened."""
        with self.path.open("rb") as file:
            left = self._done - len(file.readline())
            while left > 0:
                line = file.readline()
                left -= len(line)
                entry = _entry(line)
                if entry is not None and (done := _detections(entry)) is not None:
                    yield done

    def add(self, image_id: int, detections: Detections) -> None:
        """Write the detections of an image.

        Raises:
            WriteError: the disk is full.
        """
        columns = {name: column.tolist() for name, column in detections._asdict().items()}
        self._write({"image_id": image_id, "dtype": detections.boxes.dtype.name, **columns})

    def _write(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()  # to the operating system: kept if this process is killed
        except OSError as error:
            reason = error.strerror or str(error)
            raise WriteError(f"cannot write: {reason}; free some space", path=self.path) from error

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def remove(self) -> None:
        """Close and remove the file, when the evaluation is complete."""
        self.close()
        self.path.unlink(missing_ok=True)


def _entry(line: bytes) -> dict[str, object] | None:
    """The JSON object of a line; None where it is incomplete or damaged."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _detections(entry: Mapping[str, object]) -> tuple[int, Detections] | None:
    """Image id and detections of an entry; None where they are damaged."""
    try:
        image_id, dtype = entry["image_id"], entry["dtype"]
        boxes = np.array(entry["boxes"], dtype).reshape(-1, 4)  # type: ignore[call-overload]
        scores = np.array(entry["scores"], dtype)  # type: ignore[call-overload]
        labels = np.array(entry["labels"], np.int64)
    except (KeyError, TypeError, ValueError):
        return None
    if type(image_id) is not int or not len(boxes) == len(scores) == len(labels):
        return None
    return image_id, Detections(boxes, scores, labels)


def evaluation_subject(
    model: str,
    config: Config,
    backend: str,
    dataset: Dataset,
    fusion: FusionConfig | None = None,
) -> dict[str, str]:
    """Digests that identify an evaluation.

    Args:
        model: ``refinedet.models.open.ModelFile.digest``.
        config: of the network, with the detection settings that are used.
        backend: its name.
        fusion: of several views of an image; part of the digest of the settings.
    """
    settings = to_yaml(Settings(model=config))
    if fusion is not None:
        settings += repr(fusion)
    return {
        "model": model,
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        "backend": backend,
        "data set": data_digest(dataset),
    }


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of a data set: classes, contents of the images, objects; not of paths."""
    digest = hashlib.sha256(
        json.dumps([dataset.class_names, dataset.category_ids, len(dataset)]).encode()
    )
    for record in dataset.records:
        digest.update(f"{record.image_id} {record.width} {record.height}\0".encode())
        digest.update(file_digest(record.path))
        for column in (record.boxes, record.labels, record.areas, record.crowd, record.difficult):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
