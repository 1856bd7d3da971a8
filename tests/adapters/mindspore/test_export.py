"""Exported detectors of MindSpore: what is in the file, and running from it."""

import json

import mindspore as ms
import numpy as np
import pytest

from refinedet.adapters.mindspore.backend import MindSporeAscend, MindSporeCPU
from refinedet.errors import BackendError
from refinedet.models.embedded_settings import read_exported, settings_file, with_settings
from refinedet.models.foreign.protobuf import fields, written_field
from refinedet.models.open import open_model
from refinedet.settings import Settings, from_yaml, to_yaml
from refinedet.spec.config import replace
from refinedet.spec.detection import scored_boxes
from refinedet.spec.errors import SpecError
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

CONFIG = replace(preset("modelzoo_eighth_128"), image_size=(64, 128), num_classes=3)
SETTINGS = Settings(model=CONFIG, class_names=("a", "b"))
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 64, 128)).astype(np.float32)
OWN = len(with_settings(b"", SETTINGS))
"""Bytes of our own fields at the end of a file."""


@pytest.fixture(scope="module")
def network():
    return MindSporeCPU().network(CONFIG, initial_parameters(CONFIG, 0))


@pytest.fixture(scope="module")
def contents(network, tmp_path_factory):
    """The bytes of both kinds of files, by whether they hold the raw outputs."""
    made = {}
    for heads in (False, True):
        file = tmp_path_factory.mktemp("made") / "detector.mindir"
        MindSporeCPU().export(network, file, SETTINGS, heads=heads)
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        made[heads] = file.read_bytes()
    return made


@pytest.fixture(params=[False, True], ids=["boxes", "heads"])
def file(request, contents, tmp_path):
    """A file, and its settings beside it."""
    path = tmp_path / "detector.mindir"
    path.write_bytes(contents[request.param])
    path.with_name("detector.mindir.yaml").write_text(to_yaml(SETTINGS))
    return path


def load(path, settings=SETTINGS):
    """The file on MindSpore's CPU, with these settings beside it."""
    settings_file(path).write_text(to_yaml(settings))
    return MindSporeCPU().load(read_exported(path))


def refused(file, message, settings=SETTINGS):
    with pytest.raises(BackendError) as caught:
        load(file, settings)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_holds_its_settings_and_the_programs_version(contents):
    from refinedet.version import __version__

    for content in contents.values():
        *_, (version, caught), (number, own) = fields(memoryview(content))
        assert (version, bytes(caught).decode()) == (1001, __version__)
        assert number == 1000
        assert from_yaml(bytes(own).decode()) == SETTINGS


