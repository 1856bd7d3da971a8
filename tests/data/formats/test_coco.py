"""COCO: areas at the edge of what a record can hold, and one reader for training and scoring."""

import json

import cv2
import numpy as np
import pytest

from refinedet.data.formats.coco import MAX_AREA, read_coco
from refinedet.errors import DataError
from refinedet.evaluation.coco_results import evaluate_coco_results


@pytest.fixture
def read(tmp_path):
    """Reads a data set of one image and one object, with this area."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.full((40, 60, 3), 90, np.uint8))

    def read_area(area):
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": area}
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "annotations": [row],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "ground_truth.json").write_text(json.dumps(document))
        return read_coco(tmp_path / "ground_truth.json", tmp_path / "images")

    return read_area


@pytest.mark.parametrize(
    "area", [-1, MAX_AREA, 1e39, 10**400, float("inf"), float("nan"), "9", None]
)
def test_an_area_that_no_object_has_is_a_finding(read, area):
    findings = read(area).findings
    assert [(f.level, f.kind) for f in findings] == [("refuse", "malformed annotation")]
    assert "area" in str(findings[0])


@pytest.mark.parametrize("area", [0, 7.5, 12])
def test_an_area_is_kept_as_it_is_in_the_file(read, area):
    (record,) = read(area).records
    assert record.areas.tolist() == [area]


@pytest.mark.parametrize(
    ("table", "change", "kind", "reason"),
    [
        ("images", {"id": "1"}, "malformed annotation", 'id "1" is not a whole number of 64 bits'),
        ("images", {"id": 2}, "duplicate id", "id 2 is also that of images[0]"),
        ("categories", {"name": " "}, "malformed annotation", 'name " " is not a name of one'),
        ("categories", {"name": "dog"}, "duplicate id", 'a second category is called "dog"'),
        ("annotations", {"id": 2}, "duplicate id", "id 2 is also that of annotations[0]"),
        ("annotations", {"image_id": 5}, "unknown image", "image_id 5 is not in images"),
        ("annotations", {"category_id": 5}, "unknown class", "category_id 5 is not in categories"),
        ("annotations", {"bbox": [1, 2, 3]}, "malformed annotation", "bbox [1, 2, 3] is not x, y"),
        ("annotations", {"iscrowd": 2}, "malformed annotation", "iscrowd is 2; 0 or 1 is expected"),
        ("annotations", {"area": -1}, "malformed annotation", "area holds -1; a number of square"),
    ],
)
def test_a_fault_has_one_reason_in_training_and_in_scoring(tmp_path, table, change, kind, reason):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.full((40, 60, 3), 90, np.uint8))
    row = {"image_id": 2, "category_id": 2, "bbox": [1, 2, 3, 4]}
    document = {
        "images": [
            {"id": 2, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 3, "file_name": "b.png", "width": 60, "height": 40},
        ],
        "annotations": [{"id": 2, **row}, {"id": 3, **row}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    document[table][1].update(change)
    path = tmp_path / "ground_truth.json"
    path.write_text(json.dumps(document))
    (finding,) = read_coco(path, tmp_path / "images").findings
    assert (finding.kind, finding.where) == (kind, (path, f"{table}[1]"))
    assert finding.reason.startswith(reason)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        evaluate_coco_results(tmp_path / "results.json", path)
    assert (caught.value.path, caught.value.key) == finding.where
    assert caught.value.reason.startswith(reason)
