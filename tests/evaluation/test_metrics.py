"""Evaluation: published metrics, worked examples, laws, and bad files."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinedet.data.dataset import Dataset, Record
from refinedet.errors import DataError, WriteError
from refinedet.evaluation.box_tables import DetectionTable, ground_truth_table
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.coco_results import evaluate_coco_results, write_results
from refinedet.evaluation.metrics import Evaluator, evaluation_table
from refinedet.evaluation.voc_metrics import (
    voc07_average_precision,
    voc12_average_precision,
    voc_metrics,
    voc_overlap,
)
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError

PUBLISHED = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
"""What the COCO API prints for its own example, AP to AR large."""


def record(image_id, *objects):
    """Objects are box, label, and any of "difficult" and "crowd"."""
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    return Record(
        image_id,
        Path(f"{image_id}.png"),
        200,
        200,
        boxes,
        np.array([label for _, label, *_ in objects], np.int64),
        np.array(["difficult" in flags for _, _, *flags in objects], bool),
        np.array(["crowd" in flags for _, _, *flags in objects], bool),
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def dataset(*records, names=("cat", "dog"), category_ids=()):
    return Dataset("made up", names, records, category_ids=category_ids)


def detections(*rows):
    """Rows are box, score, label."""
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], np.int64),
    )


def evaluate(data, detected):
    """``detected``: image id to detections; images are added in its order, then the others."""
    evaluator = Evaluator(data)
    for image_id in [*detected, *(r.image_id for r in data.records if r.image_id not in detected)]:
        evaluator.add(image_id, detected.get(image_id, detections()))
    return evaluator.result()


def perfect(data):
    return {
        r.image_id: detections(*zip(r.boxes, [0.9] * len(r.boxes), r.labels, strict=True))
        for r in data.records
    }


A, B, C = [10, 10, 50, 50], [100, 20, 160, 180], [60, 60, 80, 90]


def random_case(seed, images=12, names=("a", "b", "c")):
    """GroundTruth on a grid, and detections: moved ground truth, doubles, strays, tied scores."""
    rng = np.random.default_rng(seed)
    records, detected = [], {}
    for image_id in (rng.permutation(images) * 7 + 3).tolist():
        objects, rows = [], []
        for _ in range(rng.integers(0, 6)):
            low = rng.integers(0, 120, 2)
            box = [*low, *(low + rng.integers(4, 80, 2))]
            label = int(rng.integers(1, len(names) + 1))
            flag = rng.choice(["", "", "", "difficult", "crowd"])
            objects.append((box, label, flag))
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.integers(-5, 6, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                rows.append((moved, rng.integers(1, 9) / 8, int(rng.integers(1, len(names) + 1))))
                rows.append((moved, rng.integers(1, 9) / 8, label))
        records.append(record(image_id, *objects))
        detected[image_id] = detections(*rows)
    return dataset(*records, names=names), detected


# COCO


def test_the_coco_apis_own_example_gives_its_published_metrics(shared_data):
    folder = shared_data / "coco_eval"
    evaluation = evaluate_coco_results(
        folder / "instances_val2014_fakebbox100_results.json",
        folder / "instances_val2014_100.json",
    )
    assert list(evaluation.metrics) == list(COCO_METRICS)
    assert [round(x, 3) for x in evaluation.metrics.values()] == PUBLISHED
    lines = evaluation_table(evaluation).splitlines()[1:]
    assert [float(line.split()[-1]) for line in lines] == PUBLISHED
    assert len(evaluation.class_names) == 80
    assert evaluation.class_names[0] == "person"


@pytest.mark.parametrize("seed", range(3))
def test_class_by_class_gives_what_the_coco_api_gives_at_once(seed):
    data, detected = random_case(seed)
    ground_truth = COCO()
    objects = [
        (r.image_id, int(label), box, bool(crowd))
        for r in data.records
        for box, label, crowd in zip(r.boxes.tolist(), r.labels, r.crowd, strict=True)
    ]
    ground_truth.dataset = {
        "images": [{"id": r.image_id} for r in data.records],
        "categories": [{"id": 1}, {"id": 2}, {"id": 3}],
        "annotations": [
            {
                "id": i,
                "image_id": image_id,
                "category_id": label,
                "bbox": [x, y, right - x, low - y],
                "area": (right - x) * (low - y),
                "iscrowd": int(crowd),
            }
            for i, (image_id, label, (x, y, right, low), crowd) in enumerate(objects, 1)
        ],
    }
    results = [
        {
            "image_id": image_id,
            "category_id": int(label),
            "bbox": [x, y, right - x, low - y],
            "score": float(score),
        }
        for image_id, rows in detected.items()
        for (x, y, right, low), score, label in zip(
            rows.boxes.tolist(), rows.scores, rows.labels, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
        loaded = ground_truth.loadRes(results)
        coco_eval = COCOeval(ground_truth, loaded, "bbox")
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    expected = np.where(coco_eval.stats < 0, math.nan, coco_eval.stats)
    np.testing.assert_allclose(list(evaluate(data, detected).coco.values()), expected, atol=1e-12)
    assert np.nanmin(expected) < np.nanmax(expected)


def test_perfect_detections_score_one_everywhere():
    data = dataset(record(5, (A, 1), (B, 2)), record(9), record(2, (C, 2)), category_ids=(7, 90))
    evaluation = evaluate(data, perfect(data))
    metrics = evaluation.metrics
    assert metrics.pop("AR1") == pytest.approx(1)  # each class at most once an image
    assert all(x == pytest.approx(1) for x in metrics.values()), metrics
    assert evaluation.coco_classes == pytest.approx((1, 1))
    assert evaluation.voc07_classes == evaluation.voc12_classes == (1, 1)


def test_no_detections_score_zero():
    data = dataset(record(1, (A, 1), (B, 2), (C, 1)))
    evaluation = evaluate(data, {})
    assert list(evaluation.metrics.values()) == [0] * 14


def test_a_worked_coco_example():
    """One ground truth of 10 x 10 pixels, one box of 8 x 10 in it: overlap 0.8.

    It counts at 0.50, 0.55 ... 0.80 (equality is enough): 7 of 10 overlaps.
    """
    data = dataset(record(1, ([0, 0, 10, 10], 1)), names=("cat",))
    metrics = evaluate(data, {1: detections(([0, 0, 8, 10], 0.5, 1))}).coco
    assert metrics["AP"] == pytest.approx(0.7)
    assert [metrics["AP50"], metrics["AP75"]] == pytest.approx([1, 1])
    assert [metrics["APs"], metrics["ARs"]] == pytest.approx([0.7, 0.7])
    assert math.isnan(metrics["APm"])
    assert math.isnan(metrics["ARl"])


def test_areas_are_the_data_sets_own():
    small_by_mask = record(1, (B, 1))
    small_by_mask = Record(**{**vars(small_by_mask), "areas": np.array([10.0], np.float32)})
    metrics = evaluate(dataset(small_by_mask), perfect(dataset(small_by_mask))).coco
    assert metrics["APs"] == pytest.approx(1)
    assert math.isnan(metrics["APl"])


def test_a_crowd_needs_no_detection_and_ignores_those_inside():
    data = dataset(record(1, (A, 1), (B, 1, "crowd")), names=("cat",))
    in_crowd = [110, 30, 130, 60], [120, 90, 150, 120]
    inside = [(box, 0.95, 1) for box in in_crowd]
    metrics = evaluate(data, {1: detections(*inside, (A, 0.9, 1))}).metrics
    assert metrics["AP"] == pytest.approx(1)
    same, plain = record(1, (A, 1), (B, 1)), [(A, 0.9, 1), *inside]
    assert evaluate(dataset(same, names=("cat",)), {1: detections(*plain)}).metrics["AP"] < 0.6
    stray = [(C, 0.95, 1), (A, 0.9, 1)]
    assert evaluate(data, {1: detections(*stray)}).metrics["AP"] == pytest.approx(0.5)


def test_a_class_without_ground_truth_is_left_out_of_every_mean():
    data = dataset(record(1, (A, 1)), names=("cat", "dog", "cow"))
    evaluation = evaluate(data, {1: detections((A, 0.9, 1), (B, 0.9, 2))})
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.metrics["VOC07"] == evaluation.metrics["VOC12"] == 1
    for by_class in (evaluation.coco_classes, evaluation.voc07_classes, evaluation.voc12_classes):
        assert by_class[0] == pytest.approx(1)
        assert all(map(math.isnan, by_class[1:]))


def test_a_data_set_without_objects_has_no_metrics():
    evaluation = evaluate(dataset(record(1), record(2)), {1: detections((A, 0.5, 1))})
    assert all(map(math.isnan, evaluation.metrics.values()))
    assert set(evaluation.as_dict().values()) == {None}


# Order


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_images_does_not_matter(seed):
    data, detected = random_case(seed)
    forwards = evaluate(data, detected)
    backwards = evaluate(data, dict(reversed(detected.items())))
    turned = evaluate(Dataset("turned", data.class_names, data.records[::-1]), detected)
    assert repr(forwards) == repr(backwards) == repr(turned)
    assert 0 < forwards.metrics["VOC12"] < 1


def test_equal_scores_go_by_rising_image_id_then_as_given():
    right, wrong = (A, 0.5, 1), (B, 0.5, 1)
    two = dataset(record(4, (A, 1)), record(3), names=("cat",))
    first_wrong = evaluate(two, {4: detections(right), 3: detections(wrong)}).metrics
    assert [first_wrong["AP50"], first_wrong["VOC12"]] == pytest.approx([0.5, 0.5])
    two = dataset(record(3, (A, 1)), record(4), names=("cat",))
    first_right = evaluate(two, {4: detections(wrong), 3: detections(right)}).metrics
    assert [first_right["AP50"], first_right["VOC12"]] == pytest.approx([1, 1])
    one = dataset(record(1, (A, 1)), names=("cat",))
    assert evaluate(one, {1: detections(right, wrong)}).metrics["VOC12"] == 1
    assert evaluate(one, {1: detections(wrong, right)}).metrics["VOC12"] == 0.5


# PASCAL VOC


HIT, MISS = True, False


@pytest.mark.parametrize(
    ("hits", "positives", "voc07", "voc12"),
    [
        # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1. Eleven points: 0 to 0.5 find
        # 1, 0.6 to 1 find 2/3. Area: 1/2 of 1 and 1/2 of 2/3.
        ([HIT, MISS, HIT], 2, (6 * 1 + 5 * 2 / 3) / 11, 5 / 6),
        # Best precision from rank 1 on is 2/3, at rank 3; recall ends at 2/4.
        ([MISS, HIT, HIT], 4, 6 * (2 / 3) / 11, 1 / 3),
        # 3 of 10 reach a recall of 0.3 exactly: four points, 0, 0.1, 0.2, 0.3.
        ([HIT, HIT, HIT], 10, 4 / 11, 3 / 10),
        ([HIT], 1, 1, 1),
        ([MISS], 1, 0, 0),
        ([], 3, 0, 0),
        ([MISS, MISS, MISS, HIT], 1, 1 / 4, 1 / 4),
    ],
)
def test_worked_average_precisions(hits, positives, voc07, voc12):
    hits = np.array(hits, bool)
    assert voc07_average_precision(hits, positives) == pytest.approx(voc07)
    assert voc12_average_precision(hits, positives) == pytest.approx(voc12)


def test_average_precision_without_ground_truth_is_nan():
    for hits in (np.zeros(0, bool), np.array([False])):
        assert math.isnan(voc07_average_precision(hits, 0))
        assert math.isnan(voc12_average_precision(hits, 0))


def test_the_devkits_overlap_counts_whole_pixels():
    """Pixels 0 to 9 are ten; 5 to 14 share five of them: 5 * 10 / (2 * 100 - 50) = 1/3."""
    a, b = np.array([[0.0, 0, 9, 9]]), np.array([[5.0, 0, 9, 9]])
    assert voc_overlap(a, b) == pytest.approx(1 / 3)
    assert voc_overlap(a, b, pixel=0) == pytest.approx(4 / 14)
    apart = np.array([[10.0, 0, 9, 9]])
    assert voc_overlap(a, apart) == 0


def voc(data, detected):
    metrics = evaluate(data, {1: detections(*detected)}).metrics
    return metrics["VOC12"]


def test_an_overlap_of_exactly_one_half_is_enough():
    data = dataset(record(1, ([0, 0, 9, 9], 1)), names=("cat",))
    assert voc(data, [([0, 0, 4, 9], 0.5, 1)]) == 1  # 5 x 10 of 10 x 10 pixels
    assert voc(data, [([0, 0, 3.9, 9], 0.5, 1)]) == 0


def test_a_double_is_a_false_positive():
    data = dataset(record(1, (A, 1), (B, 1)), names=("cat",))
    once = voc(data, [(A, 0.9, 1), (B, 0.7, 1)])
    twice = voc(data, [(A, 0.9, 1), (A, 0.8, 1), (B, 0.7, 1)])
    assert (once, twice) == (1, pytest.approx(5 / 6))


def test_a_detection_is_assigned_to_its_most_overlapping_ground_truth_only():
    """The second overlaps both by more than half, the left one more, which is taken."""
    left, right = [0, 0, 99, 99], [20, 0, 119, 99]
    data = dataset(record(1, (left, 1), (right, 1)), names=("cat",))
    second = [8, 0, 107, 99]
    assert voc(data, [(left, 0.9, 1), (second, 0.8, 1)]) == 0.5
    assert voc(data, [(left, 0.9, 1), ([12, 0, 111, 99], 0.8, 1)]) == 1


def test_difficult_ground_truth_and_their_detections_do_not_count():
    data = dataset(record(1, (A, 1), (B, 1, "difficult")), names=("cat",))
    assert voc(data, [(A, 0.5, 1)]) == 1
    assert voc(data, [(B, 0.9, 1), (B, 0.8, 1), (A, 0.5, 1)]) == 1
    assert voc(data, [(C, 0.9, 1), (A, 0.5, 1)]) == 0.5
    only = dataset(record(1, (B, 1, "difficult")), names=("cat",))
    assert math.isnan(voc(only, [(B, 0.9, 1)]))


def brute_force_voc(data, detected, label, points):
    """The devkit's loops, in its own words: rank, best ground truth, taken or not."""
    free, positives, ranked = {}, 0, []
    for r in sorted(data.records, key=lambda r: r.image_id):
        rows = detected[r.image_id]
        for i in range(len(rows.labels)):
            if rows.labels[i] == label:
                ranked.append((-float(rows.scores[i]), len(ranked), r, rows.boxes[i].tolist()))
        for i in range(len(r.labels)):
            if r.labels[i] == label and not (r.difficult[i] or r.crowd[i]):
                positives += 1
                free[r.image_id, i] = True
    true, false, curve = 0, 0, []
    for _, _, r, (x0, y0, x1, y1) in sorted(ranked, key=lambda row: row[:2]):
        best, which = -1.0, None
        for i in range(len(r.labels)):
            if r.labels[i] != label:
                continue
            tx0, ty0, tx1, ty1 = r.boxes[i].tolist()
            wide = min(x1, tx1) - max(x0, tx0) + 1
            tall = min(y1, ty1) - max(y0, ty0) + 1
            if wide > 0 and tall > 0:
                both = (x1 - x0 + 1) * (y1 - y0 + 1) + (tx1 - tx0 + 1) * (ty1 - ty0 + 1)
                overlap = wide * tall / (both - wide * tall)
                if overlap > best:
                    best, which = overlap, (r.image_id, i)
        if best >= 0.5:
            if which not in free:
                continue
            true, false = (true + 1, false) if free[which] else (true, false + 1)
            free[which] = False
        else:
            false += 1
        curve.append((true, true / (true + false)))
    if not positives:
        return math.nan
    if points == 11:
        tops = [
            max((p for hit, p in curve if 10 * hit >= k * positives), default=0) for k in range(11)
        ]
        return sum(tops) / 11
    area = 0.0
    for hit in range(1, positives + 1):
        area += max((p for reached, p in curve if reached >= hit), default=0) / positives
    return area


