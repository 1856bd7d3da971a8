"""The backend: files that are whole and their own, and the program that runs from them."""

import errno
import json
import os
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose

from refinedet.adapters.onnx import backend as module
from refinedet.adapters.onnx.backend import OnnxRuntime
from refinedet.backends.registry import find_backend
from refinedet.conformance import inputs
from refinedet.conformance.checks.network import WITH_BATCH_NORM, WITH_BIASES
from refinedet.data.augment import normaliser, resize_only
from refinedet.data.images import read_image
from refinedet.errors import BackendError, WriteError
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.embedded_settings import read_exported, settings_file
from refinedet.models.open import open_model
from refinedet.settings import Settings, from_yaml, to_yaml
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import SpecError
from refinedet.spec.network import forward
from refinedet.version import __version__

CONFIG = replace(WITH_BATCH_NORM, image_size=(64, 128), num_classes=3)
SETTINGS = Settings(model=CONFIG, class_names=("a", "b"))
PARAMETERS = inputs.seeded_parameters(CONFIG, 0)


@pytest.fixture(scope="module")
def network():
    return find_backend("onnxruntime", "network", "export", "load").network(CONFIG, PARAMETERS)


@pytest.fixture
def file(network, tmp_path):
    """An exported detector with its settings beside it."""
    path = tmp_path / "detector.onnx"
    OnnxRuntime().export(network, path, SETTINGS)
    (tmp_path / "detector.onnx.yaml").write_text(to_yaml(SETTINGS))
    return path


def load(path, settings=SETTINGS):
    """The file on ONNX Runtime, with these settings beside it."""
    settings_file(path).write_text(to_yaml(settings))
    return OnnxRuntime().load(read_exported(path))


def refused(path, message, settings=SETTINGS):
    """The file cannot be loaded, and one line says which and why."""
    with pytest.raises(BackendError) as caught:
        load(path, settings)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), text
    assert message in text
    assert "\n" not in text


# Running


def test_one_file_runs_any_batch_with_the_contracts_numbers(file):
    loaded = load(file)
    images = inputs.seeded_images(CONFIG, 3, 0)
    expected = scored_boxes(forward(PARAMETERS, images, CONFIG)[0], CONFIG)
    for count in (3, 1):
        actual = loaded.scored_boxes(images[:count])
        for mine, want in zip(actual, expected, strict=True):
            assert_allclose(mine, want[:count], atol=1e-5, rtol=1e-5)


def test_a_network_keeps_its_numbers_when_the_callers_change(tmp_path):
    parameters = {name: tensor.copy() for name, tensor in PARAMETERS.items()}
    network = OnnxRuntime().network(CONFIG, parameters)
    images = inputs.seeded_images(CONFIG, 1, 0)
    before = network.scored_boxes(images)
    for tensor in parameters.values():
        tensor += 1
    OnnxRuntime().export(network, tmp_path / "x.onnx", SETTINGS)
    loaded = load(tmp_path / "x.onnx")
    for same in (network.scored_boxes(images), loaded.scored_boxes(images)):
        for mine, want in zip(same, before, strict=True):
            assert_allclose(mine, want, atol=1e-6)


def test_all_cores_are_used_and_no_other_device(network):
    options = network.session.get_session_options()
    assert options.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert network.session.get_providers() == ["CPUExecutionProvider"]


def test_images_of_another_size_are_refused(network, file):
    wrong = inputs.seeded_images(replace(CONFIG, image_size=(128, 64)), 1, 0)
    for runs in (
        network.heads,
        network.scored_boxes,
        load(file).scored_boxes,
    ):
        with pytest.raises(SpecError, match=r"images: expected shape \(any, 3, 64, 128\)"):
            runs(wrong)


# Files


def test_a_file_is_valid_and_says_what_it_is(file):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("refinedet", __version__)
    assert [p.key for p in model.metadata_props] == ["settings"]
    inside = from_yaml(model.metadata_props[0].value)
    assert inside == SETTINGS
    assert (inside.class_names, inside.model.image) == (("a", "b"), CONFIG.image)


