"""Networks and files: the specification's outputs for any number of images, files of their own."""

import errno
import importlib
import json
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.adapters.lite import export as module
from refinedet.adapters.lite.backend import MindSporeLite
from refinedet.adapters.lite.process import LiteProcess
from refinedet.adapters.onnx.export import SCORED_BOXES, detector
from refinedet.conformance import inputs
from refinedet.conformance.checks.network import (
    LIKE_THE_ZOO,
    RESNET_OF_THE_PAPER,
    RESNET_OF_THE_ZOO,
    WITH_BATCH_NORM,
    WITH_BIASES,
)
from refinedet.errors import BackendError, WriteError
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.embedded_settings import read_exported, settings_file, with_settings
from refinedet.models.foreign.protobuf import fields
from refinedet.settings import Settings, to_yaml
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import SpecError
from refinedet.spec.network import forward

CONFIG = replace(WITH_BATCH_NORM, image_size=(64, 128), num_classes=3)
SETTINGS = Settings(model=CONFIG, class_names=("a", "b"))
PARAMETERS = inputs.seeded_parameters(CONFIG, 0)
IMAGES = inputs.seeded_images(CONFIG, 5, 0)


@pytest.fixture(scope="module")
def expected():
    """The specification's outputs."""
    return forward(PARAMETERS, IMAGES, CONFIG)[0]


@pytest.fixture(scope="module")
def network(backend):
    return backend.network(CONFIG, PARAMETERS)


@pytest.fixture(scope="module")
def exported(network, backend, tmp_path_factory):
    """An exported detector with its settings beside it; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "detector.mindir"
    backend.export(network, path, SETTINGS)
    path.with_name("detector.mindir.yaml").write_text(to_yaml(SETTINGS))
    return path


def load(backend, path, settings=SETTINGS):
    """The file on the backend, with these settings beside it; as they were afterwards."""
    settings_file(path).write_text(to_yaml(settings))
    try:
        file = read_exported(path)
    finally:
        settings_file(path).write_text(to_yaml(SETTINGS))
    return backend.load(file)


def refused(backend, path, message, settings=SETTINGS):
    """The file cannot be loaded, and one line says which and why."""
    with pytest.raises(BackendError) as caught:
        load(backend, path, settings)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), text
    assert message in text
    assert "\n" not in text


# Running


@pytest.mark.parametrize(
    "config",
    [WITH_BIASES, LIKE_THE_ZOO, RESNET_OF_THE_PAPER, RESNET_OF_THE_ZOO],
    ids=["biases", "zoo", "resnet of the paper", "resnet of the zoo"],
)
def test_every_kind_of_layer_gives_the_contracts_outputs(backend, agrees, config):
    parameters, images = inputs.seeded_parameters(config, 1), inputs.seeded_images(config, 2, 1)
    agrees(backend.network(config, parameters), forward(parameters, images, config)[0], images)


def test_one_file_runs_any_batch_with_the_contracts_numbers(
    backend, agrees, network, exported, expected
):
    loaded = load(backend, exported)
    for count in (5, 1, 3):
        agrees(network, expected, IMAGES[:count])
        agrees(loaded, expected, IMAGES[:count])
    for mine, want in zip(loaded.scored_boxes(IMAGES), scored_boxes(expected, CONFIG), strict=True):
        assert_allclose(mine, want, atol=1e-5, rtol=1e-5)


def test_images_of_another_size_are_refused(network):
    wrong = inputs.seeded_images(replace(CONFIG, image_size=(128, 64)), 1, 0)
    for runs in (network.heads, network.scored_boxes):
        with pytest.raises(SpecError, match=r"images: expected shape \(any, 3, 64, 128\)"):
            runs(wrong)


class Counted:
    """A runner that notes what it is given."""

    def __init__(self, runner):
        self.runner, self.given = runner, []

    def run(self, images):
        self.given.append(len(images))
        return self.runner.run(images)


def counted(network):
    network.runners = [Counted(runner) for runner in network.runners]
    return network.runners


def test_a_compiled_batch_is_filled_up(made, agrees, expected):
    compiled = made(batch=3).network(CONFIG, PARAMETERS)
    assert compiled.size == 3
    assert compiled.runners[0].inputs == [["images", [3, 3, 64, 128], "FLOAT32"]]
    (runner,) = counted(compiled)
    for count, pieces in ((5, [3, 3]), (3, [3]), (1, [3])):
        agrees(compiled, expected, IMAGES[:count])
        assert runner.given == pieces
        runner.given.clear()


def test_streams_share_the_images_and_keep_their_order(made, agrees, exported, expected):
    two = load(made(streams=2), exported)
    processes = {runner._lite._process.pid for runner in two.runners}
    assert len(processes) == 2
    first, second = counted(two)
    for _ in range(3):
        agrees(two, expected, IMAGES)
        assert first.given + second.given == [1] * 5
        assert first.given
        assert second.given
        first.given.clear()
        second.given.clear()


def test_streams_compute_at_the_same_time(made, exported):
    """Each of two has begun before the other has ended."""
    two = load(made(streams=2), exported)
    both = threading.Barrier(2, timeout=30)
    for runner in two.runners:
        runner.run = lambda images, run=runner.run: (both.wait(), run(images))[1]
    two.heads(IMAGES[:4])


def test_one_stream_in_this_process_is_the_same(monkeypatch, exported, expected, tmp_path):
    """Where Lite imports here; it is a stand-in, which answers with the specification's outputs."""
    mindspore_lite = standing_in(monkeypatch, tmp_path)
    mindspore_lite.OUTPUTS = expected._asdict()
    lite = MindSporeLite()
    assert lite.missing() is None
    loaded = load(lite, exported)
    assert isinstance(loaded.runners[0], module.InProcess)
    assert_array_equal(loaded.heads(IMAGES[:1]).odm_logits, expected.odm_logits[:1])
    mindspore_lite.OUTPUTS = None
    with pytest.raises(BackendError, match=r"^MindSpore Lite: RuntimeError: predict failed!$"):
        loaded.heads(IMAGES)


