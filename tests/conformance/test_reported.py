"""Level *reported mAP*: on a small set in COCO's layout, and metrics published by the test."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from refinedet.backends.interface import Limitation
from refinedet.backends.reference import SpecBackend, SpecNetwork
from refinedet.backends.registry import BackendChoice
from refinedet.conformance.checks.detections import CONFIG, confident_parameters
from refinedet.conformance.registry import CHECKS, LEVELS
from refinedet.conformance.report import Report, as_data, as_text, reached
from refinedet.conformance.report_html import as_html
from refinedet.conformance.runner import (
    FAILED,
    LIMITED,
    NOT_IMPLEMENTED,
    NOT_RUN,
    PASSED,
    Worker,
    outcome,
    select,
)
from refinedet.data.source import DataSource
from refinedet.evaluation import published
from refinedet.evaluation.model_run import Reported, evaluate_model
from refinedet.evaluation.protocols import find_protocol, under
from refinedet.evaluation.published import TOLERANCE, Published
from refinedet.inference.predictor import Predictor
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import Settings, to_yaml

from .test_cli import under_pytest

NAMES = ("cat", "dog", "cow")[: CONFIG.num_classes - 1]
CATEGORIES = [{"id": n, "name": name} for n, name in zip((3, 18, 90), NAMES, strict=False)]
"""With gaps, as COCO's."""
NAME = "reported.map"
OPTIONS = ("--model", "--annotations", "--images", "--expect")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector, and images of it: the objects are half of what it finds, moved.

    Of fourteen images two have no object, and two a crowd: ten count, in two batches.
    """
    folder = tmp_path_factory.mktemp("reported")
    (folder / "images").mkdir()
    parameters = confident_parameters(0)
    settings = Settings(model=CONFIG, class_names=NAMES)
    write_checkpoint(folder / "w.safetensors", Checkpoint(settings, parameters, None, 0))
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (*rng.integers(90, 400, 2), 3), dtype=np.uint8) for _ in range(14)
    ]
    network = under(find_protocol("modelzoo"), SpecNetwork(CONFIG, parameters))
    images, annotations = [], []
    for n, found in enumerate(Predictor(network, 4).predict(iter(images))):
        image, image_id = images[n], 7 * n + 1000
        height, width = image.shape[:2]
        name = f"{image_id:012}.png"
        cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for k in range(0, 0 if n in (4, 9) else len(found.boxes), 2):
            low, high = found.boxes[k, :2], found.boxes[k, 2:]
            low = low + rng.uniform(0, 0.15, 2) * (high - low)
            box = [float(x) for x in (*low, *(high - low))]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[found.labels[k] - 1]["id"],
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
    """What the specification measures, published."""
    source = DataSource("coco", annotations=files.annotations, images=files.images)
    protocol = find_protocol("modelzoo")
    measured = evaluate_model(SpecBackend(), files.model, source, protocol).metrics
    metrics = {name: x for name, x in measured.items() if name[:2] in ("AP", "AR") and x == x}
    assert len(metrics) >= 10
    assert 0.1 < metrics["AP"] < 0.9
    least = metrics["AP"] - 0.005
    return Published("a-row", "ours", metrics, frozenset(), least, "modelzoo", "noise", "here")


def reported(files, row, retrained=False):
    return Reported(files.model, files.annotations, files.images, row, retrained)


def given(case):
    """The check, with what a user gave."""
    (check,) = select(["reported mAP"], case=case)
    return check


def moved(row, metric, by):
    return replace(row, metrics={**row.metrics, metric: row.metrics[metric] + by})


def test_the_right_metrics_pass_and_reach_the_level(files, row):
    one = outcome(given(reported(files, row)), SpecBackend())
    assert (one.state, one.failure) == (PASSED, None)
    assert one.worst < 1e-6
    others = [
        replace(one, check=c.name, level=c.level) for c in CHECKS.values() if c.name != one.check
    ]
    assert reached([*others, one]) == (LEVELS[-1], "")
    assert LEVELS[-1] == "reported mAP"


@pytest.mark.parametrize("metric", ["AP", "AP75", "AR100"])
@pytest.mark.parametrize("by", [0.0016, -0.0016])
def test_a_figure_off_by_more_than_the_tolerance_fails(files, row, metric, by):
    wrong = moved(row, metric, by)
    one = outcome(given(reported(files, wrong)), SpecBackend())
    assert one.state == FAILED
    assert one.failure.said == (
        f"a-row, protocol modelzoo: {metric} is {row.metrics[metric]:.4f}, "
        f"published {wrong.metrics[metric]:.4f}, difference {-by:+.4f}"
    )
    assert one.failure.error == pytest.approx(0.0016)
    assert one.failure.tolerance == TOLERANCE
    assert one.worst == pytest.approx(0.0016 / TOLERANCE)
    near = moved(row, metric, 0.9 * by)
    one = outcome(given(reported(files, near)), SpecBackend())
    assert one.state == PASSED
    assert one.worst == pytest.approx(0.9 * 0.0016 / TOLERANCE)


def test_every_figure_outside_is_told_and_one_without_a_value_too(files, row):
    wrong = replace(row, metrics={"AP": 0.01, "AP50": row.metrics["AP50"], "nothing": 0.5})
    failure = outcome(given(reported(files, wrong)), SpecBackend()).failure
    assert "AP is 0." in failure.said
    assert "AP50" not in failure.said
    assert failure.said.endswith("; nothing has no value, published 0.5000")
    assert math.isinf(failure.error)
    assert "'AP50': 0." in failure.got
    json.dumps(as_data(Report("quick", 0, (outcome(given(reported(files, wrong)), Raises()),))))


def test_metrics_from_memory_are_not_judged(files, row):
    wrong = replace(moved(row, "AP75", 0.2), unverified=frozenset({"AP75"}))
    one = outcome(given(reported(files, wrong)), SpecBackend())
    assert (one.state, one.worst < 1e-6) == (PASSED, True)


def test_a_retrained_detector_may_fall_short_in_its_main_figure_alone(files, row):
    higher = moved(moved(row, "AP75", 0.3), "AP", 0.004)
    allowed = replace(higher, retrained_at_least=row.metrics["AP"] - 0.001)
    one = outcome(given(reported(files, allowed, retrained=True)), SpecBackend())
    assert one.state == PASSED
    assert one.worst == pytest.approx(0.8)
    short = replace(higher, retrained_at_least=row.metrics["AP"] + 0.001)
    one = outcome(given(reported(files, short, retrained=True)), SpecBackend())
    assert one.state == FAILED
    assert one.failure.tolerance == pytest.approx(0.003)
    assert (
        f"difference -0.0040, expected at least {short.retrained_at_least:.4f}" in one.failure.said
    )
    assert "AP75" not in one.failure.said


@pytest.mark.parametrize("protocol", ["paper", "caffe-coco"])
def test_a_wrong_protocol_fails(files, row, protocol):
    one = outcome(given(reported(files, replace(row, protocol=protocol))), SpecBackend())
    assert one.state == FAILED
    assert one.failure.said.startswith(f"a-row, protocol {protocol}: AP is 0.")


class Errs(SpecBackend):
    """Every box a hundredth of the image too far to the right."""

    def network(self, config, parameters):
        right = super().network(config, parameters)

        def scored_boxes(images):
            boxes, scores = right.scored_boxes(images)
            return boxes + np.array([0.01, 0, 0.01, 0], np.float32), scores

        return SimpleNamespace(config=config, scored_boxes=scored_boxes)


class Raises(SpecBackend):
    def network(self, config, parameters):
        raise RuntimeError("no memory\nat all")


class Partial:
    name = "partial"


class Declares(Errs):
    limitations = (Limitation(NAME, "boxes are moved"),)


def test_a_backend_that_errs_in_the_network_fails(files, row):
    one = outcome(given(reported(files, row)), Errs())
    assert one.state == FAILED
    assert "AP is " in one.failure.said
    one = outcome(given(reported(files, row)), Raises())
    assert one.state == FAILED
    assert one.failure.said == "evaluating raises RuntimeError: no memory"


def test_a_failure_shows_itself_again(files, row, capsys):
    failure = outcome(given(reported(files, moved(row, "AP", 0.1))), SpecBackend()).failure
    exec(failure.snippet.replace("'spec'", "'refinedet.backends.reference:SpecBackend'"), {})
    assert f"{NAME}: {failure.said}\n" in capsys.readouterr().out


def test_what_a_backend_lacks_or_declares(files, row, tmp_path):
    case = reported(files, row)
    one = outcome(given(case), Partial())
    assert (one.state, one.reason) == (NOT_IMPLEMENTED, "network")
    exported = tmp_path / "detector.mindir"
    exported.write_bytes(b"graph")
    settings = to_yaml(Settings(model=CONFIG, class_names=NAMES))
    exported.with_name("detector.mindir.yaml").write_text(settings)
    one = outcome(given(replace(case, model=exported)), SpecBackend())
    assert (one.state, one.reason) == (NOT_IMPLEMENTED, "load")
    one = outcome(given(case), Declares())
    assert (one.state, one.reason) == (LIMITED, "boxes are moved")


def test_without_data_it_is_not_run_and_lowers_no_level():
    for backend in (SpecBackend(), Declares(), Partial()):
        one = outcome(CHECKS[NAME], backend)
        assert one.state == NOT_RUN
        assert one.reason == "give --model, --annotations, --images and --expect"
        assert one.failure is None
    others = [
        replace(one, check=c.name, level=c.level, state=PASSED)
        for c in CHECKS.values()
        if c.name != NAME
    ]
    report = Report("quick", 0, (*others, one))
    data = as_data(report)
    assert data["backends"][0]["reached"] == "detections"
    assert data["backends"][0]["obstacle"] == "reported mAP: 1 not run"
    assert data["backends"][0]["levels"][-1]["not run"] == 1
    assert not report.failed()
    assert f"  not run, {one.reason}: {NAME}" in as_text(report)
    assert f'<td class="not-run">not run: {one.reason}</td><td>-</td>' in as_html(data)


# The process


BACKENDS = """
import os, time
from types import SimpleNamespace
import numpy as np
from refinedet.backends.reference import SpecBackend

