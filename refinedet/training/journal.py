"""The log and the metrics of a run, written while it goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from refinedet.models.run_folder import LOG, METRICS
from refinedet.support.files import write_atomically
from refinedet.training.curves import read_metrics


class Journal:
    """Writes ``log.txt`` and ``metrics.jsonl`` of a run, and lines to the terminal."""

    def __init__(self, folder: Path, steps_done: int, *, writes: bool = True) -> None:
        """Open both files to append; metrics of steps after ``steps_done`` are removed.

        Args:
            writes: false on all ranks but the first: then nothing is written or printed.
        """
        self._files = None
        if writes:
            path, kept = folder / METRICS, []
            if path.exists():  # what follows the checkpoint happens again
                kept = [row for row in read_metrics(path) if row["step"] <= steps_done]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._files = (folder / LOG).open("a"), path.open("a")

    def log(self, line: str) -> None:
        """Print a line above the progress bar and append it to the log."""
        if self._files is not None:
            tqdm.write(line)
            self._files[0].write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._files[0].flush()

    def record(self, row: dict[str, Any]) -> None:
        """Append a row of metrics."""
        if self._files is not None:
            self._files[1].write(json.dumps(row) + "\n")
            self._files[1].flush()

    def close(self) -> None:
        """Close both files."""
        for file in self._files or ():
            file.close()