def standing_in(monkeypatch, tmp_path):
    """The stand-in, as the ``mindspore_lite`` of this process."""
    (tmp_path / "mindspore_lite.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "mindspore_lite", None)  # it will be gone afterwards
    del sys.modules["mindspore_lite"]
    monkeypatch.delenv("REFINEDET_LITE_PYTHON", raising=False)
    monkeypatch.setenv("GLOG_v", "3")  # back to what it was, after the backend has set it
    return importlib.import_module("mindspore_lite")


STAND_IN = """
from types import SimpleNamespace

OUTPUTS, ModelType = {}, SimpleNamespace(MINDIR=0)
__version__ = "0"

class Context:
    cpu = SimpleNamespace()

class Tensor:
    name, dtype = "images", SimpleNamespace(name="FLOAT32")
    shape = [1, 3, 64, 128]
    def set_data_from_numpy(self, array):
        assert list(array.shape) == self.shape

class Model:
    def build_from_file(self, path, kind, context):
        assert context.target == ["cpu"] and context.cpu.thread_num > 0
        self.tensors = [Tensor()]
    def get_inputs(self):
        return self.tensors
    def predict(self, tensors):
        if OUTPUTS is None:
            raise RuntimeError("predict failed!\\n")
        for name, output in OUTPUTS.items():
            made = SimpleNamespace(name=name)
            made.get_data_to_numpy = lambda x=output: x[:1]
            yield made
"""


# Files


def test_a_file_holds_its_settings(exported):
    content = memoryview(exported.read_bytes())
    *_, (number, own) = fields(content)
    assert (number, bytes(own).decode()) == (1000, to_yaml(SETTINGS))


def test_a_file_is_whole_or_not_there(backend, network, tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "detector.mindir"
    path.write_bytes(b"before")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left on device; free some space"):
        backend.export(network, path, SETTINGS)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["detector.mindir"]


def test_nothing_is_left_of_a_conversion(backend, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = backend.network(CONFIG, PARAMETERS)
    assert list(tmp_path.iterdir()) == []
    made.heads(IMAGES[:1])  # loaded, not read when needed


def test_a_damaged_file_is_refused(backend, exported, tmp_path):
    whole = exported.read_bytes()
    model = whole[: whole.rindex(b"model:") - 10]
    path = tmp_path / "damaged.mindir"
    for data in (
        b"",
        b"rubbish",
        whole[:1000],
        whole[: len(whole) // 2],
        whole[:-1],
        model[:-1],
        whole.replace(b"class_names", b"class\xffnames"),
    ):
        path.write_bytes(data)
        refused(backend, path, "")


def test_settings_of_another_file_are_refused(backend, exported):
    refused(
        backend,
        exported,
        "model.image.channels is 'BGR' in it, and 'RGB' in detector.mindir.yaml",
        Settings(model=replace(CONFIG, image={"channels": "RGB"}), class_names=("a", "b")),
    )
    refused(
        backend,
        exported,
        "class_names is ('a', 'b') in it, and ('b', 'a') in",
        Settings(model=CONFIG, class_names=("b", "a")),
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"image_size": (128, 64)},
            "takes [['images', [1, 3, 64, 128], 'FLOAT32']], its settings need "
            "[['images', ['N', 3, 128, 64], 'FLOAT32']]; export again",
        ),
        ({"num_classes": 5}, "odm_logits is float32 (1, 510, 3), its settings need float32 (1, 51"),
        (
            {"anchors": {"aspect_ratios": (1.0, 2.0)}},
            "arm_offsets is float32 (1, 510, 4), its settings need float32 (1, 340, 4)",
        ),
    ],
    ids=["another size", "other classes", "other anchors"],
)
def test_a_file_without_settings_is_known_by_its_tensors(
    backend, agrees, exported, tmp_path, expected, changed, message
):
    """As another program compiles it, for whatever number of images."""
    path = tmp_path / "foreign.mindir"
    whole = exported.read_bytes()
    path.write_bytes(whole[: len(whole) - len(with_settings(b"", SETTINGS))])
    agrees(load(backend, path), expected, IMAGES)
    refused(backend, path, message, Settings(model=replace(CONFIG, **changed)))


def test_outputs_of_another_name_or_dtype_are_refused(monkeypatch, tmp_path, exported, expected):
    mindspore_lite = standing_in(monkeypatch, tmp_path)
    half = {name: output.astype(np.float16) for name, output in expected._asdict().items()}
    mindspore_lite.OUTPUTS = half
    refused(MindSporeLite(), exported, "arm_offsets is float16 (1, 510, 4), its settings need flo")
    mindspore_lite.OUTPUTS = {"boxes": expected.arm_offsets}
    refused(MindSporeLite(), exported, "arm_offsets is missing, its settings need float32 (1, 51")
    mindspore_lite.Tensor.name = "image"
    refused(MindSporeLite(), exported, "takes [['image', [1, 3, 64, 128], 'FLOAT32']], its sett")


def test_a_file_that_leaves_the_number_open_is_refused(monkeypatch, tmp_path, exported):
    lite = standing_in(monkeypatch, tmp_path)
    lite.Tensor.shape = [-1, 3, 64, 128]
    refused(MindSporeLite(), exported, "leaves open how many images it takes; convert it for a n")


def test_an_exported_detector_is_not_exported_again(backend, exported, tmp_path):
    loaded = load(backend, exported)
    with pytest.raises(BackendError, match="exported already; copy its file"):
        backend.export(loaded, tmp_path / "again.mindir", SETTINGS)
    assert not (tmp_path / "again.mindir").exists()


def test_a_graph_that_lite_cannot_convert_is_told_with_the_cause(python, tmp_path):
    """When this converts, the file may hold scored boxes."""
    model = detector(CONFIG, PARAMETERS, SCORED_BOXES)
    (tmp_path / "boxes.onnx").write_bytes(model.SerializeToString())
    given = {"onnx": str(tmp_path / "boxes.onnx"), "output": str(tmp_path / "boxes")}
    with pytest.raises(BackendError) as caught:
        LiteProcess(python).ask("convert", {**given, "device": None, "shape": [1, 3, 64, 128]})
    text = str(caught.value)
    assert text.startswith("MindSpore Lite: RuntimeError: Converter model failed!")
    assert text.endswith("(not support onnx data type GreaterOrEqual)")
    assert not (tmp_path / "boxes.mindir").exists()


def test_without_onnx_only_files_run(backend, agrees, exported, expected, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", version)
    agrees(load(backend, exported), expected, IMAGES)
    with pytest.raises(BackendError, match=r"onnx, from which it converts, is not installed; run"):
        backend.network(CONFIG, PARAMETERS)


# The program


@pytest.fixture
def data(noise, tmp_path):
    """Options for the noisy images."""
    lines = []
    for record in noise.records:
        rows = zip(record.boxes, record.labels, strict=True)
        objects = [",".join(str(int(v)) for v in (*box, label)) for box, label in rows]
        lines.append(" ".join([record.path.name, *objects]))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    images = noise.records[0].path.parent
    return "--layout", "text", "--annotations", tmp_path / "list.txt", "--images", images


def test_export_eval_and_detect_run_as_the_contract_does(run, backend, data, tmp_path):
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, Checkpoint(SETTINGS, PARAMETERS, None, 0))
    path = tmp_path / "small.mindir"
    status, out, err = run(
        "export", "--backend", backend.name, "--model", weights, "--output", path
    )
    assert (status, err) == (0, "")
    assert out == f"wrote {path} and its settings, {path}.yaml\n"
    found = {}
    for name, model in ((backend.name, path), ("spec", weights)):
        out = tmp_path / f"by {name}"
        common = ("--model", model, "--backend", name, "--output", out)
        status, _, err = run("eval", *common, *data)
        assert status == 0, err
        figures = json.loads((out / "evaluation.json").read_text())
        status, _, err = run("detect", data[-1], "--score", 0, *common)
        assert status == 0, err
        found[name] = figures, json.loads((out / "detections.json").read_text())
    mine, contract = found[backend.name], found["spec"]
    assert mine[0]["AP50"] == pytest.approx(contract[0]["AP50"], abs=1e-4)
    for one, other in zip(mine[1], contract[1], strict=True):
        assert len(one["objects"]) == len(other["objects"]) > 0