@pytest.mark.parametrize("seed", range(20))
def test_voc_metrics_are_those_of_plain_loops(seed):
    data, detected = random_case(seed, names=("a", "b"))
    evaluation = evaluate(data, detected)
    for label in (1, 2):
        for points, actual in ((11, evaluation.voc07_classes), (0, evaluation.voc12_classes)):
            expected = brute_force_voc(data, detected, label, points)
            assert actual[label - 1] == pytest.approx(expected, nan_ok=True)


def test_pixels_as_edges_are_an_option():
    data = dataset(record(1, ([0, 0, 10, 10], 1)), names=("cat",))
    one = np.array([1])
    half = DetectionTable(one, one - 1, np.array([[0.0, 0, 5, 10]]), np.array([0.5]))
    assert voc_metrics(ground_truth_table(data), half, 1, pixel=0)[1] == (1,)
    assert voc_metrics(ground_truth_table(data), half, 1, pixel=0, iou=0.51)[1] == (0,)


# The evaluator's domain


def test_every_image_is_added_once():
    evaluator = Evaluator(dataset(record(4), record(8)))
    with pytest.raises(SpecError, match="7 is not in made up"):
        evaluator.add(7, detections())
    evaluator.add(8, detections())
    with pytest.raises(SpecError, match="8 was added before"):
        evaluator.add(8, detections())
    with pytest.raises(SpecError, match=r"1 of 2 images were not added.* image id 4"):
        evaluator.result()


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="made up: no usable image"):
        Evaluator(dataset())


