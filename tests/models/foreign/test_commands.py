"""``refinedet weights``, ``train --backbone`` and ``--initial``: what users type."""

import json

import numpy as np
import pytest
from helpers import refused
from safetensors import safe_open
from safetensors.numpy import load_file

from refinedet.backends.interface import Backend, StepLosses
from refinedet.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from refinedet.models.foreign.import_weights import with_backbone
from refinedet.settings import resolve
from refinedet.spec.network import initial_parameters
from refinedet.training.loop import train
from refinedet.training.preparation import prepare_datasets

from .writers import (
    SMALL,
    caffe_layers,
    caffemodel,
    port_state,
    random_parameters,
    reduced_state,
    write_legacy,
    write_zip,
)

SET = [part for text in SMALL for part in ("--set", text)]


@pytest.fixture
def caffe(tmp_path):
    path = tmp_path / "voc.caffemodel"
    path.write_bytes(caffemodel(caffe_layers(random_parameters())))
    return path


def test_import_export_and_again(run, tmp_path, caffe):
    """What was exported and imported again is the same, settings and all."""
    first = tmp_path / "first.safetensors"
    status, out, err = run(
        "weights", "import", caffe, "--output", first, *SET, "--classes", "a,b,c"
    )
    assert (status, err) == (0, "")
    assert "3 classes, 64x64: 98 of 98 tensors" in out
    settings = load_checkpoint(first).settings
    assert settings.class_names == ("a", "b", "c")
    for names in ("canonical", "port"):
        plain, again = tmp_path / f"{names}.safetensors", tmp_path / f"{names}-again.safetensors"
        assert (
            run("weights", "export", "--model", first, "--output", plain, "--names", names)[0] == 0
        )
        expected = random_parameters() if names == "canonical" else port_state(random_parameters())
        actual = load_file(plain)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value)
        with safe_open(plain, "numpy") as stored:
            assert stored.metadata()["format"] == "pt"
        assert run("weights", "import", plain, "--output", again)[0] == 0
        assert again.read_bytes() == first.read_bytes()
        twice = tmp_path / "twice.safetensors"
        assert (
            run("weights", "export", "--model", again, "--output", twice, "--names", names)[0] == 0
        )
        for name, value in load_file(twice).items():
            np.testing.assert_array_equal(value, actual[name])
        refused(
            run("weights", "import", plain, "--output", again, "--preset", "refinedet_vgg16_512"),
            f"--preset: is not for {plain}, which has its own settings",
        )


def test_export_of_a_run_and_of_batch_normalisation(run, tmp_path):
    settings = resolve("refinedet_eighth_128", None, ["model.network.width=0.015625"], ("a",))
    parameters = initial_parameters(settings.model, 0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    output = tmp_path / "x.safetensors"
    refused(
        run("weights", "export", "--model", tmp_path / "run", "--output", output), "no checkpoint"
    )
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(settings, parameters, None, 4), 1)
    assert run("weights", "export", "--model", tmp_path / "run", "--output", output)[0] == 0
    assert load_file(output).keys() == parameters.keys()
    assert run("weights", "import", output, "--output", tmp_path / "y.safetensors")[0] == 0
    assert load_checkpoint(tmp_path / "y.safetensors").settings == settings
    before = output.read_bytes()
    arguments = ("--model", tmp_path / "run", "--output", output, "--names", "port")
    refused(run("weights", "export", *arguments), "--names: RefineDet of the PyTorch port has no ")
    assert output.read_bytes() == before


def test_show(run, tmp_path, caffe):
    status, out, _ = run("weights", "show", caffe)
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == f"{caffe}: a caffemodel; RefineDet or VGG16 of Caffe"
    assert lines[1].split() == ["conv1_1/0", "float32", "1x3x3x3", "backbone.conv1_1.weight"]
    assert lines[-1] == "98 tensors, 98 known here"
    state = {**port_state(random_parameters()), "tail\n": np.zeros(1, "<i8")}
    write_zip(tmp_path / "x", state)
    out = run("weights", "show", tmp_path / "x")[1]
    assert "PyTorch's zip format; RefineDet of the PyTorch port" in out
    assert ["tail\\n", "int64", "1", "(unexpected)"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-1] == "99 tensors, 98 known here"
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("x", "y", "z"))
    write_checkpoint(tmp_path / "own", Checkpoint(settings, random_parameters(), None, 3))
    assert (
        ": a checkpoint; RefineDet, canonical names" in run("weights", "show", tmp_path / "own")[1]
    )
    refused(run("weights", "show", tmp_path / "nowhere"), "cannot read: No such file")


