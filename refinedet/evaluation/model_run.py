"""Evaluation of a model on a data set, by a protocol or with the model's own settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from refinedet.backends.interface import Backend
from refinedet.backends.process_group import by_first
from refinedet.data.dataset import Dataset
from refinedet.data.source import DataSource, read_dataset
from refinedet.errors import DataError, UsageError
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.coco_results import write_results
from refinedet.evaluation.dataset_run import (
    collect_detections,
    scoring_bar,
    write_evaluation,
)
from refinedet.evaluation.metrics import Evaluation
from refinedet.evaluation.protocols import (
    Protocol,
    counted_images,
    find_protocol,
    with_protocol,
)
from refinedet.evaluation.published import Published
from refinedet.evaluation.resume_journal import ResumeJournal, evaluation_subject
from refinedet.inference.multiscale import MultiScalePredictor
from refinedet.inference.predictor import Predictor
from refinedet.models import run_folder
from refinedet.models.open import ModelFile, open_network, read_model
from refinedet.support.files import make_folder, require_folder
from refinedet.support.text import Report, to_stderr

INCOMPLETE = ("missing image", "unreadable image")
"""Kinds of findings that make a data set incomplete, so that published metrics do not apply."""


def evaluate_model(
    backend: Backend,
    model: Path | ModelFile,
    source: DataSource,
    protocol: Protocol | None = None,
    output: Path | None = None,
    resume: bool = False,
    batch_size: int = 8,
    report: Report = to_stderr,
) -> Evaluation:
    """Evaluate a model; write metrics and detections if an output folder is given.

    Args:
        model: result of ``read_model``, or a path for it.
        protocol: None uses all images and the model's own detection settings.
        output: folder for ``results.json``, ``evaluation.json``, ``evaluation.txt``,
            ``detections.png``, and, until the evaluation is complete, its journal.
        resume: continue the interrupted evaluation in ``output``.
        batch_size: images per batch.
        report: called with a line about copied or skipped data.
    Raises:
        UsageError: ``resume`` with several ranks; a data set whose classes are not the model's.
        BackendError, CheckpointError, DataError, SettingsError: see ``read_model``; data
            that cannot be used; another evaluation in ``output``.
    """
    group, data = backend.group, source
    if group.size > 1 and resume:
        raise UsageError("an evaluation on several ranks cannot be resumed", key="resume")
    if output is not None:
        require_folder(output)
    file = read_model(model) if isinstance(model, Path) else model
    opened = open_network(backend, file)
    source = by_first(group, lambda: data.fetched(report))
    dataset = _read_data(file, source)
    dataset.require_usable()
    if summary := dataset.skipped_summary():
        report(summary)
    network, fusion = opened.network, None
    if protocol is not None:
        network, dataset = with_protocol(protocol, network), counted_images(protocol, dataset)
        fusion = protocol.fusion(network.config)
    count = min(batch_size, len(dataset))
    if fusion is None:
        predict = Predictor(network, count).predict
    else:
        predict = MultiScalePredictor(network, fusion, opened.rebuild, count).predict
    if output is None or group.rank:
        return collect_detections(predict, dataset, group=group).result(scoring_bar)
    make_folder(output)
    subject = evaluation_subject(file.digest, network.config, backend.name, dataset, fusion)
    journal = ResumeJournal(output / run_folder.UNFINISHED, subject, resume)
    try:
        evaluator = collect_detections(
            predict, dataset, journal if group.size == 1 else None, group
        )
    finally:
        journal.close()
    write_results(output / run_folder.RESULTS, dataset.category_ids, evaluator.detections)
    evaluation = write_evaluation(output, evaluator)
    journal.remove()
    return evaluation


def _read_data(model: ModelFile, source: DataSource) -> Dataset:
    """Read the data set with the model's classes, and check that every image decodes."""
    path, class_names = model.path, model.class_names
    source = replace(source, class_names=source.class_names or class_names)
    model_classes = ", ".join(class_names)
    try:
        dataset = read_dataset(source, check_images=True)
    except DataError as error:
        reason = f"{error.reason} ({path} detects {model_classes})"
        raise DataError(reason, path=error.path, key=error.key) from error
    if dataset.class_names != class_names:
        raise UsageError(
            f"the data set has {', '.join(dataset.class_names)}, but {path} detects "
            f"{model_classes}; give the names of the model",
            key="class_names",
        )
    return dataset


@dataclass(frozen=True)
class Reported:
    """Published metrics, and the model and data set that should reproduce them."""

    model: Path
    """Path for ``read_model``."""
    annotations: Path
    """COCO's JSON file."""
    images: Path
    """Folder of its images."""
    row: Published
    retrained: bool = False
    """Require only what a retrained detector must reach: see ``published.compare``."""

    @property
    def protocol(self) -> Protocol:
        """The protocol of the published row."""
        return find_protocol(self.row.protocol)

    @property
    def source(self) -> DataSource:
        """The data set, in COCO's layout."""
        return DataSource("coco", annotations=self.annotations, images=self.images)

    def require_usable(self) -> None:
        """Read the model's settings and the data set, and check that they can be evaluated.

        Raises:
            UsageError: a row without COCO's metrics; a data set whose classes are not the model's.
            CheckpointError, DataError, SettingsError: see ``evaluate_model``; an image
                that is missing or damaged.
        """
        if self.row.main not in COCO_METRICS:
            raise UsageError(
                f"{self.row.name} has {self.row.main}; give a row with COCO's metrics",
                key="expect",
            )
        dataset = _read_data(read_model(self.model), self.source)
        dataset.require_usable()
        for finding in dataset.findings:
            if finding.kind in INCOMPLETE:
                raise finding.as_error("; the published metrics are of all images")
        counted_images(self.protocol, dataset)

    def evaluate(self, backend: Backend, model: ModelFile) -> Evaluation:
        """Evaluate a model that ``read_model`` returned, by the row's protocol."""
        return evaluate_model(backend, model, self.source, self.protocol)
