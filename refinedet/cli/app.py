"""The command line. Every failure a user can cause is one line and a status of 1."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from tqdm import tqdm
from typer.core import TyperGroup

from refinedet import __version__
from refinedet.backends.process_group import by_first
from refinedet.backends.registry import (
    DEFAULT,
    BackendChoice,
    backend_names,
    find_backend,
    lacking,
    profiler_of,
    require_precision,
)
from refinedet.benchmark.run import bench as run_bench
from refinedet.benchmark.run import table as bench_table
from refinedet.cli.backend_options import chooses_backend
from refinedet.cli.data_options import PANEL, DataOptions, with_data
from refinedet.cli.demo import STEPS as DEMO_STEPS
from refinedet.cli.demo import demo as run_demo
from refinedet.data.dataset import Dataset
from refinedet.data.images import IMAGE_SUFFIXES, read_image, write_image
from refinedet.data.report import dataset_report
from refinedet.data.source import held_out, read_dataset
from refinedet.errors import (
    BackendError,
    CheckpointError,
    DataError,
    ExpectationError,
    RemoteError,
    SettingsError,
    TrainingError,
    UsageError,
)
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.coco_results import evaluate_coco_results
from refinedet.evaluation.dataset_run import scoring_bar
from refinedet.evaluation.metrics import evaluation_table
from refinedet.evaluation.model_run import evaluate_model
from refinedet.evaluation.modelzoo_bins import ZOO, evaluate_modelzoo_bins
from refinedet.evaluation.protocols import PROTOCOLS, find_protocol
from refinedet.evaluation.published import (
    compare,
    comparison_table,
    find_published,
    require_agreement,
)
from refinedet.inference.drawing import detections_json, draw_detections
from refinedet.inference.predictor import Predictor, confident
from refinedet.models.export import export_model
from refinedet.models.foreign.loading import patterns, with_backbone, with_detector
from refinedet.models.open import open_model
from refinedet.settings import resolve, to_yaml
from refinedet.spec.errors import SpecError
from refinedet.spec.network import parameter_count
from refinedet.spec.presets import PRESETS, preset
from refinedet.spec.types import Array
from refinedet.support.files import write_json
from refinedet.support.remote import RunCopy
from refinedet.training.dry_run import plan
from refinedet.training.loop import train

FAILURES = (
    UsageError,
    BackendError,
    CheckpointError,
    SpecError,
    DataError,
    ExpectationError,
    MemoryError,
    OSError,
    RemoteError,
    SettingsError,
    TrainingError,
    UsageError,
)
INTERRUPTED = 130
"""Status after Ctrl-C, as shells have it."""
TRAINS = ("network", "trainer", "batches")
"""What a backend implements to train in the application."""

COMMANDS = "refinedet.commands"
"""Entry-point group of further commands: names of functions or of Typer's apps."""


