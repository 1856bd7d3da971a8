"""The command ``demo``: trains, evaluates, exports and runs a detector in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from refinedet.backends.interface import Backend
from refinedet.backends.registry import BackendChoice
from refinedet.cli.backend_options import with_backend
from refinedet.data.formats.shapes import generate_shapes
from refinedet.errors import BackendError, TrainingError
from refinedet.evaluation.dataset_run import evaluate, write_evaluation
from refinedet.evaluation.metrics import evaluation_table
from refinedet.models.export import export_model
from refinedet.models.open import open_model
from refinedet.settings import resolve
from refinedet.support.files import require_folder
from refinedet.training.loop import train
from refinedet.training.preparation import prepare_datasets

PRESET = "refinedet_eighth_128"
TRAINING, HELD_OUT = 400, 80
"""Images to train and to evaluate on."""
STEPS = 400
LAST_SEED = 2**32 - 1
CHANGES = (
    "input.augment.crop=false",  # generated images need no augmentation
    "input.augment.expand=0",
    "input.augment.distort=0",
)


@with_backend
def demo(
    backend: BackendChoice,
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[
        int,
        typer.Option(min=0, max=LAST_SEED, help="Random seed of the images and of the training."),
    ] = 0,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps; a small number only tests that it runs.")
    ] = STEPS,
) -> None:
    """Generate images of shapes, train on them, evaluate, export, and run the export."""
    run_demo(backend.find("network", "trainer", "batches", "export", "load"), run, seed, steps)


def run_demo(backend: Backend, run: Path, seed: int, steps: int = STEPS) -> None:
    """Generate shapes, train, evaluate, export, run the export, and compare.

    The same seed gives the same metrics.

    Args:
        steps: of the training; with a few, everything runs and nothing is learnt.

    Raises:
        BackendError: the exported detector's detections differ from the trained one's.
        TrainingError, DataError, OSError: as ``train``.
    """
    began = time.monotonic()
    require_folder(run)
    if run.is_dir() and any(run.iterdir()):
        raise TrainingError(
            "is not empty; choose another --run, or remove it to begin again", path=run
        )
    model = resolve(PRESET, None, ()).model
    size, warmup = model.image_size, min(steps, model.schedule.warmup_steps)
    data = run.with_name(f"{run.name}-shapes")
    training = generate_shapes(TRAINING, size, seed, data / "train")
    held_out = generate_shapes(HELD_OUT, size, seed + 1, data / "held-out")
    changes = (
        *CHANGES,
        f"input.seed={seed}",
        f"model.schedule.warmup_steps={warmup}",
        f"model.schedule.steps={steps}",
    )
    settings = resolve(PRESET, None, changes, training.class_names)
    train(prepare_datasets(backend, training, held_out, settings, run))

    exported = run / "detector.mindir"
    trained = open_model(backend, run)
    export_model(backend, trained, exported)
    before = evaluate(trained.network, held_out)
    again = evaluate(open_model(backend, exported).network, held_out)
    evaluation = write_evaluation(run, again)
    for image_id, detections in before.detections.items():
        if not all(map(np.array_equal, detections, again.detections[image_id])):
            raise BackendError(
                f"its detections in image {image_id} differ from the trained detector's",
                path=exported,
            )
    typer.echo(evaluation_table(evaluation, by_class=True))
    minutes = (time.monotonic() - began) / 60
    typer.echo(f"run from {exported}, same detections; {minutes:.1f} minutes; see {run}")
