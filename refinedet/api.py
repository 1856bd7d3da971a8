"""The public functions of ``import refinedet``, one for each main command.

    detector = refinedet.load("runs/bccd")
    for name, score, box in detector("image.jpg"):
        print(name, score, box)

Every function raises a ``RefineDetError`` whose message is one line: the file, argument or row,
the reason, and what to do. Paths may be strings. ``backend`` is a name that ``refinedet backends``
lists; there is no fallback to another device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from refinedet.backends.registry import DEFAULT, find_backend
from refinedet.data.source import DataSource
from refinedet.errors import UsageError
from refinedet.evaluation.metrics import Evaluation
from refinedet.evaluation.model_run import evaluate_model
from refinedet.evaluation.protocols import find_protocol
from refinedet.inference.detector import Detector
from refinedet.models.export import export_model
from refinedet.models.open import open_model
from refinedet.support.text import shown
from refinedet.training.dry_run import describe
from refinedet.training.loop import train as run_training
from refinedet.training.preparation import TrainingOptions, prepare


def load(
    model: str | Path,
    *,
    backend: str = DEFAULT,
    batch_size: int = 8,
    device_id: int | None = None,
) -> Detector:
    """Open a trained detector.

    Args:
        model: folder of a run (its newest checkpoint is used), a checkpoint, weights, or an
            exported file.
        backend: name of the backend.
        batch_size: images per batch, if several are given.
        device_id: index of the device; None for the first.
    Returns:
        A detector, called with a path, an array (H, W, 3) uint8 RGB, or an iterable of them.
    Raises:
        RefineDetError: there is no such model, or the backend cannot run it here.
    """
    path, count = _path("model", model), _count("batch_size", batch_size)
    options = {} if device_id is None else {"device_id": device_id}
    engine = find_backend(_text("backend", backend), "network", **options)
    return Detector(open_model(engine, path), count)


def dataset(
    layout: str,
    *,
    root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    class_names: Sequence[str] = (),
    url: str | None = None,
) -> DataSource:
    """Describe a data set for ``train`` and ``evaluate``, without reading it.

    Args:
        layout: ``coco``, ``voc`` or ``text``.
        root: VOC's folder; for other layouts, ``annotations`` and ``images`` are relative to it.
        annotations: COCO's JSON file, or the text list.
        images: folder of the images.
        split: VOC's lists in ImageSets/Main, separated by commas.
        class_names: classes to use, in order; empty for those of the data set.
        url: ``file://``, ``s3://`` or ``obs://`` folder to copy to this machine first.
    Raises:
        UsageError: an argument is missing, or not used with this layout.
    """
    source = DataSource(
        layout,
        _optional_path("root", root),
        _optional_path("annotations", annotations),
        _optional_path("images", images),
        None if split is None else _text("split", split),
        _list("class_names", class_names),
        None if url is None else _text("url", url),
    )
    source.check()
    return source


def train(
    run: str | Path,
    data: DataSource,
    *,
    evaluation: DataSource | None = None,
    preset: str | None = None,
    settings: str | Path | None = None,
    assignments: Sequence[str] = (),
    resume: bool = False,
    backbone: str | Path | None = None,
    initial: str | Path | None = None,
    partial: str | None = None,
    backend: str = DEFAULT,
    dry_run: bool = False,
) -> Path:
    """Train a detector; evaluate it if an evaluation set is given.

    Args:
        run: folder of the run; new or empty unless ``resume``.
        data: images to train on.
        evaluation: images to evaluate on.
        preset: name of the preset that provides the initial settings.
        settings: YAML file of settings that override the preset.
        assignments: ``KEY=VALUE`` that override both, for example ``model.schedule.rate=0.01``.
        resume: continue from the run's newest checkpoint.
        backbone, initial: file of initial weights, of the backbone or of the whole detector.
        partial: patterns, separated by commas, of tensors that may be missing from that file.
        backend: name of the backend.
        dry_run: check everything and print a description of the run; write nothing.
    Returns:
        The folder of the run, which ``load`` accepts.
    Raises:
        RefineDetError: mutually exclusive arguments, before any data are read; invalid data,
            settings or weights; a loss that is not finite.
    """
    options = TrainingOptions(
        run=_path("run", run),
        data=_data("data", data),
        evaluation=None if evaluation is None else _data("evaluation", evaluation),
        preset=None if preset is None else _text("preset", preset),
        settings=_optional_path("settings", settings),
        assignments=tuple(_text("assignments", a) for a in _list("assignments", assignments)),
        resume=resume,
        backbone=_optional_path("backbone", backbone),
        initial=_optional_path("initial", initial),
        partial=None if partial is None else _text("partial", partial),
    )
    options.check()
    prepared = prepare(
        find_backend(_text("backend", backend), "network", "trainer", "batches"), options
    )
    if dry_run:
        print(describe(prepared))
    else:
        run_training(prepared)
    return options.run


def evaluate(
    model: str | Path,
    data: DataSource,
    *,
    protocol: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    batch_size: int = 8,
    backend: str = DEFAULT,
) -> Evaluation:
    """Evaluate a trained detector on a data set.

    Args:
        model: as for ``load``.
        data: images to evaluate on; their classes must be the model's.
        protocol: name of an evaluation protocol; None uses all images and the model's own
            detection settings.
        output: folder for the tables, ``results.json`` and samples.
        resume: continue the interrupted evaluation in ``output``.
        batch_size: images per batch.
        backend: name of the backend.
    Returns:
        An ``Evaluation``; its ``metrics`` maps the names of COCO's twelve metrics, VOC07 and
        VOC12 to values from 0 to 1, or nan.
    Raises:
        RefineDetError: an invalid model, invalid data or invalid arguments.
    """
    path, source = _path("model", model), _data("data", data)
    rules = None if protocol is None else find_protocol(_text("protocol", protocol))
    folder, count = _optional_path("output", output), _count("batch_size", batch_size)
    if resume and folder is None:
        raise UsageError("needs output, the folder of the evaluation to continue", key="resume")
    engine = find_backend(_text("backend", backend), "network")
    return evaluate_model(engine, path, source, rules, folder, resume, count)


def export(
    model: str | Path, output: str | Path, *, heads: bool = False, backend: str = DEFAULT
) -> Path:
    """Export a trained detector in the backend's file format (MindIR, AIR, ONNX).

    Args:
        model: as for ``load``.
        output: the file to write; its settings are written beside it, as ``NAME.yaml``.
        heads: export the raw outputs instead of boxes and scores.
        backend: name of the backend, which determines the file format.
    Returns:
        The file, which ``load`` accepts.
    Raises:
        RefineDetError: the backend cannot export, or the file cannot be written.
    """
    source, path = _path("model", model), _path("output", output)
    engine = find_backend(_text("backend", backend), "network", "export")
    export_model(engine, open_model(engine, source), path, heads=heads)
    return path


def _path(key: str, value: str | Path) -> Path:
    try:
        path = Path(value)
    except TypeError:
        raise UsageError(f"expected a path, got {shown(value)}", key=key) from None
    if "\0" in str(path):
        raise UsageError(f"{shown(str(path))} holds a NUL, as no path does", key=key)
    return path


def _optional_path(key: str, value: str | Path | None) -> Path | None:
    return None if value is None else _path(key, value)


def _text(key: str, value: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"expected a text, got {shown(value)}", key=key)
    return value


def _list(key: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UsageError(f"expected a list of texts, got {shown(values)}", key=key)
    return tuple(values)


def _count(key: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"expected a whole number from 1, got {shown(value)}", key=key)
    return value


def _data(key: str, value: DataSource) -> DataSource:
    if not isinstance(value, DataSource):
        raise UsageError(f"expected what dataset() returns, got {shown(value)}", key=key)
    return value