class Commands(TyperGroup):
    """The commands of this file, and those that entry points add; loaded when called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, for the help."""
        return list(dict.fromkeys([*super().list_commands(ctx), *_added()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of this file's, else one that an entry point adds."""
        added = _added()
        found = super().get_command(ctx, cmd_name)
        return _load(added[cmd_name]) if found is None and cmd_name in added else found


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMANDS)}


def _load(point: EntryPoint) -> Any:
    """The command; if it cannot be loaded, one that says so when called."""
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        loaded = point.load()
    except Exception as error:
        said = f"{point.name}: cannot load {point.value}: {error}"
        forgiving = {"ignore_unknown_options": True, "allow_extra_args": True}

        @made.command(point.name, help="Cannot be loaded.", context_settings=forgiving)
        def broken() -> None:
            _fail(said)
    else:
        if isinstance(loaded, typer.Typer):
            made = loaded
        else:
            made.command(point.name)(loaded)
    command = typer.main.get_command(made)
    command.name = point.name
    return command


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RefineDet: train, evaluate and run the detector.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets.")
presets_app = typer.Typer(no_args_is_help=True, help="The named detectors.")
app.add_typer(data_app, name="data")
app.add_typer(presets_app, name="presets")


ModelOption = Annotated[
    Path,
    typer.Option("--model", help="Folder of a run, a checkpoint, or an exported detector."),
]


def _say_skips(dataset: Dataset) -> Dataset:
    """Tell on the terminal how much of a data set was left out."""
    if skipped := [f for f in dataset.findings if f.level == "skip"]:
        typer.echo(
            f"{dataset.name}: left out or trimmed {len(skipped)}, the first: {skipped[0]}", err=True
        )
    return dataset


@app.command("demo")
@chooses_backend
def demo_command(
    backend: BackendChoice,
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of images, parameters and order.")] = 0,
    steps: Annotated[
        int, typer.Option(min=1, help="Of the training; a few try all, and learn nothing.")
    ] = DEMO_STEPS,
) -> None:
    """Draw images of shapes, train on them, evaluate, export, and run the export."""
    run_demo(backend.find(*TRAINS, "export", "load"), run, seed, steps)


@app.command("train")
@chooses_backend
@with_data
def train_command(
    backend: BackendChoice,
    data: DataOptions,
    run: Annotated[Path, typer.Option(help="Folder of the run; new, unless --resume.")],
    eval_annotations: Annotated[
        Path | None,
        typer.Option(help="As --annotations, to evaluate on.", rich_help_panel=PANEL),
    ] = None,
    eval_images: Annotated[
        Path | None, typer.Option(help="As --images, to evaluate on.", rich_help_panel=PANEL)
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="As --split, to evaluate on.", rich_help_panel=PANEL)
    ] = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help="Settings to begin with.")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file of settings over the preset's.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over both, as model.schedule.rate=0.01; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    backbone: Annotated[
        Path | None,
        typer.Option(help="Begin with the trunk of this file: .caffemodel, .pth, .safetensors."),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option("--initial", help="Begin with the whole detector of such a file."),
    ] = None,
    partial: Annotated[
        str | None, typer.Option(help="Its tensors that may be missing; commas, * and layers.")
    ] = None,
    train_url: Annotated[
        str | None,
        typer.Option(
            help="file://, s3:// or obs:// folder; the run is copied there at every checkpoint."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Folder for the framework's profile of steps 2 to 4; new or empty."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, say what the run would be, write nothing.")
    ] = False,
) -> None:
    """Train, and evaluate if told on what."""
    if dry_run and (data.url is not None or train_url is not None):
        raise DataError("writes nothing; leave out --data-url and --train-url", key="--dry-run")
    engine, initial = backend.find(*TRAINS), None
    group, copy = engine.group, None
    if train_url is not None and group.rank == 0:
        copy = RunCopy(train_url, run, resume=resume)
    source = by_first(group, lambda: data.source().fetched(typer.echo))
    training = _say_skips(read_dataset(source))
    training.require_usable()
    evaluation = None
    if eval_annotations or eval_images or eval_split:
        other = held_out(source, eval_annotations, eval_images, eval_split)
        other = replace(other, class_names=training.class_names)
        evaluation = _say_skips(read_dataset(other, check_images=True))
    settings = resolve(preset_name, settings_file, assignments or (), training.class_names)
    require_precision(engine, settings.model)
    profiler = None if profile is None else profiler_of(engine, profile)
    if backbone is not None and detector is not None:
        raise TrainingError("--initial has a trunk already; give one of the two", key="--backbone")
    for option, file, read in (
        ("--backbone", backbone, with_backbone),
        ("--initial", detector, with_detector),
    ):
        if file is not None:
            if resume:
                raise TrainingError(
                    "begins a run; leave it out, --resume has its weights", key=option
                )
            initial, said = read(file, settings, patterns(partial))
            typer.echo(said)
    if partial is not None and initial is None:
        raise TrainingError(
            "says what may be missing from --backbone or --initial; give one of them too",
            key="--partial",
        )
    if dry_run:
        said = plan(
            engine.name,
            training,
            evaluation,
            settings,
            run,
            resume=resume,
            initial=initial,
            workers=group.size,
        )
        typer.echo(said)
        return
    train(
        engine,
        training,
        evaluation,
        settings,
        run,
        resume=resume,
        initial=initial,
        saved=copy.save if copy else None,
        profiler=profiler,
    )
    if copy:
        copy.finish()


