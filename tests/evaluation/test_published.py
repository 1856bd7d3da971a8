"""Published metrics: what the files hold, and the verdict on what was measured."""

import math
import re

import pytest

from refinedet.errors import ExpectationError, UsageError
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.protocols import PROTOCOLS
from refinedet.evaluation.published import (
    compare,
    comparison_table,
    find_published,
    published,
    require_agreement,
)

ZOO = "modelzoo-ascend910"


def test_the_model_zoos_metrics_are_those_of_its_readme(shared_data):
    readme = shared_data.parent / "modelzoo_readme.txt"
    lines = [float(x) for x in re.findall(r"maxDets= *\d+ \] = ([.\d]+)", readme.read_text())]
    means = [float(x) for x in re.findall(r"mAP: ?([.\d]+)", readme.read_text())]
    assert (len(lines), len(means)) == (36, 3)
    names = (ZOO, "modelzoo-gpu", "modelzoo-ascend310")
    for position, name in enumerate(names):
        metrics = find_published(name).metrics
        assert list(metrics) == list(COCO_METRICS)
        assert metrics["AP"] == means[position]
        printed = lines[12 * position : 12 * position + 12]
        assert [round(x, 3) for x in metrics.values()] == printed
    assert find_published(ZOO).metrics["AP"] == 0.2885878918173237
    assert find_published("modelzoo-gpu").metrics["AP"] == 0.288743125771368


def test_every_row_is_complete_and_in_range():
    assert len(published()) == 3 + 8 + 16
    for name, row in published().items():
        assert row.name == name
        assert row.what
        assert row.source
        assert row.measured_on
        assert row.protocol in PROTOCOLS
        assert row.unverified <= set(row.metrics)
        assert row.main in ("AP", "VOC07", "VOC12")
        assert row.main not in row.unverified
        assert set(row.metrics) <= {*COCO_METRICS, "VOC07", "VOC12"}
        assert all(0.05 < x < 0.9 for x in row.metrics.values())
        assert row.metrics.get("AP", 0) < row.metrics.get("AP50", 1)


def test_metrics_of_the_paper_from_memory_are_marked():
    sizes = {"APs", "APm", "APl"}
    for name, unverified in (
        ("paper-coco-vgg16-320", sizes),
        ("paper-coco-resnet101-320-multiscale", sizes),
        ("paper-coco-vgg16-512", set()),
        ("paper-coco-resnet101-512-multiscale", set()),
    ):
        assert find_published(name).unverified == unverified, name
    row = find_published("paper-coco-vgg16-320")
    assert list(row.metrics.values()) == [0.294, 0.492, 0.313, 0.1, 0.32, 0.444]
    assert find_published("paper-voc07-vgg16-512-multiscale-coco").metrics == {"VOC07": 0.858}
    assert find_published("paper-voc12-vgg16-320").metrics == {"VOC12": 0.781}


def test_the_papers_plus_rows_have_a_protocol_of_several_views():
    for name, row in published().items():
        plus = "multiscale" in name
        assert row.what.split(",")[0].endswith("+") == plus
        assert row.protocol.endswith("+") == plus
        assert bool(PROTOCOLS[row.protocol].fusions) == (plus or row.protocol == "caffe-coco")


def moved(by, name=ZOO):
    return {metric: x + by for metric, x in find_published(name).metrics.items()}


@pytest.mark.parametrize("by", [0, 0.0015, -0.0015, 0.0004])
def test_metrics_within_the_tolerance_agree(by):
    row = find_published(ZOO)
    compared = compare(moved(by), row)
    assert {c.verdict for c in compared} == {"within"}
    require_agreement(compared, row)


@pytest.mark.parametrize("metric", COCO_METRICS)
@pytest.mark.parametrize("by", [0.0016, -0.0016, math.nan])
def test_any_metric_outside_is_an_error(metric, by):
    row = find_published(ZOO)
    compared = compare(moved(0) | {metric: row.metrics[metric] + by}, row)
    with pytest.raises(ExpectationError, match=rf"^{ZOO}: {metric} (is|has no value)"):
        require_agreement(compared, row)


def test_a_retrained_detector_is_compared_by_its_map_alone():
    row = find_published("modelzoo-gpu")
    for metric, verdict in ((0.2836, "within"), (0.5, "within"), (0.2835, "outside")):
        compared = compare({"AP": metric}, row, retrained=True)
        assert [c.verdict for c in compared] == [verdict] + ["not compared"] * 11
    with pytest.raises(ExpectationError, match=r"AP is 0\.2835, expected at least 0\.2836"):
        require_agreement(compared, row, retrained=True)
    voc = find_published("paper-voc07-vgg16-320")
    assert compare({"VOC07": 0.795}, voc, retrained=True)[0].verdict == "within"
    assert compare({"VOC07": 0.7949}, voc, retrained=True)[0].verdict == "outside"
    assert compare({}, voc, retrained=True)[0].verdict == "outside"


def test_metrics_from_memory_are_shown_and_not_compared():
    row = find_published("paper-coco-vgg16-320")
    metrics = dict(row.metrics) | {"APs": 0.9}
    compared = compare(metrics, row)
    assert compared[3] == ("APs", 0.9, 0.1, "not compared: unverified")
    require_agreement(compared, row)
    with pytest.raises(ExpectationError, match="AP50 is"):
        require_agreement(compare(metrics | {"AP50": 0.5}, row), row)


def test_the_table_shows_measured_published_and_difference():
    row = find_published("paper-coco-vgg16-320")
    metrics = dict(row.metrics) | {"AP": 0.3, "AP75": math.nan}
    lines = comparison_table(compare(metrics, row), row).splitlines()
    assert lines[0].startswith("paper-coco-vgg16-320: RefineDet320, VGG16; COCO test-dev")
    assert lines[1] == "expected: within 0.0015"
    assert [line.split(maxsplit=4) for line in lines[2:7]] == [
        ["metric", "measured", "published", "difference", "verdict"],
        ["AP", "0.3000", "0.2940", "+0.0060", "outside"],
        ["AP50", "0.4920", "0.4920", "+0.0000", "within"],
        ["AP75", "-", "0.3130", "-", "outside"],
        ["APs", "0.1000", "0.1000", "+0.0000", "not compared: unverified"],
    ]
    text = comparison_table(compare(metrics, row, True), row, True)
    assert "expected: AP at least 0.2890" in text


def test_the_error_counts_the_metrics_outside():
    row = find_published(ZOO)
    with pytest.raises(ExpectationError, match=r"\(and 11 more\)"):
        require_agreement(compare({}, row), row)


def test_the_error_for_an_unknown_row_lists_the_rows():
    with pytest.raises(UsageError, match="no 'x'; there are modelzoo-ascend910, modelzoo-g"):
        find_published("x")
