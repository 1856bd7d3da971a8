"""The command line: what users type, and one line for everything they get wrong."""

import json
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import refused

from refinedet.backends.reference import SpecBackend, SpecNetwork
from refinedet.cli.demo import run_demo
from refinedet.errors import DataError, WriteError
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.export import export_model
from refinedet.models.open import Model
from refinedet.settings import from_yaml, resolve
from refinedet.spec.config import replace
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

SMALL = ["model.image_size=[64, 128]", "model.detection.score=0.3"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    settings = resolve("refinedet_eighth_128", None, SMALL, ("a", "b"))
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_checkpoint(path, Checkpoint(settings, initial_parameters(settings.model, 0), None, 0))
    return path


def test_every_command_has_help(run):
    for command in (
        (),
        *([name] for name in ("demo", "train", "eval", "detect", "export", "bench", "backends")),
        ("data", "check"),
        ("presets", "list"),
        ("presets", "show"),
    ):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "Usage" in out


def test_presets_show_is_a_settings_file(run, tmp_path):
    status, out, _ = run("presets", "show", "refinedet_eighth_128")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert from_yaml(tmp_path / "mine.yaml") == resolve("refinedet_eighth_128", None, ())
    assert "refinedet_vgg16_512" in run("presets", "list")[1]
    refused(run("presets", "show", "nosuch"), "no 'nosuch'; there are refinedet_vgg16_320")


def test_results_alone_are_scored_as_published(run, shared_data):
    folder = shared_data / "coco_eval"
    status, out, _ = run(
        *("eval", "--results", folder / "instances_val2014_fakebbox100_results.json"),
        *("--annotations", folder / "instances_val2014_100.json"),
    )
    assert status == 0
    metrics = [line.split()[-1] for line in out.splitlines()[1:13]]
    published = ".505 .697 .573 .586 .519 .501 .387 .594 .595 .640 .566 .564"
    assert [metric.lstrip("0") for metric in metrics] == published.split()


def test_data_check_lists_all_and_tells_by_its_status(run, shared_data, tmp_path):
    bccd = ("--layout", "voc", "--root", shared_data / "bccd")
    status, out, _ = run("data", "check", *bccd, "--split", "trainval")
    assert status == 0
    assert "BloodImage_00338" in out
    assert "BloodImage_00343" in out
    (tmp_path / "list.txt").write_text("none.png 1,2,3,4,1\nother.png 1\n")
    status, out, _ = run(
        *("data", "check", "--layout", "text", "--root", tmp_path),
        *("--annotations", "list.txt", "--classes", "a"),
    )
    assert status == 1
    assert "line 1" in out
    assert "line 2" in out


def test_detect_draws_and_lists_images_of_every_kind(run, weights, tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "colour.jpg"), rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    cv2.imwrite(str(images / "grey.png"), rng.integers(0, 256, (70, 40), dtype=np.uint8))
    output = tmp_path / "out"
    status, out, _ = run("detect", images, "--model", weights, "--output", output, "--score", "0")
    assert status == 0, out
    rows = json.loads((output / "detections.json").read_text())
    assert [(row["width"], row["height"]) for row in rows] == [(90, 50), (40, 70)]
    for row in rows:
        assert row["objects"]
        for found in row["objects"]:
            x_min, y_min, x_max, y_max = found["box"]
            assert 0 <= x_min <= x_max <= row["width"]
            assert 0 <= y_min <= y_max <= row["height"]
            assert found["class"] in ("a", "b")
    assert sorted(p.name for p in output.iterdir()) == [
        "colour.jpg.png",
        "detections.json",
        "grey.png.png",
    ]


def test_eval_of_a_model_writes_its_tables(run, weights, tmp_path, noise):
    lines = []
    for record in noise.records:
        boxes = [
            ",".join(str(int(v)) for v in (*box, label))
            for box, label in zip(record.boxes, record.labels, strict=True)
        ]
        lines.append(" ".join([record.path.name, *boxes]))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = ("--layout", "text", "--annotations", tmp_path / "list.txt")
    data += ("--images", noise.records[0].path.parent)
    output = tmp_path / "out"
    status, out, err = run("eval", "--model", weights, *data, "--output", output)
    assert status == 0, err
    assert "VOC12" in out
    assert sorted(p.name for p in output.iterdir()) == [
        "detections.png",
        "evaluation.json",
        "evaluation.txt",
        "results.json",
    ]
    refused(run("eval", "--model", weights, *data, "--classes", "a,c"), "detects a, b")


def test_what_users_get_wrong_is_one_line(run, weights, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello")
    empty = tmp_path / "empty"
    empty.mkdir()
    train = ("train", "--run", tmp_path / "run", "--layout", "voc")
    refused(run("detect", tmp_path / "none", "--model", weights), "no such image or folder")
    refused(run("detect", empty, "--model", weights), "no image in this folder")
    refused(run("detect", text, "--model", weights, "--output", tmp_path / "o"), "text.txt")
    refused(run("detect", text, "--model", text), "there is no text.txt.yaml beside it")
    refused(run("detect", text, "--model", empty), "no checkpoint in it")
    refused(
        run("detect", text, "--model", weights, "--backend", "gpu"),
        "there are mindspore-ascend, mindspore-ascend310, ",
    )
    refused(run("detect", text, "--model", weights, "--backend", "no.module:x"), "no.module")
    refused(run("eval", "--results", text), "--annotations")
    refused(run("eval", "--results", text, "--annotations", text), "text.txt")
    scored = ("eval", "--results", text, "--annotations", text)
    for option, value in (
        *(("--root", empty), ("--images", empty), ("--split", "x"), ("--classes", "a,b")),
        *(("--data-cache", empty), ("--output", tmp_path / "o")),
    ):
        refused(run(*scored, option, value), f"{option}: is not read with --results")
    refused(run(*scored, "--layout", "voc"), "--layout: results are scored with COCO")
    refused(
        run(*scored, "--backend", "spec"), "--backend: is not read with --results; leave it out"
    )
    refused(run("eval"), "--model")
    refused(run(*train, "--root", tmp_path / "none", "--split", "x"), "no such list")
    refused(run("train", "--run", tmp_path / "run"), "--layout")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "o").exists()


def test_an_export_replaces_no_checkpoint(run, weights, tmp_path):
    copy = tmp_path / "weights.ckpt"
    copy.write_bytes(weights.read_bytes())
    (tmp_path / "link").symlink_to(copy)
    for output in (copy, tmp_path / "link"):
        refused(
            run("export", "--model", copy, "--output", output),
            f"--output: {output} is the model, which it would replace",
        )
    assert copy.read_bytes() == weights.read_bytes()


def exporter(config):
    """A backend that writes a file, and a model for it."""

    class Exporter(SpecBackend):
        capabilities = frozenset({"export"})

        def export(self, network, path, settings):
            path.write_text("x")

    return Exporter(), Model(
        SimpleNamespace(config=config), SimpleNamespace(class_names=("a", "b")), None
    )


def test_an_export_has_not_the_name_of_a_checkpoint(tmp_path):
    with pytest.raises(DataError, match=r"x\.safetensors: is the name of a checkpoint; choose"):
        export_model(*exporter(preset("refinedet_eighth_128")), tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())


def test_an_export_without_its_settings_is_not_left(tmp_path):
    config = replace(preset("refinedet_eighth_128"), num_classes=3)
    (tmp_path / "x.onnx.yaml").mkdir()
    with pytest.raises(WriteError, match=r"x\.onnx\.yaml: cannot write"):
        export_model(*exporter(config), tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx.yaml"]


def test_loops_of_links_are_one_line(run, weights, noise, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    image = noise.records[0].path
    for arguments in (
        ("detect", image, "--model", weights, "--backend", "spec", "--output", tmp_path / "loop"),
        ("detect", tmp_path / "loop", "--model", weights, "--backend", "spec"),
        ("export", "--model", weights, "--output", tmp_path / "loop" / "x"),
    ):
        refused(run(*arguments), f"{tmp_path}/loop")


def test_outputs_that_are_not_finite_are_told(run, weights, noise, tmp_path, monkeypatch):
    def broken(self, images):
        boxes, scores = scored(self, images)
        return np.full_like(boxes, np.nan), scores

    scored = SpecNetwork.scored_boxes
    monkeypatch.setattr(SpecNetwork, "scored_boxes", broken)
    refused(
        run(
            *("detect", noise.records[0].path, "--model", weights, "--backend", "spec"),
            *("--output", tmp_path / "out"),
        ),
        "the outputs of the model cannot be used: boxes: not finite at (0, 0); its parameters are",
    )
    assert not (tmp_path / "out").exists()


def test_an_interruption_is_one_line(run, weights, tmp_path, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("refinedet.cli.detect.read_image", interrupted)
    (tmp_path / "a.png").touch()
    status, out, err = run(
        *("detect", tmp_path, "--model", weights, "--backend", "spec"),
        *("--output", tmp_path / "out"),
    )
    assert (status, out) == (130, "")
    assert err == "refinedet: interrupted; train, and eval with --output, continue with --resume\n"


COCO = ("--layout", "coco", "--annotations", "absent.json", "--images", "absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights",), "give a command; see --help"),
        (("demo", "--seed", "-1"), "greater than or equal to 0"),
        (("train", "--run", "r", *COCO, "--classes", ""), "--classes: names no class"),
        (("weights", "import", "w", "--output", "x", "--classes", " "), "--classes: names no"),
        (("train", "--run", "r", *COCO, "--dry-run", "--profile", "p"), "--profile: is not"),
        (("eval", "--results-bin", ".", "--preset", "nosuch", *COCO), "no 'nosuch'; there are"),
        (("eval", "--model", "m", *COCO, "--output", "file"), "file: is no folder"),
        (("bench", "--json", "pipe"), "pipe: cannot write: not a file; choose the name of"),
        (("detect", "pipe", "--model", "m"), "pipe: is neither a file nor a folder"),
        (("detect", "file", "--model", "m", "--output", "pipe"), "pipe: is no folder"),
        (("detect", "file", "file", "--model", "m"), "file: is given twice"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_read(
    run, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "file").touch()
    status, _, err = run(*arguments)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "file"}


def test_a_demo_is_not_run_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file: is no folder"):
        run_demo(SpecBackend(), tmp_path / "file", 0)
    assert len(list(tmp_path.iterdir())) == 1
