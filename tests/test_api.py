"""``import refinedet``: what it offers, what it loads, and that it does what the commands do."""

import json
import subprocess
import sys

import numpy as np
import pytest

import refinedet
from refinedet.data.images import read_image
from refinedet.errors import DataError, TrainingError, UsageError
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import resolve
from refinedet.spec.errors import RefineDetError, SpecError
from refinedet.spec.network import initial_parameters

SMALL = ("model.image_size=[64, 64]", "model.detection.score=0.01")
DATA = refinedet.dataset("coco", annotations="a.json", images="images")
LIGHT = ("numpy", "cv2", "mindspore", "torch", "onnxruntime", "pycocotools", "matplotlib", "typer")


def test_importing_it_loads_no_library():
    """Nothing but the standard library: so it takes hundredths of a second."""
    code = "import sys, refinedet; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(LIGHT) & set(done.stdout.split())


def test_what_it_offers_is_listed_and_unknown_names_are_errors():
    assert set(refinedet.__all__) <= set(dir(refinedet))
    for name in refinedet.__all__:
        assert getattr(refinedet, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        refinedet.nosuch  # noqa: B018


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small detector with random parameters, which detects something everywhere."""
    settings = resolve("refinedet_eighth_128", None, SMALL, ("a", "b"))
    parameters = initial_parameters(settings.model, 0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_checkpoint(path, Checkpoint(settings, parameters, None, 0))
    return path


@pytest.fixture
def detector(weights):
    return refinedet.load(str(weights), backend="spec", batch_size=2)


def same(left, right):
    """Equal but for the order of sums, which depends on the batch size."""
    np.testing.assert_allclose(left.boxes, right.boxes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(left.scores, right.scores, rtol=1e-5)
    assert left.names == right.names


def test_a_path_a_string_an_array_or_many(detector, noise):
    paths = [record.path for record in noise.records[:3]]
    one = detector(paths[0], score=0.1)
    assert len(one) > 0
    same(detector(str(paths[0]), score=0.1), one)
    same(detector(read_image(paths[0]), score=0.1), one)
    many = detector(paths, score=0.1)
    assert len(many) == 3
    same(many[0], one)
    for left, right in zip(detector(iter(map(str, paths)), score=0.1), many, strict=True):
        same(left, right)


def test_detections_have_names_boxes_in_pixels_and_scores(detector, noise):
    results = detector(noise.records[0].path, score=0.1)
    assert results.boxes.shape == (len(results), 4)
    assert (np.diff(results.scores) <= 0).all()
    assert results.boxes[:, 2].max() > 1  # pixels, not fractions
    for (name, score, box), label in zip(results, results.labels, strict=True):
        assert name == ("a", "b")[label - 1]
        assert score >= 0.1
        x_min, y_min, x_max, y_max = box
        assert 0 <= x_min <= x_max <= 80
        assert 0 <= y_min <= y_max <= 48
    assert len(detector(noise.records[0].path, score=1.0)) == 0


def test_detections_are_those_of_the_command(run, detector, weights, noise, tmp_path):
    path, output = noise.records[0].path, tmp_path / "out"
    options = ("--backend", "spec", "--score", 0.1, "--output", output)
    assert run("detect", path, "--model", weights, *options)[0] == 0
    (image,) = json.loads((output / "detections.json").read_text())
    results = detector(path, score=0.1)
    assert [o["class"] for o in image["objects"]] == list(results.names)
    np.testing.assert_allclose([o["box"] for o in image["objects"]], results.boxes, atol=0.006)


def test_what_is_wrong_is_one_line(detector, tmp_path, noise):
    with pytest.raises(DataError, match=r"none\.png: "):
        detector(tmp_path / "none.png")
    with pytest.raises(SpecError, match="image: "):
        detector(np.zeros((4, 4), np.uint8))
    with pytest.raises(RefineDetError, match="no 'nosuch'"):
        refinedet.load(tmp_path, backend="nosuch")
    with pytest.raises(UsageError, match="layout: no 'yolo'; there are coco, voc, text"):
        refinedet.dataset("yolo")
    with pytest.raises(UsageError, match="split: is not read with layout coco"):
        refinedet.dataset("coco", annotations="a.json", images="x", split="train")
    for error in (UsageError("reason", key="run"), TrainingError("reason", path="run")):
        assert "--" not in str(error)


def text_list(noise, folder):
    """The noisy images as a text list."""
    lines = []
    for record in noise.records:
        boxes = (
            ",".join(map(str, [*map(int, box), label]))
            for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
        )
        lines.append(" ".join([record.path.name, *boxes]))
    (folder / "list.txt").write_text("\n".join(lines))
    return refinedet.dataset(
        "text",
        annotations=folder / "list.txt",
        images=str(noise.records[0].path.parent),
        class_names=("a", "b"),
    )


def test_an_evaluation_is_that_of_the_command(run, weights, noise, tmp_path):
    data = text_list(noise, tmp_path)
    evaluation = refinedet.evaluate(
        weights, data, output=tmp_path / "python", backend="spec", batch_size=2
    )
    options = ("--layout", "text", "--annotations", tmp_path / "list.txt", "--backend", "spec")
    options += ("--images", noise.records[0].path.parent, "--output", tmp_path / "command")
    assert run("eval", "--model", weights, *options)[0] == 0
    expected = json.loads((tmp_path / "command" / "evaluation.json").read_text())
    assert json.loads((tmp_path / "python" / "evaluation.json").read_text()) == expected
    assert evaluation.metrics["AP"] == expected["AP"]


def test_a_training_is_prepared_as_by_the_command(run, noise, tmp_path, capsys):
    """A dry run writes nothing; what contradicts itself is found before any data are read."""
    data = text_list(noise, tmp_path)
    options = {"preset": "refinedet_eighth_128", "assignments": SMALL, "backend": "mindspore-cpu"}
    refinedet.train(tmp_path / "run", data, dry_run=True, **options)
    described = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    command = ("train", "--run", tmp_path / "run", "--layout", "text", "--classes", "a,b")
    command += ("--annotations", tmp_path / "list.txt", "--preset", "refinedet_eighth_128")
    command += ("--images", noise.records[0].path.parent, "--dry-run")
    status, out, _ = run(*command, *(part for text in SMALL for part in ("--set", text)))
    assert (status, out.split("\ndisk")[0]) == (0, described.split("\ndisk")[0])
    missing = refinedet.dataset(
        "text", annotations="none.txt", images="none", class_names=("a", "b")
    )
    with pytest.raises(UsageError, match="backbone: the initial detector has a backbone"):
        refinedet.train("run", missing, backbone="x.pth", initial="y.pth", **options)
    with pytest.raises(UsageError, match="partial: names tensors"):
        refinedet.train("run", missing, partial="odm", **options)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(TrainingError, match=r"full: is not empty"):
        refinedet.train(full, missing, **options)


def test_an_export_names_its_settings(weights, tmp_path):
    with pytest.raises(RefineDetError, match="spec"):
        refinedet.export(weights, tmp_path / "x.onnx", backend="spec")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refinedet.load(None), "model: expected a path, got None"),
        (lambda: refinedet.load("a\0"), "model: .* holds a NUL"),
        (lambda: refinedet.load("a", backend=3), "backend: expected a text, got 3"),
        (lambda: refinedet.load("a", batch_size=0), "batch_size: expected a whole number from 1"),
        (lambda: refinedet.dataset("coco", annotations=3), "annotations: expected a path"),
        (lambda: refinedet.dataset("coco", class_names="ab"), "class_names: expected a list"),
        (lambda: refinedet.dataset("voc", root="v", split=["x"]), "split: expected a text"),
        (lambda: refinedet.evaluate("a", "a.json"), "data: expected what dataset"),
        (lambda: refinedet.evaluate("a", DATA, batch_size=-1), "batch_size: expected a whole"),
        (lambda: refinedet.evaluate("a", DATA, protocol=[]), "protocol: expected a text"),
        (lambda: refinedet.evaluate("a", DATA, resume=True), "resume: needs output"),
        (lambda: refinedet.export("a", None), "output: expected a path, got None"),
        (lambda: refinedet.train("a", None), "data: expected what dataset"),
        (lambda: refinedet.train("a", DATA, evaluation="b"), "evaluation: expected what dataset"),
        (lambda: refinedet.train("a", DATA, assignments="a=1"), "assignments: expected a list"),
        (lambda: refinedet.train("a", DATA, assignments=[3]), "assignments: expected a text"),
        (lambda: refinedet.train("a", DATA, partial=["a"]), "partial: expected a text"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        call()


def test_a_wrong_argument_of_a_detector_is_named(detector):
    pixels = np.zeros((30, 40, 3), np.uint8)
    for images in (None, 3):
        with pytest.raises(UsageError, match=r"^images: expected a path, an array"):
            detector(images)
    for score in (None, "a", 2, float("nan")):
        with pytest.raises(UsageError, match=r"^score: expected a number from 0 to 1"):
            detector(pixels, score)
        with pytest.raises(UsageError, match=r"^score: expected a number from 0 to 1"):
            detector.stream([pixels], score)
