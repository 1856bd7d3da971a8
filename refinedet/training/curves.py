"""The curves of a run: its losses, learning rate and average precision over the steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinedet.data.images import write_image
from refinedet.errors import DataError
from refinedet.spec.types import Array

LOSSES = ("total", "arm_offsets", "arm_logits", "odm_offsets", "odm_logits")
RATES = ("learning_rate",)
PRECISIONS = ("AP", "AP50", "VOC07", "VOC12")


def curves(metrics: Path | Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a run over its steps: parts of the loss, learning rate, precision.

    Args:
        metrics: a file of JSON lines, or what they hold. Each has "step" and any of
            ``LOSSES``, ``RATES``, ``PRECISIONS``; other fields are not read, and a
            value that is null or not finite leaves a gap.
        path: a PNG. A panel with nothing to show says so.
    Raises:
        DataError: the file cannot be read, or a line is not such an object.
        WriteError: the image cannot be written.
    """
    # Slow to import, and only needed at the end of a run. No pyplot: its state is global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics) if isinstance(metrics, Path) else list(metrics)
    figure = Figure(figsize=(9, 10), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = {"loss": LOSSES, "learning rate": RATES, "average precision": PRECISIONS}
    for axes, (title, names) in zip(figure.subplots(3, 1), panels.items(), strict=True):
        positive = False
        for name in names:
            steps, values = _series(rows, name)
            if steps.size:
                axes.plot(steps, values, label=name, marker="." if steps.size < 50 else "")
                positive = positive or bool((values > 0).any())
        if title == "loss" and positive:
            axes.set_yscale("log", nonpositive="mask")
        if title == "average precision":
            axes.set_ylim(0, 1)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center")
    canvas.draw()
    write_image(path, np.asarray(canvas.buffer_rgba())[..., :3])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with a whole number as "step".

    A last line without its end is what a killed run leaves: it is not read.

    Raises:
        DataError: the file cannot be read, or a line is not such an object; names it.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", path=path) from error
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", path=path, key=f"line {number}") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise DataError(f'{path}: line {number}: expected an object with a whole "step"')
        rows.append(row)
    return rows


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    """Steps and values of one metric, nan where a line has it without a number."""
    points = [
        (row["step"], float(x) if isinstance(x := row[name], (int, float)) else math.nan)
        for row in rows
        if name in row
    ]
    steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, math.nan)