def test_a_file_is_whole_or_not_there(network, file, monkeypatch):
    before = file.read_bytes()

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left on device; free some space"):
        OnnxRuntime().export(network, file, SETTINGS)
    assert file.read_bytes() == before
    assert sorted(p.name for p in file.parent.iterdir()) == ["detector.onnx", "detector.onnx.yaml"]


def test_onnx_runtime_itself_prints_nothing(file, capfd):
    outside = file.parent / "outside.onnx"
    onnx.save(onnx.load(file), outside, save_as_external_data=True, location="weights.bin")
    load(outside)
    (file.parent / "weights.bin").write_bytes(b"short")
    refused(outside, "not an ONNX file that can be run")
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_is_refused(file):
    whole = file.read_bytes()
    no_text = whole.replace(b"class_names", b"class\xffnames")
    assert no_text != whole
    for data in (b"", b"rubbish", whole[: len(whole) // 2], whole[:-1], no_text):
        file.write_bytes(data)
        refused(file, "")


def test_a_file_of_another_program_is_refused(file):
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, file)
    refused(file, "holds no settings; it was not written by refinedet export")
    model.metadata_props.add(key="settings", value="model: {depth: 3}")
    onnx.save(model, file)
    refused(file, "its settings are not usable here: unknown key 'model.depth'")


def test_settings_of_another_file_are_refused(file):
    changed = replace(CONFIG, image={"channels": "RGB"})
    refused(
        file,
        "model.image.channels is 'BGR' in it, and 'RGB' in detector.onnx.yaml",
        Settings(model=changed, class_names=("a", "b")),
    )
    refused(
        file,
        "class_names is ('a', 'b') in it, and ('b', 'a') in",
        Settings(model=CONFIG, class_names=("b", "a")),
    )
    other = replace(WITH_BIASES, num_classes=3)
    refused(file, "model.image_size is (64, 128) in it, and (128, 64) in", Settings(model=other))


@pytest.mark.parametrize(
    ("dimension", "value", "shown"), [(2, 192, "['N', 3, 192, 128]"), (0, 1, "[1, 3, 64, 128]")]
)
def test_a_graph_that_belies_its_settings_is_refused(file, dimension, value, shown):
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[dimension].dim_value = value
    for output in model.graph.output:  # let the runtime find out
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, file)
    refused(
        file,
        f"images is tensor(float) {shown}, its settings need tensor(float) ['N', 3, 64, 128]",
    )


def test_a_graph_of_another_dtype_is_refused(network, file):
    model = onnx.load(file)
    halves = onnx.helper.make_node("Cast", ["scores"], ["halves"], to=onnx.TensorProto.FLOAT16)
    model.graph.node.append(halves)
    model.graph.output[1].name = "halves"
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, file)
    refused(file, "scores is missing [], its settings need tensor(float) ['N',")


def test_a_name_of_another_format_is_refused(network, tmp_path):
    with pytest.raises(BackendError, match=r"x\.mindir: this backend writes ONNX"):
        OnnxRuntime().export(network, tmp_path / "x.mindir", SETTINGS)
    assert not (tmp_path / "x.mindir").exists()


def test_a_pipe_is_not_replaced(run, exported, tmp_path):
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    command = ("export", "--backend", "onnxruntime", "--model", exported[0], "--output", path)
    status, _, err = run(*command)
    assert status == 1
    assert "expected the name of a file" in err
    assert path.is_fifo()


def test_an_exported_detector_is_not_exported_again(file, tmp_path):
    loaded = load(file)
    with pytest.raises(BackendError, match="exported already; copy its file"):
        OnnxRuntime().export(loaded, tmp_path / "again.onnx", SETTINGS)
    assert not (tmp_path / "again.onnx").exists()


# Installation


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_what_is_not_installed_is_told(monkeypatch, package):
    assert OnnxRuntime().missing() is None

    def version(name):
        if name == package:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(module, "version", version)
    with pytest.raises(BackendError) as caught:
        find_backend("onnxruntime")
    raised = f"{package} is not installed; run: pip install 'refinedet[onnxruntime]'"
    assert str(caught.value) == f"backend onnxruntime: {raised}"


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