def test_nothing_is_written_when_something_is_wrong(run, tmp_path, caffe):
    output = tmp_path / "out.safetensors"
    cut = tmp_path / "cut"
    cut.write_bytes(caffe.read_bytes()[:-100])
    for arguments, message in (
        ((cut, *SET), "cut off"),
        ((caffe,), "misfits"),
        ((caffe, *SET, "--preset", "nothing"), "nothing"),
        ((caffe, *SET, "--set", "model.colour=1"), "model.colour"),
        ((caffe, *SET, "--set", "model.num_classes=9"), "model.num_classes"),
        ((caffe, *SET, "--classes", "a,b"), "detects 3 classes"),
        ((caffe, *SET, "--partial", "nothing"), "--partial"),
    ):
        refused(run("weights", "import", *arguments, "--output", output), message)
        assert not output.exists()
    refused(run("weights", "import", caffe, *SET, "--output", caffe), "is the file to read")
    refused(run("weights", "import", caffe, *SET, "--output", tmp_path / "no" / "x"), "folder")


class Trainer:
    """Learns nothing."""

    def __init__(self, parameters):
        self.held = parameters

    def step(self, batch):
        return StepLosses(*([0.0] * len(StepLosses._fields)))

    def parameters(self):
        return self.held

    def momentum_buffers(self):
        return {n: np.zeros_like(p) for n, p in self.held.items() if ".moving_" not in n}


class Still(Backend):
    """What a run needs of one; its trainer keeps the parameters with which it began."""

    name = "still"
    capabilities = frozenset({"network", "trainer", "batches"})

    def missing(self):
        return None

    def network(self, config, parameters):
        raise AssertionError

    def trainer(self, config, parameters, momentum_buffers, steps_done):
        self.began, self.at = parameters, steps_done
        return Trainer(parameters)

    def batches(self, dataset, config, settings, cache, step):
        return iter(range(step, config.schedule.steps))


def test_a_run_begins_with_the_backbone_and_resumes_with_it(tmp_path, noise):
    file = tmp_path / "vgg.pth"
    write_legacy(file, reduced_state(random_parameters()))
    steps = [*SMALL, "model.schedule.steps=4"]
    settings = resolve("refinedet_vgg16_320", None, steps, noise.class_names)
    initial, _ = with_backbone(file, settings)
    backend, folder = Still(), tmp_path / "run"
    backend.batches = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(prepare_datasets(backend, noise, None, settings, folder, initial=initial))
    backend = Still()
    train(prepare_datasets(backend, noise, None, settings, folder, resume=True))
    assert backend.at == 0
    for name, value in initial.items():
        np.testing.assert_array_equal(backend.began[name], value)
    failing = Still()
    failing.batches = lambda *_: (_ for _ in ()).throw(MemoryError)
    with pytest.raises(MemoryError):
        train(prepare_datasets(failing, noise, None, settings, tmp_path / "other", initial=initial))
    assert not (tmp_path / "other").exists()


def test_train_backbone_on_the_command_line(run, tmp_path, noise, monkeypatch):
    backend = Still()
    monkeypatch.setattr("refinedet.backends.registry.find_backend", lambda *_: backend)
    rows = [f"{r.path.name} 2,3,30,40,{r.labels[0]}" for r in noise.records]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    data = ("--layout", "text", "--annotations", tmp_path / "list.txt", "--classes", "a,b")
    data = (*data, "--images", noise.records[0].path.parent)
    steps = (*SET, "--set", "model.schedule.steps=1", "--set", "model.schedule.milestones=[]")
    steps = (
        *steps[:4],
        "--set",
        "model.schedule.steps=1",
        "--set",
        "model.schedule.milestones=[1]",
    )
    common = ("train", *data, *steps)
    file = tmp_path / "vgg.pth"
    state = reduced_state(random_parameters())
    write_zip(file, {n: v for n, v in state.items() if n != "31.bias"})
    folder = tmp_path / "run"
    refused(run(*common, "--run", folder, "--backbone", file), "backbone.fc6.bias is missing")
    refused(run(*common, "--run", folder, "--partial", "backbone.fc6"), "--partial")
    refused(run(*common, "--run", folder, "--backbone", file, "--resume"), "--backbone")
    assert not folder.exists()
    result = run(*common, "--run", folder, "--backbone", file, "--partial", "backbone.fc6")
    assert result[0] == 0, result
    assert "29 of 36 tensors of the backbone are from" in result[1]
    np.testing.assert_array_equal(backend.began["backbone.conv1_1.weight"], state["0.weight"])
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[0])["step"] == 1
    refused(
        run(*common, "--run", folder, "--initial", file, "--resume"),
        "--initial: applies to a new run only",
    )
    refused(run(*common, "--run", folder, "--backbone", file, "--initial", file), "one of the two")
    whole = tmp_path / "coco.pth"
    coco = port_state(random_parameters())
    write_zip(whole, coco)
    other = tmp_path / "other"
    refused(run(*common, "--run", other, "--initial", whole), "odm.0.logits.weight has shape")
    assert not other.exists()
    result = run(*common, "--run", other, "--initial", whole, "--partial", "odm.*.logits")
    assert result[0] == 0, result
    assert "90 of 98 tensors of the detector are from" in result[1]
    np.testing.assert_array_equal(backend.began["odm.0.offsets.bias"], coco["odm_loc.0.bias"])
    start = load_checkpoint(other / "checkpoints" / "step-00000000.safetensors")
    np.testing.assert_array_equal(start.parameters["odm.0.offsets.bias"], coco["odm_loc.0.bias"])