def test_a_file_runs_any_batch_with_the_same_numbers(network, file):
    exported = load(file)
    for count in (3, 1):
        images = IMAGES[:count]
        want = network.scored_boxes(images)
        if exported.raw:
            for actual, head in zip(exported.heads(images), network.heads(images), strict=True):
                np.testing.assert_array_equal(actual, head)
            want = scored_boxes(network.heads(images), CONFIG)  # decoded on the host
        for actual, expected in zip(exported.scored_boxes(images), want, strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_raw_outputs_are_there_if_they_were_exported(contents, tmp_path):
    file = tmp_path / "detector.mindir"
    file.write_bytes(contents[False])
    with pytest.raises(NotImplementedError, match="gives scored boxes"):
        load(file).heads(IMAGES)


def test_images_of_another_size_are_refused(file):
    with pytest.raises(SpecError, match="images: expected shape"):
        load(file).scored_boxes(IMAGES.transpose(0, 1, 3, 2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": (128, 128)}, "model.image_size is (64, 128) in it, and (128, 128) in"),
        ({"image": {"channels": "BGR"}}, "model.image.channels is 'RGB' in it, and 'BGR'"),
        ({"image": {"mean": (0.0, 0.0, 0.0)}}, "model.image.mean is (123.675, 116.28"),
    ],
)
def test_settings_of_another_file_are_refused(file, changed, message):
    other = Settings(model=replace(CONFIG, **changed), class_names=("a", "b"))
    refused(file, message, other)
    refused(file, "class_names is ('a', 'b') in it", Settings(model=CONFIG, class_names=("b", "a")))


def test_a_file_that_belies_its_settings_is_refused(contents, tmp_path):
    """The settings of another detector, in the file and beside it."""
    file = tmp_path / "detector.mindir"
    body = contents[False][:-OWN]
    assert contents[False] == with_settings(body, SETTINGS)
    other = Settings(model=replace(CONFIG, num_classes=4), class_names=("a", "b", "c"))
    file.write_bytes(with_settings(body, other))
    refused(
        file,
        "gives float32 (1, 510, 4), float32 (1, 510, 3); its settings need float32 (1, 510, 4), "
        "float32 (1, 510, 4); export again",
        other,
    )


class Halves(ms.nn.Cell):
    """Boxes and scores in float16."""

    def __init__(self, scored):
        super().__init__(auto_prefix=False)
        self.scored = scored

    def construct(self, images):
        boxes, scores = self.scored(images)
        return boxes.astype(ms.float16), scores.astype(ms.float16)


def test_a_file_of_another_dtype_is_refused(network, tmp_path):
    file = tmp_path / "detector.mindir"
    images = ms.Tensor(shape=[None, 3, 64, 128], dtype=ms.float32)
    ms.export(Halves(network.scored), images, file_name=str(file), file_format="MINDIR")
    file.chmod(0o644)
    file.write_bytes(with_settings(file.read_bytes(), SETTINGS))
    refused(file, "gives float16 (1, 510, 4), float16 (1, 510, 3); its settings need float32")


def test_a_file_of_another_program_is_refused(contents, tmp_path):
    file = tmp_path / "detector.mindir"
    file.write_bytes(contents[False][:-OWN])
    refused(file, "holds no settings; it was not written by refinedet export")
    file.write_bytes(file.read_bytes() + written_field(1000, b"model: {depth: 3}"))
    refused(file, "its settings are not usable here: unknown key 'model.depth'")


def test_a_damaged_file_is_refused(contents, tmp_path):
    file = tmp_path / "detector.mindir"
    whole = contents[False]
    for data in (whole[: len(whole) // 2], whole[:-1], b"rubbish"):
        file.write_bytes(data)
        refused(file, "not a whole MindIR: ")
    file.write_bytes(with_settings(b"", SETTINGS))
    refused(file, "not a MindIR that this MindSpore reads")
    middle = len(whole) // 2
    for data in (whole[:middle] + bytes(400) + whole[middle + 400 :], whole + whole[-OWN:]):
        file.write_bytes(data)
        refused(file, "was damaged after it was exported; export again")


def test_what_cannot_be_exported_is_one_line(network, file, tmp_path):
    backend = MindSporeCPU()
    for name, message in (
        ("x.onnx", "this backend writes MindIR; onnxruntime writes ONNX"),
        ("x.txt", "is not named as a MindIR is; give it the suffix .mindir"),
        ("x", "is not named as a MindIR is; give it the suffix .mindir"),
        (
            "x.air",
            "AIR is written on Ascend alone; use the backend mindspore-ascend, or export .mindir",
        ),
        ("x.mindir", "the model is exported already; copy its file, and its .yaml"),
    ):
        made = load(file) if name == "x.mindir" else network
        with pytest.raises(BackendError, match=message):
            backend.export(made, tmp_path / name, SETTINGS)
        assert not (tmp_path / name).exists()
    air = tmp_path / "y.air"
    air.write_bytes(b"")
    refused(air, "AIR is for CANN's own compiler")


def test_what_mindspore_cannot_write_is_one_line(network, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Write to file failed, no space.\n\nC++ Call Stack: ...")

    monkeypatch.setattr(ms, "export", full)
    with pytest.raises(BackendError, match=r"cannot write it: Write to file failed, no space\.$"):
        MindSporeCPU().export(network, tmp_path / "x.mindir", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_air_is_asked_of_mindspore_for_one_image_on_ascend(network, tmp_path, monkeypatch):
    """As far as it goes without the device."""
    asked = []

    def export(cell, images, file_name, file_format):
        asked.append((cell, images.shape, file_format))
        with open(file_name, "wb") as stream:  # noqa: PTH123
            stream.write(b"air")

    monkeypatch.setattr(ms, "export", export)
    monkeypatch.setattr(MindSporeAscend, "_set_up", lambda _: None)
    for heads, cell in ((False, network.scored), (True, network.detector)):
        MindSporeAscend().export(network, tmp_path / "x.air", SETTINGS, heads=heads)
        assert asked.pop() == (cell, (1, 3, 64, 128), "AIR")
        assert (tmp_path / "x.air").read_bytes() == b"air"
    assert [path.name for path in tmp_path.iterdir()] == ["x.air"]


def test_a_file_alone_runs_by_its_own_settings(file):
    file.with_name("detector.mindir.yaml").unlink()
    model = open_model(MindSporeCPU(), file)
    assert model.class_names == ("a", "b")
    assert model.network.config == CONFIG
    with pytest.raises(BackendError, match="takes only 64x128 pixels"):
        model.rebuild(CONFIG)


def test_export_eval_and_detect(run, noise, tmp_path):
    """The commands, from weights to what is found: the same with and without decoding inside."""
    from refinedet.models.checkpoint import Checkpoint, save_checkpoint

    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    save_checkpoint(folder, Checkpoint(SETTINGS, initial_parameters(CONFIG, 0), None, 0), 1)
    (tmp_path / "list.txt").write_text(
        "".join(f"{r.path.name} 2,3,30,40,1\n" for r in noise.records)
    )
    data = ("--layout", "text", "--annotations", tmp_path / "list.txt")
    data = (*data, "--images", tmp_path / "images", "--classes", "a,b")
    found = []
    for heads in ((), ("--heads",)):
        path = tmp_path / f"small{len(heads)}.mindir"
        caught = run("export", "--model", tmp_path / "run", "--output", path, *heads)
        assert caught == (0, f"wrote {path} and its settings, {path}.yaml\n", "")
        out = tmp_path / f"out{len(heads)}"
        status, _, err = run("eval", "--model", path, "--output", out, *data)
        assert status == 0, err
        status, _, err = run(
            "detect", tmp_path / "images", "--model", path, "--output", out, "--score", 0
        )
        assert status == 0, err
        found.append(json.loads((out / "detections.json").read_text()))
    for one, other in zip(*found, strict=True):
        assert len(one["objects"]) == len(other["objects"]) > 0
    status, _, err = run(
        "export", "--model", tmp_path / "run", "--output", tmp_path / "x.air", "--target", "cpu"
    )
    assert (status, err.count("\n")) == (1, 1)
    assert "x.air: AIR is written on Ascend alone" in err
    assert not list(tmp_path.glob("x.air*"))
