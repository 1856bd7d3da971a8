"""The command ``detect``."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from refinedet.backends.registry import BackendChoice
from refinedet.cli.backend_options import with_backend
from refinedet.cli.option_groups import ModelOption
from refinedet.data.images import IMAGE_SUFFIXES, read_image, write_image
from refinedet.errors import DataError, UsageError
from refinedet.inference.detector import Detector
from refinedet.inference.drawing import detections_json, draw_detections
from refinedet.models.open import open_model
from refinedet.models.run_folder import DETECTIONS_JSON
from refinedet.spec.detection import Detections
from refinedet.spec.types import Array
from refinedet.support.files import make_folder, require_folder, write_json

Paths = Annotated[list[Path], typer.Argument(help="Images, or folders of images.")]
Output = Annotated[Path, typer.Option(help="Folder for drawn images and detections.json.")]
Score = Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection.")]


@with_backend
def detect(
    backend: BackendChoice,
    paths: Paths,
    model: ModelOption,
    output: Output = Path("detections"),
    score: Score = 0.5,
) -> None:
    """Detect objects in images; write drawn images and a JSON file of boxes in pixels."""
    files = list(_image_files(paths))
    _require_distinct(files, output)
    require_folder(output)
    detector = Detector(open_model(backend.find("network"), model), min(8, len(files)))
    rows = []
    waiting: deque[tuple[Path, Array]] = deque()
    unreadable: list[DataError] = []
    for results in detector.stream(_readable(files, waiting, unreadable), score):
        file, image = waiting.popleft()
        make_folder(output)
        drawn = draw_detections(
            image, results.boxes, results.labels, results.scores, detector.class_names
        )
        write_image(output / f"{file.name}.png", drawn)
        height, width = image.shape[:2]
        detections = Detections(results.boxes, results.scores, results.labels)
        rows.append((str(file), width, height, detections))
    if rows:
        write_json(output / DETECTIONS_JSON, detections_json(rows, detector.class_names))
    if unreadable:
        raise DataError(f"left out {len(unreadable)} of {len(files)} images: {unreadable[0]}")
    count = sum(len(row[3].labels) for row in rows)
    typer.echo(f"{count} objects in {len(files)} images; see {output}")


def _readable(
    files: list[Path], waiting: deque[tuple[Path, Array]], unreadable: list[DataError]
) -> Iterator[Array]:
    """Yield the readable images, also added to ``waiting``; add errors to ``unreadable``."""
    for file in tqdm(files, "detecting", disable=None, delay=2, unit="image"):
        try:
            waiting.append((file, read_image(file)))
        except DataError as error:
            unreadable.append(error)
            continue
        yield waiting[-1][1]


def _require_distinct(files: list[Path], output: Path) -> None:
    """Refuse two images of the same name, and an output folder that contains input images."""
    counts = Counter(file.name for file in files)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            "is given twice, or is in several folders; detect in one after the other",
            key=repeated[0],
        )
    folder = Path(os.path.realpath(output))  # resolve raises at a loop of links
    if any(Path(os.path.realpath(file)).parent == folder for file in files):
        raise UsageError(f"{output} holds images to detect in; choose another folder", key="output")


def _image_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise DataError("no such image or folder", path=path)
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise DataError("is neither a file nor a folder; give an image", path=path)
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError("no image in this folder", path=path)
        yield from files