@pytest.mark.parametrize(
    ("detected", "words"),
    [
        (detections((A, 0.5, 3)), "labels: 3"),
        (detections((A, 0.5, 0)), "labels: 0"),
        (detections((A, math.nan, 1)), "scores: not finite"),
        (detections(([0, 0, math.inf, 1], 0.5, 1)), "boxes: not finite"),
        (detections(([9, 0, 1, 9], 0.5, 1)), "crossed"),
        (detections((A, 0.5, 1))._replace(scores=np.zeros(2, np.float32)), "scores"),
        (detections((A, 0.5, 1))._replace(labels=np.ones(2, np.int64)), "labels"),
    ],
)
def test_bad_detections_are_refused_when_added(detected, words):
    evaluator = Evaluator(dataset(record(1)))
    with pytest.raises(SpecError, match=words):
        evaluator.add(1, detected)
    assert evaluator.detections == {}


def test_nothing_is_printed(capsys):
    evaluate(*random_case(0))
    assert capsys.readouterr() == ("", "")


def test_progress_sees_every_class_and_may_print(capsys):
    def progress(classes):
        for c in classes:
            print(f"class {c + 1} of {len(classes)}")
            yield c

    evaluator = Evaluator(dataset(record(1)))
    evaluator.add(1, detections())
    evaluator.result(progress)
    assert capsys.readouterr().out == "class 1 of 2\nclass 2 of 2\n"