class Blind(SpecBackend):
    "Finds nothing, at once."
    def network(self, config, parameters):
        def scored_boxes(images):
            self.act()
            return np.zeros((len(images), 9, 4), "f4"), np.zeros((len(images), 9, 4), "f4")
        return SimpleNamespace(config=config, scored_boxes=scored_boxes)

class Crashes(Blind):
    def act(self):
        os.abort()

class Hangs(Blind):
    def act(self):
        time.sleep(600)

class Slow(Blind):
    def act(self):
        time.sleep(3)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "reported_backends.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name):
        made.append(Worker(BackendChoice(f"reported_backends:{name}"), "quick", 0))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_a_crash_fails_it_and_no_other(files, row, worker):
    crashing = worker("Crashes")
    one = crashing.run(given(reported(files, row)))
    assert (one.state, one.failure.said) == (FAILED, f"{NAME} ends the process (signal 6)")
    assert crashing.run(CHECKS["clip_boxes.parity"]).state == PASSED
    assert crashing.run(CHECKS[NAME]).state == NOT_RUN


def test_a_hang_fails_it(files, row, worker):
    hanging = worker("Hangs")
    hanging.limit = 5.0
    one = hanging.run(given(reported(files, row)))
    assert (one.state, one.failure.said) == (FAILED, f"{NAME} shows no progress within 5 s")


