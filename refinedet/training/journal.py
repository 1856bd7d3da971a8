"""What a run reports while it goes on: to the terminal, to its log and to its metrics."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from refinedet.models.run_folder import LOG, METRICS
from refinedet.support.files import write_atomically
from refinedet.training.curves import read_metrics


class Silence:
    """The journal of a worker that is not the first."""

    def say(self, line: str) -> None:
        """See ``Journal``."""

    def note(self, row: dict[str, Any]) -> None:
        """See ``Journal``."""

    def close(self) -> None:
        """See ``Journal``."""


class Journal(Silence):
    """What a run says: to the terminal, to ``log.txt`` and to ``metrics.jsonl``."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        path, kept = folder / METRICS, []
        if path.exists():  # what follows the checkpoint happens again
            kept = [r for r in read_metrics(path) if r["step"] <= steps_done]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(path, lines)
        self.log: TextIO = (folder / LOG).open("a")
        self.metrics: TextIO = path.open("a")

    def say(self, line: str) -> None:
        """Print a line above the progress bar and keep it."""
        tqdm.write(line)
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self.log.flush()

    def note(self, row: dict[str, Any]) -> None:
        """Keep a row of metrics."""
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()

    def close(self) -> None:
        """End both files."""
        self.log.close()
        self.metrics.close()
