"""Trainings on a machine that is lost: what they read and write is at a URL."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import refused

from refinedet.backends.reference import SpecBackend, SpecTrainer
from refinedet.data.batches import batches
from refinedet.models.checkpoint import Checkpoint, checkpoints, load_checkpoint, write_checkpoint
from refinedet.settings import resolve
from refinedet.spec.network import initial_parameters

SET = [
    "model.image_size=[64, 64]",
    "model.schedule.steps=4",
    "model.schedule.warmup_steps=1",
    "input.batch_size=2",
    "train.checkpoint_every=1",
    "train.keep=2",
]


class Backend(SpecBackend):
    """The specification, with batches; after some steps the machine is gone."""

    capabilities = SpecBackend.capabilities | {"batches"}
    left = 1000

    def batches(self, dataset, config, settings, cache, first_step):
        return batches(dataset, config, settings, cache, first_step)

    def trainer(self, *arguments):
        backend = self

        class Trainer(SpecTrainer):
            def step(self, batch):
                if backend.left == 0:
                    raise KeyboardInterrupt
                backend.left -= 1
                return super().step(batch)

        return Trainer(*arguments)


@pytest.fixture
def backend(monkeypatch):
    backend = Backend()
    monkeypatch.setattr("refinedet.backends.registry.find_backend", lambda *_: backend)
    return backend


@pytest.fixture
def data(place, noise):
    """The noisy images at a URL, in a folder beside the list of their objects."""
    rows = []
    for record in noise.records:
        objects = zip(record.boxes, record.labels, strict=True)
        shown = [",".join(str(int(value)) for value in (*box, label)) for box, label in objects]
        rows.append(" ".join([record.path.name, *shown]))
        place.write(**{f"in/shapes/images/{record.path.name}": record.path.read_bytes()})
    place.write(**{"in/shapes/list.txt": "\n".join(rows).encode()})
    return ("--root", "shapes", "--data-url", place.url + "/in")


@pytest.fixture
def command(backend, monkeypatch, tmp_path):
    """A training of four steps, on a machine with nothing on it."""
    monkeypatch.chdir(tmp_path)
    return (
        *("train", "--run", "runs/one", "--layout", "text", "--classes", "a,b"),
        *("--annotations", "list.txt", "--images", "images"),
        *("--eval-annotations", "list.txt", "--preset", "refinedet_eighth_128"),
        *(part for text in SET for part in ("--set", text)),
    )


def copied_out(place):
    """What is at the URL of the runs, by name."""
    found = place.read().items()
    return {name.removeprefix("out/"): file for name, file in found if name.startswith("out/")}


def run_of(folder):
    """What of a run's folder is to be copied out."""
    found = (p for p in folder.rglob("*") if p.is_file() and "cache" not in p.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_lost_machine_costs_no_more_than_the_steps_since_a_checkpoint(
    run, command, place, data, backend, tmp_path
):
    out = ("--train-url", f"{place.url}/out")
    backend.left = 3
    status, printed, err = run(*command, *data, *out)
    assert status == 130, err
    assert f"{place.url}/in: 11 files in data-cache/" in printed
    kept = {"checkpoints/step-00000002.safetensors", "checkpoints/step-00000003.safetensors"}
    assert copied_out(place).keys() == {"log.txt", "metrics.jsonl", "settings.yaml", *kept}

    shutil.rmtree("runs")
    shutil.rmtree("data-cache")
    backend.left = 1
    status, printed, err = run(*command, *data, *out, "--resume")
    assert (status, backend.left) == (0, 0), err
    assert "from step 3" in printed
    assert "evaluation.json" in copied_out(place)
    assert copied_out(place) == run_of(tmp_path / "runs/one")

    backend.left = 4
    shutil.copytree(next(tmp_path.glob("data-cache/**/shapes")), "here")
    status, _, err = run(*command, "--run", "runs/whole", "--root", "here")
    assert status == 0, err
    newest = [checkpoints(tmp_path / f"runs/{name}/checkpoints")[0] for name in ("one", "whole")]
    resumed, whole = map(load_checkpoint, newest)
    assert resumed.steps_done == whole.steps_done == 4
    for mine, other in (
        (resumed.parameters, whole.parameters),
        (resumed.momentum_buffers, whole.momentum_buffers),
    ):
        for name, tensor in other.items():
            np.testing.assert_array_equal(mine[name], tensor, err_msg=name)


def test_a_store_that_fails_ends_no_training(run, command, server, bucket, noise, tmp_path):
    rows = "\n".join(f"{r.path.name} 2,3,30,40,{r.labels[0]}" for r in noise.records)
    (tmp_path / "list.txt").write_text(rows)
    server.failures += [("PUT", "403 No", "AccessDenied")] * 99
    status, out, err = result = run(*command, "--train-url", bucket.url)
    assert out.count(f"{bucket.url}/log.txt: ") == 4  # one for each checkpoint
    refused(result, "resume it to copy it out")
    assert bucket.read() == {}
    server.failures.clear()
    status, _, err = run(*command, "--train-url", bucket.url, "--resume")
    assert status == 0, err
    assert bucket.read() == run_of(tmp_path / "runs/one")
    refused(run(*command, "--run", "runs/new", "--train-url", bucket.url), "holds a run")
    assert not (tmp_path / "runs/new").exists()


def test_eval_copies_its_data_too(run, command, place, data, tmp_path):
    settings = resolve("refinedet_eighth_128", None, SET, ("a", "b"))
    parameters = initial_parameters(settings.model, 0)
    write_checkpoint(tmp_path / "m.safetensors", Checkpoint(settings, parameters, None, 0))
    options = ("--layout", "text", "--annotations", "list.txt", "--images", "images", *data)
    status, out, err = run("eval", "--model", "m.safetensors", *options, "--data-cache", "there")
    assert status == 0, err
    assert "VOC12" in out
    assert list(tmp_path.glob("there/**/list.txt"))
    assert not (tmp_path / "data-cache").exists()


def coco(records):
    """Two of the noisy images, as COCO's file has them."""
    boxes = [
        {"id": r.image_id, "image_id": r.image_id, "category_id": 1, "bbox": [2, 3, 30, 40]}
        | {"area": 1200, "iscrowd": 0}
        for r in records
    ]
    images = [
        {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height}
        for r in records
    ]
    categories = [{"id": 1, "name": "a"}]
    return json.dumps({"images": images, "annotations": boxes, "categories": categories}).encode()


def test_the_commands_of_the_page(run, backend, place, noise, tmp_path, monkeypatch):
    """With a URL of here, a detector and a schedule that are small, and machines that get lost."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[3] / "docs/modelarts.md").read_text()
    commands = re.findall(r"^    refinedet (.*)", page.replace("\\\n", ""), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "train", "eval"]
    for part, records in (("train2017", noise.records[:6]), ("val2017", noise.records[6:])):
        place.write(**{f"coco2017/annotations/instances_{part}.json": coco(records)})
        for record in records:
            place.write(**{f"coco2017/{part}/{record.path.name}": record.path.read_bytes()})
    small = ["--preset", "refinedet_eighth_128", *(x for text in SET for x in ("--set", text))]
    for text, steps, status in zip(commands, (2, 2, 0), (130, 0, 0), strict=True):
        text = text.replace("obs://xxx", place.url).replace("/cache", f"{tmp_path}/cache")
        words = shlex.split(text.replace("--settings docs/recipes/modelzoo-coco.yaml", ""))
        backend.left = steps
        found, message, err = run(*words, *(small if words[0] == "train" else ()))
        assert found == status, err
        if found:
            shutil.rmtree(tmp_path / "cache")
    assert "VOC12" in message


def test_what_users_get_wrong_is_one_line(run, command, tmp_path):
    url = f"file://{tmp_path}/none"
    data, out = ("--data-url", url), ("--train-url", url)
    refused(run(*command, *data), f"{url}: no file there; check the URL")
    refused(
        run(*command, *data, "--root", "/shapes"), "--root: /shapes is outside the copied folder"
    )
    refused(
        run(*command, *data, "--root", "a/../.."), "--root: a/../.. is outside the copied folder"
    )
    refused(
        run(*command, "--data-cache", "x"),
        "--data-cache: is only read with the URL of a data set; leave it out",
    )
    refused(run(*command, *data, "--dry-run"), "--dry-run: writes nothing")
    refused(run(*command, *out, "--dry-run"), "--dry-run: writes nothing")
    refused(run(*command, "--train-url", "out"), "'out': is no URL of a folder")
    refused(
        run("eval", "--results", "r.json", "--annotations", "a.json", *data),
        "--data-url: is not read with --results",
    )
    assert list(tmp_path.iterdir()) == []
