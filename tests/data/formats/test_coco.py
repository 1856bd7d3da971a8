"""COCO: areas at the edge of what a record can hold."""

import json

import cv2
import numpy as np
import pytest

from refinedet.data.formats.coco import MAX_AREA, read_coco


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
def test_an_area_is_kept_as_the_file_says(read, area):
    (record,) = read(area).records
    assert record.areas.tolist() == [area]