@app.command("eval")
@chooses_backend
@with_data
def eval_command(
    backend: BackendChoice,
    data: DataOptions,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of a run, a checkpoint, or an exported detector."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="COCO results to score against --annotations; needs no model."),
    ] = None,
    results_bin: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the .bin files of the model zoo's program for Ascend 310; no model."
        ),
    ] = None,
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help=f"Whose outputs --results-bin holds; else {ZOO}."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the tables, results.json and samples.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted evaluation of --output.")
    ] = False,
    protocol_name: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help=f"Images and detection settings: {', '.join(PROTOCOLS)}. "
            "Without it all images, and the model's own settings.",
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(help="Published metrics to reach, as modelzoo-ascend910; status 1 if not."),
    ] = None,
    retrained: Annotated[
        bool,
        typer.Option("--retrained", help="--expect no more of a detector than one trained anew."),
    ] = False,
    by_class: Annotated[bool, typer.Option("--by-class", help="Show each class too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
) -> None:
    """Print COCO's twelve metrics and VOC's, of a model or of result files."""
    protocol = None if protocol_name is None else find_protocol(protocol_name)
    row = None if expect is None else find_published(expect)
    if retrained and row is None:
        raise DataError("needs --expect, the name of published metrics", key="--retrained")
    if row is not None and protocol_name != row.protocol:
        raise DataError(
            f"was measured by --protocol {row.protocol}; give it", key=f"--expect {row.name}"
        )
    if resume and (output is None or model is None):
        raise DataError(
            "needs --model, and --output of the evaluation to go on with", key="--resume"
        )
    if preset_name is not None and results_bin is None:
        raise DataError("is for --results-bin; a model has its own settings", key="--preset")
    if (results_bin or results) is not None and (backend.name, backend.options) != (DEFAULT, ()):
        raise DataError(
            "computes what --model finds, and result files have that; leave it out, "
            "and the options of its device",
            key="--backend",
        )
    if results_bin is not None:
        if model is not None or results is not None:
            other = "--model" if results is None else "--results"
            raise DataError(
                f"{other} is evaluated alone; leave out one of the two", key="--results-bin"
            )
        judged = _say_skips(read_dataset(data.source().fetched(typer.echo)))
        evaluation = evaluate_modelzoo_bins(
            results_bin, judged, preset_name or ZOO, protocol, output
        )
    elif results is not None:
        ground_truth = data.ground_truth()
        if output is not None:
            raise DataError("is not for --results; leave it out", key="--output")
        if row is not None and row.main not in COCO_METRICS:
            raise DataError(
                f"has {row.main}, --results gives COCO's alone", key=f"--expect {row.name}"
            )
        evaluation = evaluate_coco_results(results, ground_truth, scoring_bar, protocol)
    elif model is not None:
        engine = backend.find("network")
        source = by_first(engine.group, lambda: data.source().fetched(typer.echo))
        evaluation = evaluate_model(
            engine, model, source, protocol, output, resume, batch_size, _say_skips
        )
    else:
        raise DataError(
            "say what to evaluate, or give --results and --annotations, or --results-bin",
            key="--model",
        )
    typer.echo(evaluation_table(evaluation, by_class))
    if row is not None:
        compared = compare(evaluation.metrics, row, retrained)
        typer.echo(f"\n{comparison_table(compared, row, retrained)}")
        require_agreement(compared, row, retrained)


@app.command("detect")
@chooses_backend
def detect_command(
    backend: BackendChoice,
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(help="Folder for drawn images and detections.json.")
    ] = Path("detections"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Show nothing below.")] = 0.5,
) -> None:
    """Find objects in images; draw them, and list them as JSON in pixels."""
    files = list(_images(paths))
    counts = Counter(file.name for file in files)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError("in several folders; detect in one after the other", key=twice[0])
    folder = Path(os.path.realpath(output))  # resolve raises at a loop of links
    if any(Path(os.path.realpath(file)).parent == folder for file in files):
        raise DataError("holds images to look at; choose another --output", path=output)
    opened = open_model(backend.find("network"), model)
    predictor = Predictor(opened.network, min(8, len(files)))
    rows = []
    waiting: deque[tuple[Path, Array]] = deque()
    unreadable = []

    def read() -> Iterator[Array]:
        for file in tqdm(files, "detecting", disable=None, delay=2, unit="image"):
            try:
                waiting.append((file, read_image(file)))
            except DataError as error:
                unreadable.append(str(error))
                continue
            yield waiting[-1][1]

    for found in predictor.predict(read()):
        file, image = waiting.popleft()
        output.mkdir(parents=True, exist_ok=True)
        found = confident(found, score)
        drawn = draw_detections(image, found.boxes, found.labels, found.scores, opened.class_names)
        write_image(output / f"{file.name}.png", drawn)
        rows.append((str(file), image.shape[1], image.shape[0], found))
    if rows:
        write_json(output / "detections.json", detections_json(rows, opened.class_names))
    if unreadable:
        raise DataError(
            f"{unreadable[0]}", key=f"left out {len(unreadable)} of {len(files)} images"
        )
    count = sum(len(row[3].labels) for row in rows)
    typer.echo(f"{count} objects in {len(files)} images; see {output}")


def _images(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise DataError("no such image or folder", path=path)
        if path.is_file():
            yield path
            continue
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError("no image in this folder", path=path)
        yield from found


@app.command("export")
@chooses_backend
def export_command(
    backend: BackendChoice,
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="The file to write, as detector.mindir.")],
    heads: Annotated[
        bool, typer.Option("--heads", help="The raw outputs in place of boxes and scores.")
    ] = False,
) -> None:
    """Write a trained detector as the backend's own kind of file (MindIR, AIR, ONNX)."""
    if os.path.realpath(output) == os.path.realpath(model):
        raise DataError(
            "is the --model, which it would replace; choose another", key=f"--output {output}"
        )
    engine = backend.find("network", "export")
    export_model(engine, open_model(engine, model), output, heads=heads)
    typer.echo(f"wrote {output} and its settings, {output}.yaml")