def test_the_limit_is_between_two_signs_of_life_and_not_of_the_whole(files, row, worker):
    slow = worker("Slow")
    slow.start()
    slow.limit = 5.0  # of two batches at three seconds each
    one = slow.run(given(reported(files, row)))
    assert one.failure.said.startswith("a-row, protocol modelzoo: AP is 0.0000, ")
    assert one.seconds > slow.limit


# The program


@pytest.fixture
def options(files, row, monkeypatch):
    monkeypatch.setattr(published, "published", lambda: {"a-row": row, "voc": voc(row)})
    data = ("--annotations", files.annotations, "--images", files.images)
    return ("--model", files.model, *data, "--expect", "a-row")


def voc(row):
    return replace(row, name="voc", metrics={"VOC07": 0.8})


ALONE = ("conformance", "--backend", "spec", "--level", "reported mAP")


def test_the_command_passes_it_and_fails_it(run, options, row, monkeypatch, tmp_path):
    status, out, err = run(*ALONE, *options, "--json", tmp_path / "r.json")
    assert status == 0, err
    (backend,) = json.loads((tmp_path / "r.json").read_text())["backends"]
    assert [one["state"] for one in backend["checks"]] == [PASSED]
    wrong = moved(row, "AP", 0.01)
    monkeypatch.setattr(published, "published", lambda: {"a-row": wrong})
    status, out, _ = run(*ALONE, *options)
    assert status == 1
    assert "FAILED reported.map on spec" in out
    assert f"published {wrong.metrics['AP']:.4f}, difference -0.0100" in out
    assert run(*ALONE, *options, "--retrained")[0] == 0  # it asks for what a new training may lack


