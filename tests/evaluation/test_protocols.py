"""Protocols: which images count, which detections are made, and the errors of the command line."""

import contextlib
import dataclasses
import io
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from refinedet.backends.interface import Backend
from refinedet.cli.app import main
from refinedet.data.formats.coco import read_coco
from refinedet.errors import DataError, UsageError
from refinedet.evaluation import published
from refinedet.evaluation.coco_metrics import COCO_METRICS
from refinedet.evaluation.coco_results import evaluate_coco_results
from refinedet.evaluation.metrics import Evaluator
from refinedet.evaluation.protocols import PROTOCOLS, counted_images, find_protocol, with_protocol
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import resolve
from refinedet.spec.config import DetectionConfig
from refinedet.spec.detection import Detections
from refinedet.spec.fusion import FusionConfig, View
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "cow"}]
"""With gaps, as COCO's."""
SIDE = 320


@dataclasses.dataclass
class Layout:
    """A data set in COCO's layout on the disk, and results for it."""

    annotations: object
    results: object
    images: object
    crowded: set
    empty: set


def random_box(rng, lowest=8, highest=150):
    low = rng.integers(0, SIDE - highest, 2)
    return [*map(int, low), *map(int, rng.integers(lowest, highest, 2))]


def write_layout(folder, seed=0, count=24):
    """Images by ids with gaps: every 6th without a box, every 5th with a crowd."""
    rng = np.random.default_rng(seed)
    ids = sorted(rng.choice(10_000, count, replace=False).tolist())
    annotations, results = [], []
    crowded, empty = set(ids[4::5]), set(ids[5::6]) - set(ids[4::5])
    for image_id in ids:
        kinds = [0] * (0 if image_id in empty else rng.integers(1, 6))
        kinds += [1] * (image_id in crowded)
        for crowd in kinds:
            category = CATEGORIES[rng.integers(3)]["id"]
            box = random_box(rng)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * 0.7,  # of the mask
                    "iscrowd": crowd,
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.integers(-6, 7, 4)
                wrong = rng.random() < 0.2
                results.append((image_id, 90 if wrong else category, moved.tolist()))
        results += [
            (image_id, CATEGORIES[rng.integers(3)]["id"], random_box(rng))
            for _ in range(rng.integers(0, 5))
        ]
    (folder / "images").mkdir()
    images = []
    for number, image_id in enumerate(ids):  # its grey level is its number
        images.append({"id": image_id, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        grey = np.full((SIDE, SIDE, 3), number, np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), grey)
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(document))
    scores = rng.permutation(len(results)) / len(results)  # no ties: their order is free
    entries = [
        {
            "image_id": i,
            "category_id": c,
            "bbox": [*b[:2], *np.maximum(b[2:], 1).tolist()],
            "score": s,
        }
        for (i, c, b), s in zip(results, scores.tolist(), strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(entries))
    return Layout(
        folder / "annotations.json", folder / "results.json", folder / "images", crowded, empty
    )


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["refinedet", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def second_opinion(layout, ids=None):
    """COCO's metrics by hotcoco, whose code is not the COCO API's."""
    import hotcoco

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = hotcoco.COCO(str(layout.annotations))
        coco_eval = hotcoco.COCOeval(
            ground_truth, ground_truth.load_res(str(layout.results)), "bbox"
        )
        if ids is not None:
            coco_eval.params.img_ids = sorted(ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return np.where(np.asarray(coco_eval.stats) < 0, np.nan, coco_eval.stats)


# COCO's metrics by a second evaluator


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [None, "modelzoo", "paper"])
def test_an_independent_evaluator_gives_the_same_twelve(tmp_path, seed, name):
    layout = write_layout(tmp_path, seed)
    ids = None
    if name == "modelzoo":
        document = json.loads(layout.annotations.read_text())
        ids = {i["id"] for i in document["images"]} - layout.crowded - layout.empty
    expected = second_opinion(layout, ids)
    protocol = name and find_protocol(name)
    actual = evaluate_coco_results(layout.results, layout.annotations, protocol=protocol).coco
    np.testing.assert_allclose(list(actual.values()), expected, atol=1e-9)
    assert list(actual) == list(COCO_METRICS)
    assert 0.05 < actual["AP"] < 0.95  # neither trivially bad nor trivially good


@pytest.mark.parametrize("seed", range(4))
def test_detections_of_images_score_as_their_results_file(tmp_path, seed):
    """The way of a model: read by ``read_coco``, chosen, added one by one."""
    layout = write_layout(tmp_path, seed)
    protocol = find_protocol("modelzoo")
    data = counted_images(protocol, read_coco(layout.annotations, layout.images))
    labels = {category["id"]: label for label, category in enumerate(CATEGORIES, 1)}
    rows = {record.image_id: [] for record in data.records}
    for entry in json.loads(layout.results.read_text()):
        if entry["image_id"] in rows:
            rows[entry["image_id"]].append(entry)
    evaluator = Evaluator(data)
    for image_id, entries in rows.items():
        boxes = np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        evaluator.add(
            image_id,
            Detections(
                boxes,
                np.array([e["score"] for e in entries], np.float64),
                np.array([labels[e["category_id"]] for e in entries], np.int64),
            ),
        )
    scored = evaluate_coco_results(layout.results, layout.annotations, protocol=protocol)
    actual, expected = evaluator.result().coco, scored.coco
    assert list(actual.values()) == pytest.approx(list(expected.values()), abs=1e-6, nan_ok=True)


# Images


def test_the_model_zoo_leaves_out_crowds_and_empty_images(layout):
    data = read_coco(layout.annotations, layout.images)
    assert layout.crowded
    assert layout.empty
    all_ids = {record.image_id for record in data.records}
    for name, expected in (
        ("modelzoo", all_ids - layout.crowded - layout.empty),
        ("paper", all_ids),
        ("caffe-coco", all_ids),
    ):
        chosen = counted_images(find_protocol(name), data)
        assert {record.image_id for record in chosen.records} == expected
        assert chosen.class_names == data.class_names


def test_a_protocol_that_leaves_no_image_is_an_error(layout):
    protocol = find_protocol("modelzoo")
    data = read_coco(layout.annotations, layout.images)
    crowded = [r for r in data.records if r.image_id in layout.crowded]
    with pytest.raises(DataError, match=r"no image with .* crowds, as protocol modelzoo"):
        counted_images(protocol, dataclasses.replace(data, records=crowded))
    document = json.loads(layout.annotations.read_text())
    layout.annotations.write_text(json.dumps(document | {"annotations": []}))
    with pytest.raises(DataError, match=r"annotations\.json: no image with boxes and"):
        evaluate_coco_results(layout.results, layout.annotations, protocol=protocol)


# Detection settings


def test_the_settings_are_those_of_the_systems():
    table = {name: dict(protocol.detection) for name, protocol in PROTOCOLS.items()}
    expected = {field.name for field in dataclasses.fields(DetectionConfig)}
    assert all(set(settings) == expected for settings in table.values())
    thresholds = {name: (s["score"], s["nms_iou"], s["pixel"]) for name, s in table.items()}
    assert thresholds == {
        "paper": (0.01, 0.45, 0),
        "paper+": (0.01, 0.45, 0),
        "modelzoo": (0.1, 0.6, 1),
        "caffe-coco": (0.01, 0.45, 0),
        "caffe-coco+": (0.01, 0.45, 0),
    }
    names = ("top_before_nms", "top_before_nms_per_class", "top_per_class", "top")
    caps = {name: tuple(settings[n] for n in names) for name, settings in table.items()}
    assert caps == {
        "paper": (400, None, None, 200),
        "paper+": (400, None, None, 200),
        "modelzoo": (None, None, 100, None),
        "caffe-coco": (None, 1000, None, 500),
        "caffe-coco+": (None, 1000, None, 500),
    }


VIEWS = {
    320: {
        (320, 320): (None, None),
        (192, 320): (None, None),
        (192, 192): (32, None),
        (384, 384): (None, 160),
        (448, 448): (None, 128),
        (512, 512): (None, 96),
        (576, 576): (None, 64),
        (704, 704): (None, 32),
    },
    512: {
        (512, 512): (None, None),
        (384, 512): (None, None),
        (256, 256): (None, None),
        (384, 384): (None, None),
        (768, 768): (None, 192),
        (896, 896): (None, 128),
    },
}
"""Of the authors' VOC test: height and width of the input, for a wide image, and which sides
of boxes count: the longer above, the shorter below."""
MORE = {
    320: {(640, 640): (None, 48)},
    512: {(640, 640): (None, 224), (1024, 1024): (None, 96), (1152, 1152): (None, 64)},
}
"""Also of their COCO test."""


@pytest.mark.parametrize("side", [320, 512])
def test_the_views_are_those_of_the_authors_test(side):
    config = preset(f"refinedet_vgg16_{side}")
    for name, expected, rule in (
        ("paper+", VIEWS[side], "vote"),
        ("caffe-coco+", VIEWS[side] | MORE[side], "soft_vote"),
    ):
        fusion = find_protocol(name).fusion(config)
        for mirrored in (False, True):
            views = [view for view in fusion.views if view.mirrored == mirrored]
            assert len(views) == len(expected)
            assert {
                view.input_size(config.image_size, (480, 640)): (
                    view.longest_above,
                    view.shortest_below,
                )
                for view in views
            } == expected
        assert (fusion.rule, fusion.iou, fusion.score, fusion.pixel) == (rule, 0.45, 0.01, 1)
    assert View(1, 0.6) in find_protocol("paper+").fusions[320].views
    single = find_protocol("caffe-coco").fusion(config)
    assert single == FusionConfig((View(),), "soft_nms", 0.3, 0.01, 1)
    assert find_protocol("paper").fusion(config) is None
    assert find_protocol("modelzoo").fusion(config) is None


def test_a_detector_of_another_size_takes_the_views_of_the_nearest():
    protocol = find_protocol("paper+")
    for size, side in (((64, 64), 320), ((192, 384), 320), ((448, 64), 512), ((960, 960), 512)):
        config = dataclasses.replace(preset("refinedet_eighth_128"), image_size=size)
        assert protocol.fusion(config) is protocol.fusions[side]


@pytest.mark.parametrize(
    ("protocol", "name"), [("paper", "refinedet_vgg16_320"), ("modelzoo", "modelzoo_vgg16_320")]
)
def test_presets_detect_by_their_own_protocol(protocol, name):
    assert PROTOCOLS[protocol].detection == dataclasses.asdict(preset(name).detection)


def test_a_network_under_a_protocol_differs_in_its_detections_alone():
    config = preset("refinedet_eighth_128")
    network = SimpleNamespace(config=config, scored_boxes=lambda x: ("scored", x), heads=len)
    changed = with_protocol(find_protocol("caffe-coco"), network)
    assert changed.config.detection.top == 500
    assert dataclasses.replace(changed.config, detection=config.detection) == config
    assert changed.scored_boxes(3) == ("scored", 3)
    assert changed.heads([1, 2]) == 2
    assert network.config is config


def test_a_setting_that_the_specification_lacks_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Old:
        score: float = 0.5
        top_before_nms: int | None = None
        top_before_nms_per_class: int | None = None
        nms_iou: float = 0.45
        top_per_class: int | None = None
        top: int | None = None
        clip: bool = True
        clip_first: bool = False

    @dataclasses.dataclass(frozen=True)
    class Config:
        detection: Old = dataclasses.field(default_factory=Old)

    network = SimpleNamespace(config=Config())
    assert with_protocol(find_protocol("paper"), network).config.detection.top == 200
    with pytest.raises(UsageError, match=r"modelzoo needs detection\.pixel=1\.0, which"):
        with_protocol(find_protocol("modelzoo"), network)


# The program


class Oracle(Backend):
    """A backend that reads an image's number from its grey level, and knows what is there."""

    name = "oracle"
    capabilities = frozenset({"network"})
    known = ()

    def missing(self):
        return None

    def network(self, config, parameters):
        def scored_boxes(images):
            grey = images[:, 0, 0, 0] * config.image.std[0] + config.image.mean[0]
            numbers = np.rint(grey).astype(int)
            boxes, scores = zip(*(self.known[n] for n in numbers), strict=True)
            return np.stack(boxes), np.stack(scores)

        return SimpleNamespace(config=config, scored_boxes=scored_boxes)


@pytest.fixture
def oracle(layout, tmp_path, monkeypatch):
    """Options of ``eval`` for a model that finds the results file's entries, and these.

    The scores are from 0 to 0.25: the model zoo's threshold leaves many out.
    """
    settings = resolve("refinedet_eighth_128", None, (), tuple(c["name"] for c in CATEGORIES))
    path = tmp_path / "weights.safetensors"
    write_checkpoint(path, Checkpoint(settings, initial_parameters(settings.model, 0), None, 0))
    document = json.loads(layout.annotations.read_text())
    labels = {category["id"]: label for label, category in enumerate(CATEGORIES, 1)}
    rows, known = {image["id"]: [] for image in document["images"]}, []
    for e in json.loads(layout.results.read_text()):
        x, y, w, h = e["bbox"]
        corners = np.clip([x, y, x + w, y + h], -4, SIDE + 4) / SIDE  # some beyond the image
        row = corners.astype(np.float32), np.float32(e["score"] / 4), labels[e["category_id"]]
        rows[e["image_id"]].append(row)
    for entries in rows.values():
        boxes, scores = np.zeros((40, 4), np.float32), np.zeros((40, 4), np.float32)
        for row, (corners, score, label) in enumerate(entries):
            boxes[row], scores[row, label] = corners, score
        known.append((boxes, scores))
    monkeypatch.setattr(Oracle, "known", known)
    monkeypatch.setitem(sys.modules, "oracle", SimpleNamespace(Oracle=Oracle))
    options = ("--model", path, "--backend", "oracle:Oracle", "--layout", "coco")
    return (*options, "--annotations", layout.annotations, "--images", layout.images), rows


def zoo_detections(rows, score=0.1, iou=0.6, cap=100):
    """The model zoo's loops (src/eval_utils.py): pixels of the image, sides plus 1."""
    detected = []
    for label in range(1, 4):
        kept = []
        mine = [(s, c.astype(np.float64).clip(0, 1) * SIDE) for c, s, k in rows if k == label]
        for s, box in sorted((r for r in mine if r[0] > score), key=lambda r: -r[0]):
            overlaps = []
            for other in kept:
                w, h = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) + 1
                both = np.prod(box[2:] - box[:2] + 1) + np.prod(other[2:] - other[:2] + 1)
                shared = max(w, 0) * max(h, 0)
                overlaps.append(shared / (both - shared))
            if len(kept) < cap and all(x <= iou for x in overlaps):
                kept.append(box)
                detected.append((label, s, box))
    return detected


def test_a_model_under_the_model_zoos_protocol_is_the_zoos(run, layout, oracle, tmp_path):
    """Detections by the zoo's own loops, scored by the second evaluator."""
    options, rows = oracle
    entries = [
        {
            "image_id": image_id,
            "category_id": CATEGORIES[label - 1]["id"],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for image_id in rows
        for label, score, box in zoo_detections(rows[image_id])
    ]
    layout.results.write_text(json.dumps(entries))
    expected = second_opinion(layout, rows.keys() - layout.crowded - layout.empty)
    status, _, err = run(*options, "--protocol", "modelzoo", "--output", tmp_path / "out")
    assert status == 0, err
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    np.testing.assert_allclose([metrics[f] for f in COCO_METRICS], expected, atol=1e-6)
    status, out, err = run(
        *("--results", tmp_path / "out" / "results.json", "--protocol", "modelzoo"),
        *("--annotations", layout.annotations),
    )
    assert [float(line.split()[-1]) for line in out.splitlines()[1:13]] == pytest.approx(
        expected.tolist(), abs=0.0006
    )


WRONG = {
    "crowds and empty images kept": {"images": "all"},
    "score above 0.05": {"detection": PROTOCOLS["modelzoo"].detection | {"score": 0.05}},
    "one detection a class": {"detection": PROTOCOLS["modelzoo"].detection | {"top_per_class": 1}},
    "suppression at 0.1": {"detection": PROTOCOLS["modelzoo"].detection | {"nms_iou": 0.1}},
}


def publish(monkeypatch, metrics):
    """Pretend that these were published as the model zoo's."""
    row = dataclasses.replace(
        published.find_published("modelzoo-gpu"),
        metrics={name: metrics[name] for name in COCO_METRICS},
        retrained_at_least=metrics["AP"] - 0.005,
    )
    monkeypatch.setattr(published, "published", lambda: {"modelzoo-gpu": row})


def test_expect_is_met_under_the_right_protocol_alone(run, oracle, tmp_path, monkeypatch):
    options, _ = oracle
    output = tmp_path / "out"
    run(*options, "--protocol", "modelzoo", "--output", output)
    publish(monkeypatch, json.loads((output / "evaluation.json").read_text()))
    expect = (*options, "--expect", "modelzoo-gpu")
    status, out, err = run(*expect, "--protocol", "modelzoo")
    assert (status, err) == (0, "")
    assert out.count(" within") == 12 + 1
    status, out, err = run(*expect)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "--expect: modelzoo-gpu was measured by the protocol modelzoo; give --protocol" in err
    right = PROTOCOLS["modelzoo"]
    for what, change in WRONG.items():
        monkeypatch.setitem(PROTOCOLS, "modelzoo", dataclasses.replace(right, **change))
        status, _, err = run(*expect, "--protocol", "modelzoo")
        assert status == 1, what
        assert err.startswith("refinedet: error: modelzoo-gpu: "), what


def test_expect_works_with_results_alone(run, layout, monkeypatch):
    alone = ("--results", layout.results, "--annotations", layout.annotations)
    protocol = find_protocol("modelzoo")
    metrics = evaluate_coco_results(layout.results, layout.annotations, protocol=protocol).coco
    publish(monkeypatch, metrics)
    expect = (*alone, "--expect", "modelzoo-gpu")
    assert run(*expect, "--protocol", "modelzoo")[0] == 0
    publish(monkeypatch, {**metrics, "AP": metrics["AP"] + 0.002})
    status, _, err = run(*expect, "--protocol", "modelzoo")
    assert status == 1
    assert "modelzoo-gpu: AP" in err
    publish(monkeypatch, {**metrics, "AR1": 0.0})
    assert run(*expect, "--protocol", "modelzoo")[0] == 1
    status, out, _ = run(*expect, "--protocol", "modelzoo", "--retrained")
    assert status == 0
    assert "expected: AP at least" in out
    publish(monkeypatch, {**metrics, "AP": metrics["AP"] + 0.006})
    assert run(*expect, "--protocol", "modelzoo", "--retrained")[0] == 1


def test_what_is_wrong_with_the_options_is_one_line(run, layout):
    alone = ("--results", layout.results, "--annotations", layout.annotations)
    for options, message in (
        (("--protocol", "zoo"), "--protocol: no 'zoo'; there are paper, paper+, modelzoo, caffe"),
        (("--expect", "zoo"), "--expect: no 'zoo'; there are modelzoo-ascend910"),
        (("--retrained",), "--retrained: needs --expect"),
        (("--resume",), "--resume: is not read with --results"),
        (("--resume", "--output", "x"), "--output: is not read with --results"),
        (
            ("--expect", "modelzoo-gpu", "--protocol", "paper"),
            "was measured by the protocol modelzoo",
        ),
        (
            ("--expect", "paper-voc07-vgg16-320", "--protocol", "paper"),
            "has VOC07, and --results gives COCO's metrics alone",
        ),
    ):
        status, out, err = run(*alone, *options)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert message in err
