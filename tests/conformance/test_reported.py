"""Level *reported mAP*, on a small data set in COCO's layout with metrics published by the test."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import refused
from safetensors.numpy import save_file

from refinedet.backends.reference import SpecBackend, SpecNetwork
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.checks.detections import CONFIG, confident_parameters
from refinedet.conformance.reported import (
    NOT_RUN,
    compare_reported,
    evaluate_reported,
    run_reported,
)
from refinedet.conformance.runner import FAILED, NOT_IMPLEMENTED, PASSED
from refinedet.data.source import DataSource
from refinedet.evaluation import published
from refinedet.evaluation.model_run import Reported, evaluate_model
from refinedet.evaluation.protocols import find_protocol, with_protocol
from refinedet.evaluation.published import Published
from refinedet.inference.predictor import Predictor
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.embedded_settings import with_settings
from refinedet.settings import Settings, to_yaml

NAMES = ("cat", "dog", "cow")[: CONFIG.num_classes - 1]
CATEGORIES = [{"id": n, "name": name} for n, name in zip((3, 18, 90), NAMES, strict=False)]
"""With gaps, as COCO's."""
OPTIONS = ("--model", "--annotations", "--images", "--expect")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector and images; the objects are half of its detections, moved.

    Of fourteen images two have no object and two have a crowd, so that ten are evaluated.
    """
    folder = tmp_path_factory.mktemp("reported")
    (folder / "images").mkdir()
    parameters = confident_parameters(0)
    settings = Settings(model=CONFIG, class_names=NAMES)
    write_checkpoint(folder / "w.safetensors", Checkpoint(settings, parameters, None, 0))
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 256, (*rng.integers(90, 400, 2), 3), dtype=np.uint8) for _ in range(14)
    ]
    network = with_protocol(find_protocol("modelzoo"), SpecNetwork(CONFIG, parameters))
    images, annotations = [], []
    for n, detections in enumerate(Predictor(network, 4).predict(iter(pixels))):
        image, image_id = pixels[n], 7 * n + 1000
        height, width = image.shape[:2]
        name = f"{image_id:012}.png"
        cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for k in range(0, 0 if n in (4, 9) else len(detections.boxes), 2):
            low, high = detections.boxes[k, :2], detections.boxes[k, 2:]
            low = low + rng.uniform(0, 0.15, 2) * (high - low)
            box = [float(x) for x in (*low, *(high - low))]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[detections.labels[k] - 1]["id"],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(n in (2, 7) and k == 0),
                }
            )
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(document))
    return SimpleNamespace(
        model=folder / "w.safetensors",
        annotations=folder / "annotations.json",
        images=folder / "images",
    )


@pytest.fixture(scope="module")
def row(files):
    """A published row with the metrics that the specification measures."""
    source = DataSource("coco", annotations=files.annotations, images=files.images)
    protocol = find_protocol("modelzoo")
    measured = evaluate_model(SpecBackend(), files.model, source, protocol).metrics
    metrics = {name: x for name, x in measured.items() if name[:2] in ("AP", "AR") and x == x}
    assert len(metrics) >= 10
    assert 0.1 < metrics["AP"] < 0.9
    lowest = metrics["AP"] - 0.005
    return Published("a-row", "ours", metrics, frozenset(), lowest, "modelzoo", "noise", "here")


def reported(files, row, retrained=False):
    return Reported(files.model, files.annotations, files.images, row, retrained)


def changed(row, metric, by):
    return replace(row, metrics={**row.metrics, metric: row.metrics[metric] + by})


def test_the_right_metrics_pass(files, row):
    outcome = evaluate_reported(SpecBackend(), reported(files, row))
    assert (outcome.state, outcome.reason) == (PASSED, "")
    assert [one.metric for one in outcome.metrics] == list(row.metrics)
    assert {one.verdict for one in outcome.metrics} == {"within"}


@pytest.mark.parametrize("metric", ["AP", "AP75", "AR100"])
@pytest.mark.parametrize("by", [0.0016, -0.0016])
def test_a_metric_off_by_more_than_the_tolerance_fails(files, row, metric, by):
    wrong = changed(row, metric, by)
    outcome = compare_reported(row.metrics, reported(files, wrong))
    assert outcome.state == FAILED
    assert outcome.reason == (
        f"{metric} is {row.metrics[metric]:.4f}, expected {wrong.metrics[metric]:.4f} \u00b1 0.0015"
    )
    near = changed(row, metric, 0.9 * by)
    assert compare_reported(row.metrics, reported(files, near)).state == PASSED


def test_every_metric_outside_is_shown_and_one_without_a_value_too(files, row):
    wrong = replace(row, metrics={"AP": 0.01, "AP50": row.metrics["AP50"], "nothing": 0.5})
    outcome = compare_reported(row.metrics, reported(files, wrong))
    assert outcome.reason.endswith("(and 1 more)")
    verdicts = {line.split()[0]: line.split()[-1] for line in outcome.table.splitlines()[3:]}
    assert verdicts == {"AP": "outside", "AP50": "within", "nothing": "outside"}


def test_metrics_from_memory_are_not_compared(files, row):
    wrong = replace(changed(row, "AP75", 0.2), unverified=frozenset({"AP75"}))
    assert compare_reported(row.metrics, reported(files, wrong)).state == PASSED


def test_a_retrained_detector_may_fall_short_in_its_main_metric_alone(files, row):
    higher = changed(changed(row, "AP75", 0.3), "AP", 0.004)
    allowed = replace(higher, retrained_at_least=row.metrics["AP"] - 0.001)
    case = reported(files, allowed, retrained=True)
    assert compare_reported(row.metrics, case).state == PASSED
    short = replace(higher, retrained_at_least=row.metrics["AP"] + 0.001)
    outcome = compare_reported(row.metrics, reported(files, short, retrained=True))
    assert outcome.state == FAILED
    assert outcome.reason.endswith(f"expected at least {short.retrained_at_least:.4f}")


@pytest.mark.parametrize("protocol", ["paper", "caffe-coco"])
def test_a_wrong_protocol_fails(files, row, protocol):
    wrong = replace(row, protocol=protocol)
    assert evaluate_reported(SpecBackend(), reported(files, wrong)).state == FAILED


class ShiftedNetwork(SpecNetwork):
    """Every box is a hundredth of the image too far to the right."""

    def scored_boxes(self, images):
        boxes, scores = super().scored_boxes(images)
        return boxes + np.array([0.01, 0, 0.01, 0], np.float32), scores


class Shifted(SpecBackend):
    def network(self, config, parameters):
        return ShiftedNetwork(config, parameters)


class Raises(SpecBackend):
    def network(self, config, parameters):
        raise RuntimeError("no memory\nat all")


def test_a_backend_with_an_error_in_the_network_fails(files, row):
    outcome = evaluate_reported(Shifted(), reported(files, row))
    assert outcome.state == FAILED
    assert outcome.metrics
    outcome = evaluate_reported(Raises(), reported(files, row))
    assert outcome.state == FAILED
    assert outcome.reason == "the evaluation raises RuntimeError: no memory"


def test_an_exported_file_needs_a_backend_that_loads_it(files, row, tmp_path):
    exported = tmp_path / "detector.mindir"
    exported.write_bytes(with_settings(b"", Settings(model=CONFIG, class_names=NAMES)))
    outcome = evaluate_reported(SpecBackend(), replace(reported(files, row), model=exported))
    assert (outcome.state, outcome.reason) == (NOT_IMPLEMENTED, "load")


def test_weights_with_settings_are_enough(files, row, tmp_path):
    """As ``weights export`` writes them."""
    path = tmp_path / "exported.safetensors"
    settings = to_yaml(Settings(model=CONFIG, class_names=NAMES))
    save_file(confident_parameters(0), path, {"format": "pt", "settings": settings})
    case = replace(reported(files, row), model=path)
    case.require_usable()
    assert evaluate_reported(SpecBackend(), case).state == PASSED


def test_a_crash_fails_the_evaluation_and_no_other(files, row, tmp_path, monkeypatch):
    (tmp_path / "crashing_backend.py").write_text(
        "import os\n"
        "from refinedet.backends.reference import SpecBackend\n"
        "class Crashes(SpecBackend):\n"
        "    def network(self, config, parameters):\n"
        "        os.abort()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backends = [BackendChoice("crashing_backend:Crashes"), BackendChoice("spec")]
    crashed, passed = dict(run_reported(backends, reported(files, row))).values()
    assert crashed.state == FAILED
    assert crashed.reason == "the evaluation ends the process (signal 6)"
    assert passed.state == PASSED


# The command


@pytest.fixture
def options(files, row, monkeypatch):
    monkeypatch.setattr(published, "published", lambda: {"a-row": row, "voc": voc(row)})
    data = ("--annotations", files.annotations, "--images", files.images)
    return ("--model", files.model, *data, "--expect", "a-row")


def voc(row):
    return replace(row, name="voc", metrics={"VOC07": 0.8})


COMMAND = ("conformance", "--backend", "spec", "--profile", "quick", "-k", "box_iou.range")


def test_the_command_runs_the_evaluation_after_the_checks(run, options, row, monkeypatch, tmp_path):
    status, out, err = run(*COMMAND, *options, "--json", tmp_path / "r.json")
    assert status == 0, err
    assert [line.split(":")[0] for line in err.splitlines() if ": passed, " in line] == [
        "spec box_iou.range",
        "spec reported mAP",
    ]
    (backend,) = json.loads((tmp_path / "r.json").read_text())["backends"]
    assert backend["reported"]["state"] == PASSED
    assert {one["metric"] for one in backend["reported"]["metrics"]} == row.metrics.keys()
    wrong = changed(row, "AP", 0.01)
    monkeypatch.setattr(published, "published", lambda: {"a-row": wrong})
    status, out, _ = run(*COMMAND, *options)
    assert status == 1
    assert f"FAILED reported mAP on spec: AP is {row.metrics['AP']:.4f}, expected" in out
    assert "-0.0100  outside" in out
    assert run(*COMMAND, *options, "--retrained")[0] == 0


def test_without_data_the_command_reports_the_level_as_not_run(run, tmp_path):
    files = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    status, out, _ = run(*COMMAND, *files)
    assert status == 0
    assert "  reported mAP: not run, " in out
    (backend,) = json.loads((tmp_path / "r.json").read_text())["backends"]
    assert backend["reported"]["state"] == NOT_RUN
    assert "reported mAP: not run" in (tmp_path / "r.html").read_text()


def without(options, name):
    at = options.index(name)
    return (*options[:at], *options[at + 2 :])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_missing_option_is_one_line(run, options, name):
    refused(run(*COMMAND, *without(options, name)), f"{name}: is needed for level reported mAP")


def test_a_user_error_is_one_line_before_anything_runs(run, options, files, tmp_path):
    def with_(name, value):
        return (*COMMAND, *without(options, name), name, value)

    text = tmp_path / "text.txt"
    text.write_text("hello")
    refused(run(*with_("--expect", "x")), "no 'x'; there are a-row, voc")
    refused(run(*with_("--expect", "voc")), "VOC07")
    refused(run(*with_("--model", tmp_path / "none")), f"{tmp_path / 'none'}: cannot read: No such")
    refused(run(*with_("--model", text)), "text.txt: neither safetensors nor PyTorch's")
    refused(run(*with_("--model", tmp_path)), "no checkpoint in it")
    refused(run(*with_("--annotations", tmp_path / "none")), "none: ")
    refused(run(*with_("--annotations", text)), "text.txt: not JSON")
    refused(run(*with_("--images", tmp_path / "none")), "none: ")
    refused(run(*COMMAND, "--retrained"), "--model: is needed for level reported mAP")
    missing = tmp_path / "missing.json"
    missing.write_text(files.annotations.read_text().replace('"dog"', '"cat2"'))
    refused(run(*with_("--annotations", missing)), "has no class 'dog'")
    graph = tmp_path / "graph.mindir"
    graph.with_name("graph.mindir.yaml").write_text(to_yaml(Settings(model=CONFIG)))
    refused(run(*with_("--model", graph)), "graph.mindir: cannot read: No such file")


def test_an_image_that_is_missing_is_refused(run, options, files, tmp_path):
    """Fewer images would give other metrics, and the backend would be blamed for them."""
    fewer = tmp_path / "images"
    fewer.mkdir()
    missing, *others = sorted(files.images.iterdir())
    for image in others:
        shutil.copy(image, fewer)
    options = (*without(options, "--images"), "--images", fewer)
    message = "the published metrics are of all images"
    refused(run(*COMMAND, *options), message)
    (fewer / missing.name).write_bytes(missing.read_bytes()[:100])
    refused(run(*COMMAND, *options), message)


def test_its_process_leaves_nothing_to_be_cleaned_up(files):
    paths = [f"--{name}={path}" for name, path in vars(files).items()]
    done = subprocess.run(
        [sys.executable, "-m", "refinedet", *COMMAND, *paths, "--expect", "modelzoo-gpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["spec box_iou.range", "spec reported mAP"]
    assert done.returncode == 1
