"""VOC: numbers that Python reads and no image has."""

import cv2
import numpy as np
import pytest

from refinedet.data.formats.voc import read_voc

XML = (
    "<annotation><size><width>{width}</width><height>40</height></size><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
    "</annotation>"
)


@pytest.fixture
def read(tmp_path):
    """Reads a data set of one image, 60x40, whose annotation gives this width."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/all.txt").write_text("a\n")
    cv2.imwrite(str(tmp_path / "JPEGImages/a.jpg"), np.full((40, 60, 3), 90, np.uint8))

    def read_width(width):
        (tmp_path / "Annotations/a.xml").write_text(XML.format(width=width))
        return read_voc(tmp_path, "all")

    return read_width


@pytest.mark.parametrize("width", ["inf", "-inf", "nan", "1e999"])
def test_a_size_that_is_not_finite_is_a_finding(read, width):
    findings = read(width).findings
    assert [(f.level, f.kind) for f in findings] == [("refuse", "malformed annotation")]
    assert "not finite" in str(findings[0])


def test_a_size_that_is_no_number_is_named(read):
    assert "a.xml: size/width '6_0' is not a number; correct it" in str(read("6_0").findings[0])


@pytest.mark.parametrize(
    ("width", "kinds"), [("60", []), ("0", []), (" ", []), ("61", ["size disagrees"])]
)
def test_a_size_that_is_given_must_be_the_image_s(read, width, kinds):
    assert [f.kind for f in read(width).findings] == kinds
