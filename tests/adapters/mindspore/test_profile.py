"""``train --profile``: the framework's profile of a few steps."""

import csv
from contextlib import contextmanager

import pytest

from refinedet.backends.reference import SpecBackend
from refinedet.backends.registry import profiler_of
from refinedet.data.batches import batches
from refinedet.errors import UsageError
from refinedet.settings import resolve
from refinedet.spec.network import trained_parameters
from refinedet.spec.presets import preset
from refinedet.training.loop import train
from refinedet.training.preparation import prepare_datasets

LIST = ("--layout", "text", "--annotations", "list.txt", "--images", "images", "--classes", "a")
SMALL = ("--preset", "refinedet_eighth_128", "--set", "input.batch_size=2")


def refused(result, message):
    status, _, err = result
    assert (status, err.count("\n")) == (1, 1), result
    assert message in err


@pytest.fixture
def data(noise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{record.path.name} 2,3,30,40,1\n" for record in noise.records]
    (tmp_path / "list.txt").write_text("".join(lines))


def test_mindspore_writes_a_timeline_of_three_steps(run, data, tmp_path):
    steps = ("--set", "model.schedule.warmup_steps=0", "--set", "model.schedule.steps=6")
    caught = run("train", "--run", "r", *LIST, *SMALL, *steps, "--profile", "p")
    assert caught[0] == 0, caught
    (timeline,) = (tmp_path / "p").rglob("trace_view.json")
    assert timeline.stat().st_size > 10_000
    (table,) = (tmp_path / "p").rglob("cpu_op_type_info_0.csv")
    with table.open() as stream:
        rows = {row["op_type"]: row for row in csv.DictReader(stream)}
    trained = len(trained_parameters(preset("refinedet_eighth_128")))
    assert float(rows["ApplyMomentum"]["type_occurrences"]) == 3 * trained
    refused(run("train", "--run", "q", *LIST, *SMALL, "--profile", "p"), "profile: p is not empty")
    assert not (tmp_path / "q").exists()


def test_which_steps_are_profiled(noise, tmp_path):
    class Told(SpecBackend):
        capabilities = SpecBackend.capabilities | {"batches", "profiler"}
        said: list[object] = []  # noqa: RUF012

        def trainer(self, *arguments):
            made = super().trainer(*arguments)
            step = made.step

            def noted(batch):
                self.said.append("step")
                return step(batch)

            made.step = noted
            return made

        def batches(self, *arguments):
            return batches(*arguments)

        @contextmanager
        def profiler(self, folder):
            self.said.append("begin")
            yield
            self.said.append("end")

    for steps, expected in (
        (1, ["step"]),
        (2, ["step", "begin", "step", "end"]),
        (6, ["step", "begin", "step", "step", "step", "end", "step", "step"]),
    ):
        changes = ["input.batch_size=1", "model.schedule.warmup_steps=0"]
        changes += [f"model.schedule.steps={steps}", "model.image_size=[64, 64]"]
        settings = resolve("refinedet_eighth_128", None, changes, noise.class_names)
        backend = Told()
        backend.said.clear()
        made = profiler_of(backend, tmp_path / "p")
        train(
            prepare_datasets(backend, noise, None, settings, tmp_path / f"run{steps}"),
            profiler=made,
        )
        assert backend.said == expected


def test_a_backend_without_one_is_refused(run, data, tmp_path):
    with pytest.raises(UsageError, match="profile: backend spec has no profiler; leave it out"):
        profiler_of(SpecBackend(), tmp_path)
    (tmp_path / "file").write_text("")
    caught = run("train", "--run", "r", *LIST, *SMALL, "--profile", "file")
    refused(caught, "profile: file is not empty")
    assert not (tmp_path / "r").exists()
