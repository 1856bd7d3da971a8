"""Images of results."""

import json
import sys

import cv2
import numpy as np
import pytest

from refinedet.data.images import write_image
from refinedet.errors import DataError, WriteError
from refinedet.inference.drawing import GAP, class_colour, detections_json, draw_detections, sheet
from refinedet.spec.detection import Detections
from refinedet.spec.errors import SpecError
from refinedet.training.curves import curves, read_metrics

NAMES = ("cat", "dog")


def grey(height=100, width=160):
    return np.full((height, width, 3), 128, np.uint8)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_a_box_is_drawn_where_it_is_in_its_class_colour():
    image = grey()
    drawn = draw_detections(image, boxes([40, 50, 120, 90]), np.array([2]), np.array([0.5]), NAMES)
    assert (image == 128).all()  # the argument stays as it was
    assert drawn.shape == image.shape
    colour = np.array(class_colour(2))
    for x, y in [(40, 70), (120, 70), (80, 50), (80, 90)]:
        assert (drawn[y, x] == colour).all(), (x, y)
    assert (drawn[70, 80] == 128).all()  # the inside stays visible
    assert (drawn[95:] == 128).all()
    assert (drawn[:, :35] == 128).all()


def test_drawing_twice_gives_the_same_image():
    args = (boxes([0, 0, 50, 50], [20, 20, 90, 80]), np.array([1, 2]), np.array([0.5, 0.5]), NAMES)
    assert (draw_detections(grey(), *args) == draw_detections(grey(), *args)).all()


def test_the_best_is_on_top():
    same = boxes([40, 50, 120, 90], [40, 50, 120, 90])
    for scores in ([0.9, 0.1], [0.1, 0.9]):
        drawn = draw_detections(grey(), same, np.array([1, 2]), np.array(scores), NAMES)
        assert tuple(drawn[70, 40]) == class_colour(1 + int(np.argmax(scores)))


def test_no_objects_draw_nothing():
    drawn = draw_detections(grey(), boxes(), np.zeros(0, np.int64), np.zeros(0), NAMES)
    assert (drawn == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (37, 20), (2000, 1500)])
def test_any_size_and_any_box_can_be_drawn(size):
    rows = boxes([-1e9, -5, 1e9, 1e30], [0, 0, 0, 0], [size[1], size[0], size[1] + 9, size[0] + 9])
    names = ("a name much longer than the image is wide", "Plättchen")
    drawn = draw_detections(grey(*size), rows, np.array([1, 2, 1]), None, names)
    assert drawn.shape == (*size, 3)
    assert (drawn != 128).any()