def test_only_copies_of_detections_are_kept():
    evaluator = Evaluator(dataset(record(1, (A, 1)), names=("cat",)))
    many = detections(*[(A, 0.9, 1)] * 1000)
    view = Detections(many.boxes[:1], many.scores[:1], many.labels[:1])
    evaluator.add(1, view)
    assert all(array.base is None for array in evaluator.detections[1])
    many.boxes[:] = 0
    assert evaluator.result().metrics["AP"] == pytest.approx(1)


# Results files


IMAGES = [{"id": 42}, {"id": 7}]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}]
TRUTH = {"id": 0, "image_id": 42, "category_id": 18, "bbox": [10, 10, 40, 40], "iscrowd": 0}
GOOD = {"image_id": 42, "category_id": 18, "bbox": [10, 10, 40, 40], "score": 0.5}


def annotations_file(folder, **change):
    content = {"images": IMAGES, "categories": CATEGORIES, "annotations": [TRUTH]} | change
    path = folder / "annotations.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def score(folder, content, **change):
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return evaluate_coco_results(path, annotations_file(folder, **change))


def test_gaps_in_category_ids_keep_classes_apart(tmp_path):
    evaluation = score(tmp_path, [GOOD])
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.class_names == ("dog", "cat")
    assert math.isnan(evaluation.coco_classes[1])
    assert score(tmp_path, [GOOD | {"category_id": 3}]).metrics["AP"] == 0
    assert score(tmp_path, [GOOD | {"image_id": 7}]).metrics["AP"] == 0