@data_app.command("check")
@with_data
def check_command(
    data: DataOptions,
) -> None:
    """List everything that is wrong with a data set; status 1 if training would refuse it."""
    dataset = read_dataset(data.source().fetched(typer.echo), check_images=True)
    typer.echo(dataset_report(dataset))
    if dataset.refusals() or not dataset.records:
        raise typer.Exit(1)


@presets_app.command("list")
def presets_list() -> None:
    """Name the presets."""
    for name, config in PRESETS.items():
        height, width = config.image_size
        millions = parameter_count(config) / 1e6
        typer.echo(f"{name:24}{height}x{width:<8}{millions:6.1f} M parameters at 81 classes")


@presets_app.command("show")
def presets_show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset as YAML, ready to be changed and given to --settings."""
    typer.echo(to_yaml(resolve(name, None, ())), nl=False)


@app.command("bench")
@chooses_backend
def bench_command(
    preset_name: Annotated[str, typer.Option("--preset", help="Which detector.")] = (
        "refinedet_vgg16_320"
    ),
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of a row.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there too.")
    ] = None,
    backends: Sequence[BackendChoice] = (),
) -> None:
    """Measure input, post-processing, and of each backend its networks, side by side."""
    measured = run_bench(backends, preset(preset_name), repeat)
    rows = list(tqdm(measured, "measuring", disable=None, unit="row"))
    typer.echo(bench_table(rows))
    if json_file is not None:
        write_json(json_file, [row._asdict() for row in rows])


@app.command("backends")
def backends_command(
    name: Annotated[
        str | None, typer.Argument(help="Set this one up, and tell the device found.")
    ] = None,
    device_id: Annotated[int | None, typer.Option(min=0, help="Which device of its kind.")] = None,
) -> None:
    """Name the installed backends, and what each lacks here; of one, the device found."""
    if name is not None:
        options = {} if device_id is None else {"device_id": device_id}
        typer.echo(f"{name}: {find_backend(name, **options).describe()}")
        return
    if device_id is not None:
        raise BackendError("is for one backend; name it", key="--device-id")
    for known in backend_names():
        typer.echo(f"{known:24}{lacking(known) or 'ready'}")


def _version(expected: bool) -> None:
    if expected:
        typer.echo(f"refinedet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """RefineDet: train, evaluate and run the detector."""


FLAGS = {"cache": "--data-cache", "class_names": "--classes", "url": "--data-url"}
"""The flags that are not named as the argument of the library is."""


def flagged(error: UsageError) -> str:
    """The line of a usage error, with the flag of the argument that it names."""
    if error.key is None:
        return str(error)
    flag = FLAGS.get(str(error.key), "--" + str(error.key).replace("_", "-"))
    return f"{flag}: {error.reason}"


def _fail(text: str) -> NoReturn:
    print(f"refinedet: error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """The program ``refinedet``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Typer makes of an interruption a status; in its older versions, an Abort.
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(status)
    except FAILURES as error:
        shown = flagged(error) if isinstance(error, UsageError) else str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            shown = f"{error.filename}: {error.strerror}; choose another place"
        elif isinstance(error, MemoryError):
            shown = f"not enough memory: {error}"
        _fail(shown)
    except (KeyboardInterrupt, typer.Abort):
        print(
            "refinedet: interrupted; train, and eval with --output, go on with --resume",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Typer's own exceptions for a wrong option; their module is not public.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()}; see --help")