def test_lines_grow_with_the_image():
    def width_of_line(side):
        drawn = draw_detections(
            grey(side, side), boxes([side // 2, 0, side, side]), np.array([1]), None, ("",)
        )
        row = drawn[side // 2 + side // 4]
        return int((row[: side * 3 // 4] != 128).any(axis=1).sum())

    assert width_of_line(100) == 1
    assert width_of_line(1600) >= 5


def test_classes_differ_in_colour():
    colours = [class_colour(label) for label in range(1, 21)]
    assert len(set(colours)) == 20
    assert max(map(max, colours)) == 255


def test_a_image_that_was_not_read_by_opencv_order_keeps_its_colours(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    write_image(tmp_path / "red.png", red)
    assert (read(tmp_path / "red.png") == red).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, "image"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "pixels"),
        ({"boxes": boxes([9, 0, 1, 9])}, "crossed"),
        ({"labels": np.array([3])}, "labels: 3"),
        ({"labels": np.array([0])}, "labels: 0"),
        ({"labels": np.array([1, 1])}, "labels"),
        ({"scores": np.array([0.5, 0.5])}, "scores"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, words):
    arguments = {
        "image": grey(),
        "boxes": boxes([0, 0, 9, 9]),
        "labels": np.array([1]),
        "scores": np.array([0.5]),
        "class_names": NAMES,
    }
    with pytest.raises(SpecError, match=words):
        draw_detections(**(arguments | change))


def test_an_unknown_suffix_and_a_missing_folder_leave_nothing(tmp_path):
    with pytest.raises(SpecError, match=r"use \.png or \.jpg"):
        write_image(tmp_path / "x.xyz", grey())
    with pytest.raises(SpecError, match=r"use \.png or \.jpg"):
        write_image(tmp_path / "x", grey())
    with pytest.raises(WriteError, match="create the folder"):
        write_image(tmp_path / "no" / "x.png", grey())
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_shows_every_image_in_reading_order(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [np.full((20, 20, 3), colour, np.uint8) for colour in colours]
    sheet(images, 2, tmp_path / "s.png", cell=32)
    seen = read(tmp_path / "s.png")
    step = 32 + GAP
    assert seen.shape == (2 * step + GAP, 2 * step + GAP, 3)
    for (row, column), colour in zip([(0, 0), (0, 1), (1, 0)], colours, strict=True):
        place = seen[GAP + row * step :, GAP + column * step :][:32, :32]
        assert (place == colour).all()


def test_a_sheet_keeps_proportions_and_takes_no_empty_columns(tmp_path):
    sheet([grey(10, 40), grey(300, 600)], 5, tmp_path / "s.png", cell=80)
    seen = read(tmp_path / "s.png")
    assert seen.shape == (40 + 2 * GAP, 2 * 80 + 3 * GAP, 3)
    light = (seen == 128).all(axis=2)
    assert light[:, GAP : GAP + 80].sum() == 20 * 80
    assert light[:, 2 * GAP + 80 :].sum() == 40 * 80


@pytest.mark.parametrize(("images", "columns"), [([], 2), ([grey()], 0)])
def test_an_empty_sheet_is_refused(tmp_path, images, columns):
    with pytest.raises(SpecError, match="sheet"):
        sheet(images, columns, tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == []


METRICS = [
    {"step": 0, "total": 9.0, "arm_logits": 2.0, "learning_rate": 0.1},
    {"step": 1, "total": float("nan"), "arm_logits": 1.0, "learning_rate": 0.05},
    {"step": 1, "AP": 0.5, "AP50": 0.9, "VOC07": None},
]


def test_curves_from_a_file_and_from_its_lines_are_the_same(tmp_path):
    source = tmp_path / "metrics.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    curves(source, tmp_path / "a.png")
    curves(METRICS, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    changed = [METRICS[0] | {"total": 1.0}, *METRICS[1:]]
    curves(changed, tmp_path / "c.png")
    assert (read(tmp_path / "a.png") != read(tmp_path / "c.png")).any()


@pytest.mark.parametrize("metrics", [[], [{"step": 3}], [{"step": 3, "total": 0.0}]])
def test_curves_without_points_are_still_a_image(tmp_path, metrics):
    curves(metrics, tmp_path / "c.png")
    assert read(tmp_path / "c.png").std() > 0


def test_curves_leave_the_global_state_of_matplotlib_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    curves(METRICS, tmp_path / "c.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_last_line_cut_off_by_a_kill_is_not_read(tmp_path):
    source = tmp_path / "metrics.jsonl"
    source.write_text('{"step": 1, "total": 2}\n{"step": 2, "tot')
    assert read_metrics(source) == [{"step": 1, "total": 2}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"step": 1}\n{"step" 2}\n{"step": 3}\n', "line 2: not JSON"),
        (b"[1]\n", "line 1: expected an object"),
        (b'{"total": 1}\n', 'line 1: expected an object with a whole "step"'),
        (b'{"step": 1.5}\n', "line 1"),
        (b"\xff\n", "not UTF-8"),
        (None, "cannot read: No such file"),
    ],
)
def test_bad_metrics_are_one_line_and_draw_nothing(tmp_path, content, words):
    source = tmp_path / "metrics.jsonl"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        curves(source, tmp_path / "c.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c.png").exists()


def test_detections_as_json_are_plain_values_in_pixels():
    found = Detections(
        boxes([1.234, 2, 30, 40.006]), np.array([0.12345678], np.float32), np.array([2])
    )
    nothing = Detections(boxes(), np.zeros(0, np.float32), np.zeros(0, np.int64))
    entries = detections_json([("a.jpg", 160, 100, found), ("b.jpg", 5, 6, nothing)], NAMES)
    assert json.loads(json.dumps(entries)) == [
        {
            "file": "a.jpg",
            "width": 160,
            "height": 100,
            "objects": [
                {"label": 2, "class": "dog", "score": 0.123457, "box": [1.23, 2.0, 30.0, 40.01]}
            ],
        },
        {"file": "b.jpg", "width": 5, "height": 6, "objects": []},
    ]