def test_an_annotation_with_id_0_is_matched_as_any_other(tmp_path):
    """COCOeval itself takes id 0 for "unmatched"."""
    assert score(tmp_path, [GOOD], annotations=[TRUTH | {"id": 0}]).metrics["AP"] == pytest.approx(
        1
    )


def test_an_empty_list_of_results_found_nothing(tmp_path):
    metrics = score(tmp_path, []).metrics
    assert metrics["AP"] == metrics["AR100"] == 0


def test_any_finite_score_ranks(tmp_path):
    """COCO only ranks by them: other tools write logits or per cent."""
    wrong = GOOD | {"bbox": [60, 60, 9, 9]}
    assert score(tmp_path, [GOOD | {"score": 7.5}, wrong]).metrics["AP"] == pytest.approx(1)
    assert score(tmp_path, [GOOD | {"score": -3}, wrong]).metrics["AP"] == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_the_largest_boxes_are_scored_without_overflow(tmp_path):
    least = [GOOD, GOOD | {"bbox": [-9e99, -9e99, 9e99, 9e99], "score": 0.4}]
    assert score(tmp_path, least).metrics["AP"] == pytest.approx(1)


def without(entry, field):
    return {k: v for k, v in entry.items() if k != field}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b'[{"image_id": 42,', "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({"annotations": []}, "not a list"),
        (None, "not a list"),
        ([GOOD, 5], r"entry\[1\]: 5 is not an object"),
        *[([GOOD, without(GOOD, f)], rf"entry\[1\]: {f} is missing") for f in GOOD],
        ([GOOD | {"image_id": 43}], "image_id 43 is not in the annotations"),
        ([GOOD | {"image_id": "42"}], 'image_id "42" is not in'),
        ([GOOD | {"image_id": [42]}], "image_id .* is not in"),
        ([GOOD | {"category_id": 1}], "category_id 1 is not in the annotations"),
        ([GOOD | {"category_id": True}], "category_id true is not in"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"bbox \[1, 2, 3\] is not x, y, width, height"),
        ([GOOD | {"bbox": "x" * 999}], r"bbox \"x{36}\.\.\. is not"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "negative side"),
        (
            [GOOD | {"bbox": [1, 2, math.nan, 4]}],
            r"bbox holds \[1.0, 2.0, NaN, 4.0\]; finite",
        ),
        ([GOOD | {"bbox": [1, 2, "3", 4]}], 'bbox holds "3"'),
        ([GOOD | {"bbox": [1, 2, 10**400, 4]}], r"bbox holds \[1.0, 2.0, Infinity, 4.0\]"),
        ([GOOD, GOOD | {"bbox": [1, 2, 1e200, 1e200]}], r"entry\[1\]: bbox .* beyond any image"),
        ([GOOD | {"bbox": [-1e308, 2, 3, 4]}], "beyond any image"),
        ([GOOD, GOOD | {"score": math.nan}], r"entry\[1\]: score holds NaN; a finite number"),
        ([GOOD | {"score": math.inf}], "score holds Infinity"),
        ([GOOD | {"score": None}], "score holds null"),
        ([GOOD | {"score": False}], "score holds false"),
    ],
)
def test_a_bad_results_file_is_one_line(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        score(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "results.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, 'no "images"'),
        ({"annotations": None}, 'no "annotations"'),
        ({"categories": []}, '"categories" is empty'),
        ({"images": {}}, '"images" is not a list'),
        ({"images": [{"id": 42}, {"id": 42}]}, r"images\[1\]: id 42 is also that of images\[0\]"),
        ({"categories": [{"name": "x"}]}, r"categories\[0\]: id is missing"),
        ({"images": [{"id": 10**30}]}, "id 1000000000000000000000000000000 is not a whole"),
        ({"categories": [{"id": 18, "name": "a\nb"}]}, r'categories\[0\]: name "a\\nb" is not a'),
        ({"categories": [{"id": 18, "name": 7}]}, "name 7 is not a name of one line"),
        ({"images": [{"id": 4.5}]}, "id 4.5 is not a whole number"),
        ({"annotations": [TRUTH | {"image_id": 1}]}, r"annotations\[0\]: image_id 1"),
        ({"annotations": [TRUTH | {"area": math.nan}]}, "area holds NaN"),
        (
            {"annotations": [TRUTH | {"bbox": [0, 0, 1e200, 1e200]}]},
            r"annotations\[0\]: bbox .* bey",
        ),
        ({"annotations": [TRUTH | {"iscrowd": 2}]}, "iscrowd is 2"),
        ({"annotations": [TRUTH | {"iscrowd": []}]}, r"iscrowd is \[\]"),
    ],
)
def test_bad_annotations_are_one_line(tmp_path, change, words):
    with pytest.raises(DataError, match=words) as caught:
        score(tmp_path, [GOOD], **change)
    assert str(caught.value).startswith(str(tmp_path / "annotations.json"))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no\.json: cannot read: No such file"):
        evaluate_coco_results(tmp_path / "r.json", tmp_path / "no.json")
    with pytest.raises(DataError, match="not a file"):
        evaluate_coco_results(tmp_path, annotations_file(tmp_path))


