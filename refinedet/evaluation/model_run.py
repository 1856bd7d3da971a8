"""A detector evaluated by a protocol, and by that of its published metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from refinedet.backends.interface import Backend
from refinedet.backends.process_group import group_of
from refinedet.data.dataset import Dataset
from refinedet.data.source import DataSource, read_dataset
from refinedet.errors import DataError
from refinedet.evaluation.coco_results import write_results
from refinedet.evaluation.dataset_run import collect, scoring_bar, write_evaluation
from refinedet.evaluation.metrics import METRICS, Evaluation
from refinedet.evaluation.protocols import Protocol, chosen_images, find_protocol, under
from refinedet.evaluation.published import Published
from refinedet.evaluation.resume_journal import Ledger, describe
from refinedet.inference.multiscale import MultiScalePredictor
from refinedet.inference.predictor import Predictor
from refinedet.models import run_folder
from refinedet.models.open import Model, open_model

LEFT_OUT = ("missing image", "unreadable image")
"""Findings that change the metrics of a data set whose images are all known to be there."""


def evaluate_model(
    backend: Backend,
    path: Path,
    source: DataSource,
    protocol: Protocol | None = None,
    output: Path | None = None,
    resume: bool = False,
    batch_size: int = 8,
    tell: Callable[[Dataset], object] = len,
) -> Evaluation:
    """Evaluate a model; write tables and detections if there is an output folder.

    Args:
        path: as ``open_model`` takes it.
        protocol: None takes all images, and the model's own detection settings.
        resume: go on with the interrupted evaluation of ``output``.
        tell: is called with the data set once it is read.
    Raises:
        BackendError, CheckpointError, DataError, SettingsError: see ``open_model``; data
            that cannot be used, or of other classes; something else in ``output``.
    """
    opened = open_model(backend, path)
    dataset = _data_of(opened, path, source)
    tell(dataset)
    dataset.require_usable()
    network, fusion = opened.network, None
    if protocol is not None:
        network, dataset = under(protocol, network), chosen_images(protocol, dataset)
        fusion = protocol.fusion(network.config)
    count = min(batch_size, len(dataset))
    if fusion is None:
        predict = Predictor(network, count).predict
    else:
        predict = MultiScalePredictor(network, fusion, opened.remade, count).predict
    group = group_of(backend)
    if group.size > 1 and resume:
        raise DataError("one worker goes on with an evaluation; leave out launch", key="--resume")
    if output is None or group.rank:
        return collect(predict, dataset, group=group).result(scoring_bar)
    output.mkdir(parents=True, exist_ok=True)
    subject = describe(path, network.config, backend.name, dataset, fusion)
    ledger = Ledger(output / run_folder.UNFINISHED, subject, resume)
    try:
        evaluator = collect(predict, dataset, ledger if group.size == 1 else None, group)
    finally:
        ledger.close()
    write_results(output / run_folder.RESULTS, dataset.category_ids, evaluator.found)
    evaluation = write_evaluation(output, evaluator)
    ledger.remove()
    return evaluation


def _data_of(opened: Model, path: Path, source: DataSource) -> Dataset:
    """The data set, its classes those of the model and every image decoded."""
    names = source.class_names or opened.class_names
    try:
        dataset = read_dataset(replace(source, class_names=names), check_images=True)
    except DataError as error:
        shown = ", ".join(opened.class_names)
        raise DataError(f"{error} ({path} detects {shown})") from error
    if dataset.class_names != opened.class_names:
        raise DataError(
            f"detects {', '.join(opened.class_names)}; the data set has "
            f"{', '.join(dataset.class_names)}; name the model's with --classes",
            path=path,
        )
    return dataset


@dataclass(frozen=True)
class Reported:
    """Published metrics, and the files from which a backend is to reach them."""

    model: Path
    """As ``open_model`` takes it."""
    annotations: Path
    """COCO's JSON file."""
    images: Path
    """Folder of its images."""
    row: Published
    retrained: bool = False
    """Ask no more than of a detector trained anew: see ``published.compare``."""

    @property
    def protocol(self) -> Protocol:
        """The one that the row was measured by."""
        return find_protocol(self.row.protocol)

    @property
    def source(self) -> DataSource:
        """Where the data set is."""
        return DataSource("coco", annotations=self.annotations, images=self.images)

    def require_usable(self) -> None:
        """Read all that is given, and compute nothing.

        Raises:
            CheckpointError, DataError, SettingsError: see ``evaluate_model``; a row
                without COCO's metrics; an image that is missing or damaged.
        """
        if self.row.main not in METRICS:
            raise DataError(
                f"has {self.row.main}, give a row of COCO's", key=f"--expect {self.row.name}"
            )
        dataset = _data_of(open_model(_NO_BACKEND, self.model), self.model, self.source)
        dataset.require_usable()
        for finding in dataset.findings:
            if finding.kind in LEFT_OUT:
                raise DataError(f"{finding}; the published metrics are of all images")
        chosen_images(self.protocol, dataset)

    def evaluate(self, backend: Backend) -> Evaluation:
        """What ``eval --protocol`` measures, by the row's protocol."""
        return evaluate_model(backend, self.model, self.source, self.protocol)


def _no_network(*arguments: Any) -> Any:
    return None


_NO_BACKEND = cast(Backend, SimpleNamespace(network=_no_network, load=_no_network))
"""Opens a model to see what it is."""
