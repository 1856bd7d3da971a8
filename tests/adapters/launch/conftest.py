"""Real jobs of two ranks on the CPU; what several tests look at is trained once."""

import subprocess
import sys
from pathlib import Path

import pytest

from refinedet.data.formats.shapes import generate_shapes

SETTINGS = [
    "model.image_size=[64,128]",
    "model.network.batch_norm=false",
    "model.schedule={steps: 6, warmup_steps: 2, warmup_rate: 0.0005, rate: 0.001, "
    "final_rate: 0.0005}",
    "input.batch_size=4",
    "train.checkpoint_every=2",
    "train.keep=9",
]


class Job:
    """A command of this program in a process of its own, with what it needs to train."""

    def __init__(self, folder: Path):
        self.folder = folder
        generate_shapes(12, (64, 128), 0, folder / "shapes")

    def data(self):
        shapes = self.folder / "shapes"
        where = ["--annotations", shapes / "annotations.json", "--images", shapes / "images"]
        return ["--layout", "coco", *where]

    def train(self, run, *more, settings=(), judged=True):
        chosen = [part for one in [*SETTINGS, *settings] for part in ("--set", one)]
        if judged:
            chosen += ["--eval-annotations", self.folder / "shapes" / "annotations.json"]
        start = ["train", "--run", self.folder / run, "--preset", "refinedet_eighth_128"]
        return [*start, *self.data(), *chosen, *more]

    def launch(self, command):
        return ["launch", "--ranks", "2", "--logs", self.folder / "logs", "--", *command]

    def start(self, arguments, **options):
        code = "from refinedet.cli.app import main; main()"
        words = [sys.executable, "-I", "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, **options)

    def run(self, arguments, **options):
        """Status, what was printed, and the errors."""
        process = self.start(arguments, **options)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def trained(job):
    """Two runs by the same settings: of one rank, and of two."""
    for run, wrap in (("one", list), ("two", job.launch)):
        status, out, err = job.run(wrap(job.train(run)))
        assert status == 0, (out, err)
    return job.folder / "one", job.folder / "two"


@pytest.fixture(scope="session")
def normalised(job):
    """The same of a network with batch normalisation, two steps."""
    settings = [
        "model.network.batch_norm=true",
        "model.schedule.steps=2",
        "train.checkpoint_every=1",
    ]
    runs = job.folder / "one-norm", job.folder / "two-norm"
    for run, wrap in zip(runs, (list, job.launch), strict=True):
        status, out, err = job.run(wrap(job.train(run, settings=settings, judged=False)))
        assert status == 0, (out, err)
    return runs