@pytest.mark.parametrize("seed", range(3))
def test_a_written_results_file_scores_as_the_detections_do(tmp_path, seed):
    data, detected = random_case(seed)
    rng = np.random.default_rng(seed)
    for image_id, rows in detected.items():  # numbers that need all their digits
        jitter = rng.random(rows.boxes.shape, np.float32) / 3
        detected[image_id] = rows._replace(boxes=rows.boxes + np.sort(jitter, axis=1))
    write_results(tmp_path / "results.json", (18, 3, 90), detected)
    ground_truth = [
        {
            "image_id": r.image_id,
            "category_id": (18, 3, 90)[label - 1],
            "bbox": [x, y, right - x, low - y],
            "iscrowd": int(crowd),
        }
        for r in data.records
        for (x, y, right, low), label, crowd in zip(
            r.boxes.tolist(), r.labels, r.crowd, strict=True
        )
    ]
    annotations = annotations_file(
        tmp_path,
        images=[{"id": r.image_id} for r in data.records],
        categories=[{"id": 18}, {"id": 3}, {"id": 90}],
        annotations=ground_truth,
    )
    scored = evaluate_coco_results(tmp_path / "results.json", annotations)
    assert repr(scored.coco) == repr(evaluate(data, detected).coco)


def test_results_files_hold_cocos_fields(tmp_path):
    detected = {9: detections((A, 0.5, 2)), 4: detections((B, 0.25, 1))}
    write_results(tmp_path / "r.json", (18, 3), detected)
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"image_id": 4, "category_id": 18, "bbox": [100, 20, 60, 160], "score": 0.25},
        {"image_id": 9, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.5},
    ]
    write_results(tmp_path / "r.json", (18, 3), {})
    assert json.loads((tmp_path / "r.json").read_text()) == []
    with pytest.raises(WriteError, match="create the folder"):
        write_results(tmp_path / "no" / "r.json", (18, 3), detected)


# Tables


def test_the_table_is_aligned_and_complete():
    data = dataset(record(1, (A, 1)), names=("cat", "hippopotamus"))
    evaluation = evaluate(data, perfect(data))
    table = evaluation_table(evaluation)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines] == ["metric", *COCO_METRICS, "VOC07", "VOC12"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "AP      0.50:0.95  all            100  1.000"
    assert lines[4].endswith("    -")  # no small ground truth
    assert evaluation_table(evaluation, by_class=True) == table + "\n\n" + "\n".join(
        [
            "class            AP  VOC07  VOC12",
            "cat           1.000  1.000  1.000",
            "hippopotamus      -      -      -",
        ]
    )


def test_the_dictionary_is_plain_json():
    data = dataset(record(1, (A, 1)))
    known = evaluate(data, perfect(data)).as_dict(by_class=True)
    assert json.loads(json.dumps(known, allow_nan=False)) == known
    assert known["AP"] == pytest.approx(1)
    assert known["APs"] is None
    assert known["classes"][1] == {"class": "dog", "AP": None, "VOC07": None, "VOC12": None}