def test_the_command_without_data_says_not_run(run, tmp_path):
    status, out, _ = run(*ALONE, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert status == 0
    assert "not run, give --model, --annotations, --images and --expect" in out
    (backend,) = json.loads((tmp_path / "r.json").read_text())["backends"]
    assert backend["checks"][0]["state"] == NOT_RUN
    assert "not run" in (tmp_path / "r.html").read_text()


def without(options, name):
    at = options.index(name)
    return (*options[:at], *options[at + 2 :])


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_missing_is_one_line(run, options, name):
    refused(run(*ALONE, *without(options, name)), f"{name}: level reported mAP needs it beside --")


def refused(result, message):
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("refinedet: error: "), err
    assert err.count("\n") == 1, err
    assert message in err


def test_what_users_get_wrong_is_one_line_before_anything_runs(run, options, files, tmp_path):
    def with_(name, value):
        return (*ALONE, *without(options, name), name, value)

    text = tmp_path / "text.txt"
    text.write_text("hello")
    refused(run(*with_("--expect", "x")), "--expect: no 'x'; there are a-row, voc")
    refused(run(*with_("--expect", "voc")), "--expect voc: has VOC07, give a row of COCO's")
    refused(run(*with_("--model", tmp_path / "none")), f"{tmp_path / 'none'}: cannot read: No such")
    refused(run(*with_("--model", text)), "text.txt: neither safetensors nor PyTorch's")
    refused(run(*with_("--model", tmp_path)), "no checkpoint in it")
    refused(run(*with_("--annotations", tmp_path / "none")), "none: ")
    refused(run(*with_("--annotations", text)), "text.txt: not JSON")
    refused(run(*with_("--images", tmp_path / "none")), "none: ")
    refused(run(*ALONE, "--retrained"), "--model: level reported mAP needs it beside --retrained")
    other = ("conformance", "--backend", "spec", "--level", "operations")
    refused(run(*other, *options), "--model: is for level reported mAP, which --level or -k leaves")
    gone = tmp_path / "gone.json"
    gone.write_text(files.annotations.read_text().replace('"dog"', '"cat2"'))
    refused(run(*with_("--annotations", gone)), "has no 'dog'")
    graph = tmp_path / "graph.mindir"
    graph.with_name("graph.mindir.yaml").write_text(to_yaml(Settings(model=CONFIG)))
    refused(run(*with_("--model", graph)), "graph.mindir: cannot read: No such file")


def test_a_image_that_is_missing_is_refused(run, options, files, tmp_path):
    """Other metrics would come of fewer images, and be held against the backend."""
    fewer = tmp_path / "images"
    fewer.mkdir()
    gone, *others = sorted(files.images.iterdir())
    for image in others:
        shutil.copy(image, fewer)
    options = (*without(options, "--images"), "--images", fewer)
    said = "the published metrics are of all images"
    refused(run(*ALONE, *options), said)
    (fewer / gone.name).write_bytes(gone.read_bytes()[:100])
    refused(run(*ALONE, *options), said)


def test_its_process_leaves_nothing_to_be_cleaned_up(files):
    paths = [f"--{name}={path}" for name, path in vars(files).items()]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "refinedet", *ALONE, *paths, "--expect", "modelzoo-gpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("spec reported.map: failed, "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


# Under pytest


def test_pytest_skips_what_was_not_run(tmp_path):
    done = under_pytest(tmp_path, "--backend", "spec", "-k", "reported", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": not run: give --model, --annotations, --images and --expect\n" in done.stdout
    assert "not run, give --model, --annotations, --images and --expect" in done.stdout


def test_pytest_runs_it_with_the_same_options(tmp_path, files):
    """Against a row that the files cannot reach."""
    paths = [f"--{name}={path}" for name, path in vars(files).items()]
    expect = ("--expect", "modelzoo-gpu", "-k", "reported")
    done = under_pytest(tmp_path, "--backend", "spec", *paths, *expect)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "published 0.2887, difference " in done.stdout
    done = under_pytest(tmp_path, "--backend", "spec", *paths[1:], *expect)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --model: level reported mAP needs it beside --" in done.stderr


# Any file of weights


def test_weights_with_settings_are_enough(files, row, tmp_path):
    """As ``weights export`` writes them."""
    path = tmp_path / "exported.safetensors"
    settings = to_yaml(Settings(model=CONFIG, class_names=NAMES))
    save_file(confident_parameters(0), path, {"format": "pt", "settings": settings})
    case = replace(reported(files, row), model=path)
    case.require_usable()
    assert outcome(given(case), SpecBackend()).state == PASSED