@pytest.fixture
def exported(run, tmp_path):
    """A checkpoint, and the file that the program exports it to."""
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, Checkpoint(SETTINGS, PARAMETERS, None, 0))
    path = tmp_path / "small.onnx"
    status, out, err = run(
        "export", "--backend", "onnxruntime", "--model", weights, "--output", path
    )
    assert (status, err) == (0, "")
    assert out == f"wrote {path} and its settings, {path}.yaml\n"
    return weights, path


def test_eval_and_detect_run_from_the_file(run, exported, data, tmp_path):
    found = {}
    for model, backend in zip(exported, ("spec", "onnxruntime"), strict=True):
        out = tmp_path / f"by {backend}"
        common = ("--model", model, "--backend", backend, "--output", out)
        status, _, err = run("eval", *common, *data)
        assert status == 0, err
        figures = json.loads((out / "evaluation.json").read_text())
        status, _, err = run("detect", data[-1], "--score", 0, *common)
        assert status == 0, err
        found[backend] = figures, json.loads((out / "detections.json").read_text())
    mine, contract = found["onnxruntime"], found["spec"]
    assert mine[0]["AP50"] == pytest.approx(contract[0]["AP50"], abs=1e-4)
    for one, other in zip(mine[1], contract[1], strict=True):
        assert len(one["objects"]) == len(other["objects"]) > 0


def test_a_file_alone_runs_by_its_own_settings(run, exported, data, tmp_path):
    path = exported[1]
    beside = path.with_name("small.onnx.yaml")
    beside.rename(path.with_name("other.yaml"))
    assert open_model(OnnxRuntime(), path).class_names == ("a", "b")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    status, _, err = run("eval", "--model", path, "--backend", "onnxruntime", *data)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{path}: " in err
    assert "there is no small.onnx.yaml beside it, and no settings are in it" in err


def test_a_file_of_raw_outputs(run, exported, data, tmp_path):
    """The boxes and scores are the specification's, decoded on the host."""
    weights, boxes = exported
    path = tmp_path / "heads.onnx"
    raised = run(
        "export", "--backend", "onnxruntime", "--model", weights, "--output", path, "--heads"
    )
    assert raised == (0, f"wrote {path} and its settings, {path}.yaml\n", "")
    network = open_model(OnnxRuntime(), path).network
    images = inputs.seeded_images(network.config, 2, 0)
    decoded = scored_boxes(network.heads(images), network.config)
    for actual, want in zip(network.scored_boxes(images), decoded, strict=True):
        np.testing.assert_array_equal(actual, want)
    inside = open_model(OnnxRuntime(), boxes).network
    for actual, want in zip(inside.scored_boxes(images), decoded, strict=True):
        np.testing.assert_allclose(actual, want, atol=1e-5)
    with pytest.raises(NotImplementedError, match="gives scored boxes"):
        inside.heads(images)


def test_settings_without_their_file_are_refused(run, exported, data):
    path = exported[1]
    path.unlink()
    status, _, err = run("eval", "--model", path, "--backend", "onnxruntime", *data)
    assert (status, err) == (
        1,
        f"refinedet: error: {path}: cannot read: No such file or directory\n",
    )


def test_open_model_gives_the_classes(exported):
    assert open_model(OnnxRuntime(), exported[1]).class_names == ("a", "b")


def test_the_program_of_the_page_sees_what_detect_sees(exported, noise, monkeypatch):
    page = (Path(__file__).resolve().parents[3] / "docs/onnx.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    image = noise.records[0].path
    monkeypatch.chdir(exported[1].parent)
    for name, file in (("detector.onnx", exported[1]), ("street.jpg", image)):
        Path(name).write_bytes(file.read_bytes())
    scope = {}
    exec(program, scope)
    network = load(exported[1])
    small = resize_only(read_image(image), CONFIG.image_size)
    images = normaliser(CONFIG.image)(small)[None]
    assert_allclose(scope["images"], images, atol=1e-5)
    for name, want in zip(("boxes", "scores"), network.scored_boxes(images), strict=True):
        assert_allclose(scope[name], want, atol=1e-5)
    assert scope["class_names"] == ["a", "b"]
