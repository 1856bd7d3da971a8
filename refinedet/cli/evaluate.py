"""The command ``eval``: metrics of a model, of a COCO results file, or of the zoo's .bin files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from refinedet.backends.registry import DEFAULT, BackendChoice
from refinedet.cli.backend_options import with_backend
from refinedet.cli.data_options import DataOptions, with_data
from refinedet.data.source import read_dataset
from refinedet.errors import UsageError
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.coco_results import evaluate_coco_results
from refinedet.evaluation.dataset_run import scoring_bar
from refinedet.evaluation.metrics import Evaluation, evaluation_table
from refinedet.evaluation.model_run import evaluate_model
from refinedet.evaluation.modelzoo_bins import ZOO, evaluate_modelzoo_bins
from refinedet.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from refinedet.evaluation.published import (
    Published,
    compare,
    comparison_table,
    find_published,
    require_agreement,
)
from refinedet.spec.presets import preset as named_preset
from refinedet.support.text import to_stderr

Model = Annotated[
    Path | None,
    typer.Option(help="Folder of a run, a checkpoint, or an exported detector."),
]
Results = Annotated[
    Path | None,
    typer.Option(help="COCO results file to score against --annotations, without a model."),
]
ResultsBin = Annotated[
    Path | None,
    typer.Option(help="Folder of .bin files written by the model zoo's Ascend 310 program."),
]
Preset = Annotated[
    str | None, typer.Option(help=f"Preset of the model that wrote --results-bin; default {ZOO}.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for the tables, results.json and samples.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the interrupted evaluation in --output.")
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help=f"Images and detection settings: {', '.join(PROTOCOLS)}. "
        "By default, all images and the model's own settings.",
    ),
]
Expect = Annotated[
    str | None,
    typer.Option(help="Published metrics to reach, e.g. modelzoo-ascend910; else exit status 1."),
]
Retrained = Annotated[
    bool,
    typer.Option(
        "--retrained", help="With --expect: require only what a retrained detector must reach."
    ),
]
ByClass = Annotated[bool, typer.Option("--by-class", help="Also print the metrics of each class.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]

READ_BY = {
    "preset": ("results_bin",),
    "output": ("model", "results_bin"),
    "resume": ("model",),
    "backend": ("model",),
}
"""Options that only some kinds of evaluation use, and those kinds."""


@with_backend
@with_data
def evaluate(
    backend: BackendChoice,
    data: DataOptions,
    model: Model = None,
    results: Results = None,
    results_bin: ResultsBin = None,
    preset: Preset = None,
    output: Output = None,
    resume: Resume = False,
    protocol: ProtocolName = None,
    expect: Expect = None,
    retrained: Retrained = False,
    by_class: ByClass = False,
    batch_size: BatchSize = 8,
) -> None:
    """Print COCO's twelve metrics and VOC's, of a model or of results files."""
    row = _expected(expect, retrained, protocol)
    rules = None if protocol is None else find_protocol(protocol)
    chosen_backend = None if backend == BackendChoice(DEFAULT) else backend
    kind = _kind({"model": model, "results": results, "results_bin": results_bin})
    given = {"preset": preset, "output": output, "resume": resume, "backend": chosen_backend}
    _refuse_unread(kind, given)
    if resume and output is None:
        raise UsageError("needs --output, the folder of the evaluation to continue", key="resume")
    if results is not None:
        evaluation = _evaluate_results(results, data, rules, row)
    elif results_bin is not None:
        evaluation = _evaluate_bins(results_bin, data, preset or ZOO, rules, output)
    else:
        engine, source = backend.find("network"), data.source()
        assert model is not None
        evaluation = evaluate_model(engine, model, source, rules, output, resume, batch_size)
    typer.echo(evaluation_table(evaluation, by_class))
    if row is not None:
        compared = compare(evaluation.metrics, row, retrained)
        typer.echo(f"\n{comparison_table(compared, row, retrained)}")
        require_agreement(compared, row, retrained)


def _expected(expect: str | None, retrained: bool, protocol: str | None) -> Published | None:
    """The published row to compare with; its protocol must be ``protocol``."""
    if expect is None:
        if retrained:
            raise UsageError("needs --expect, the name of published metrics", key="retrained")
        return None
    row = find_published(expect)
    if protocol != row.protocol:
        raise UsageError(
            f"{row.name} was measured by the protocol {row.protocol}; "
            f"give --protocol {row.protocol}",
            key="expect",
        )
    return row


def _kind(given: Mapping[str, object]) -> str:
    """The kind of evaluation: the one option given."""
    kinds = [name for name, value in given.items() if value is not None]
    if not kinds:
        raise UsageError(
            "give a model to evaluate, or --results and --annotations, or --results-bin",
            key="model",
        )
    if len(kinds) > 1:
        raise UsageError(f"is evaluated alone; leave out --{kinds[0]}", key=kinds[1])
    return kinds[0]


def _refuse_unread(kind: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value and kind not in READ_BY[name]:
            flag = kind.replace("_", "-")
            raise UsageError(f"is not read with --{flag}; leave it out", key=name)


def _evaluate_results(
    results: Path, data: DataOptions, protocol: Protocol | None, row: Published | None
) -> Evaluation:
    annotations = data.ground_truth()
    if row is not None and row.main not in COCO_METRICS:
        raise UsageError(
            f"{row.name} has {row.main}, and --results gives COCO's metrics alone", key="expect"
        )
    return evaluate_coco_results(results, annotations, scoring_bar, protocol)


def _evaluate_bins(
    folder: Path, data: DataOptions, preset: str, protocol: Protocol | None, output: Path | None
) -> Evaluation:
    source = data.source()
    named_preset(preset)  # an unknown name is an error before the data are read
    dataset = read_dataset(source.fetched(to_stderr))
    dataset.require_usable()
    if summary := dataset.skipped_summary():
        to_stderr(summary)
    return evaluate_modelzoo_bins(folder, dataset, preset, protocol, output)
