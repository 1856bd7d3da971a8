"""Several looks at an image: what only one of them shows is found, in the right pixels."""

import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refinedet.backends.interface import Backend
from refinedet.backends.reference import SpecBackend, SpecNetwork
from refinedet.data.augment import resize_only
from refinedet.errors import BackendError
from refinedet.inference.multiscale import MultiScalePredictor
from refinedet.inference.predictor import Predictor
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.open import open_model
from refinedet.settings import Settings, resolve, to_yaml
from refinedet.spec.config import replace
from refinedet.spec.detection import detections
from refinedet.spec.fusion import FusionConfig, View, fuse
from refinedet.spec.images import normalise
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

HEIGHT, WIDTH = 64, 128
CONFIG = replace(preset("refinedet_eighth_128"), image_size=(HEIGHT, WIDTH), num_classes=2)


class Seer:
    """Finds the white rectangle of an image, if it is at least ``least`` input pixels high
    and lies in the left half."""

    def __init__(self, config, least=0, half=1.0):
        self.config, self.least, self.half = config, least, half
        self.seen = 0

    def scored_boxes(self, images):
        self.seen += len(images)
        mean = np.reshape(self.config.image.mean, (3, 1, 1))
        boxes, scores = np.zeros((len(images), 1, 4), "f4"), np.zeros((len(images), 1, 2), "f4")
        for image, box, score in zip(images, boxes, scores, strict=True):
            assert image.shape == (3, *self.config.image_size)
            rows, columns = np.nonzero((image + mean).mean(axis=0) > 127)
            if len(rows):
                box[0] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                high = box[0, 3] - box[0, 1]
                box[0] /= np.tile(image.shape[:0:-1], 2)
                score[0, 1] = 0.75 * (high >= self.least and box[0, 2] <= self.half)
        return boxes, scores


def black(height, width, *boxes):
    """A black image with white rectangles: corners in pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    for left, low, right, high in boxes:
        image[low:high, left:right] = 255
    return image


def looking(network, *views, batch_size=8, **fusion):
    """A predictor by these views, and the sizes for which it made a network."""
    made = []

    def remade(config):
        made.append(config.image_size)
        assert replace(config, image_size=network.config.image_size) == network.config
        return Seer(config, network.least, network.half)

    config = FusionConfig(views, **fusion)
    return MultiScalePredictor(network, config, remade, batch_size), made


def boxes(predictor, *images):
    return [found.boxes.tolist() for found in predictor.predict(images)]


# What one view alone shows


def test_what_only_the_mirrored_view_shows_is_found():
    network = Seer(CONFIG, half=0.5)
    image = black(32, 256, (200, 8, 240, 24))  # on the right, and not of the input's shape
    assert boxes(Predictor(network), image) == [[]]
    predictor, made = looking(network, View(), View(mirrored=True))
    assert boxes(predictor, image) == [[[200, 8, 240, 24]]]
    assert boxes(predictor, image[:, ::-1]) == [[[16, 8, 56, 24]]]
    assert made == []  # the network itself does both


def test_what_only_the_larger_input_shows_is_found():
    network = Seer(CONFIG, least=20)
    image = black(32, 256, (200, 8, 240, 16))  # 16 rows of the input, 32 of the larger one
    assert boxes(Predictor(network), image) == [[]]
    predictor, made = looking(network, View(), View(2, 2))
    assert boxes(predictor, image) == [[[200, 8, 240, 16]]]
    assert made == [(128, 256)]


def test_a_view_counts_for_its_sizes_alone():
    network = Seer(CONFIG, least=20)
    image = black(32, 256, (200, 8, 240, 16))  # with a pixel more, 41 x 9
    for limit, count in ((9, 0), (9.5, 1)):
        predictor, _ = looking(network, View(2, 2, shortest_below=limit))
        assert len(boxes(predictor, image)[0]) == count
    for limit, count in ((41, 0), (40.5, 1)):
        predictor, _ = looking(network, View(2, 2, longest_above=limit))
        assert len(boxes(predictor, image)[0]) == count


def test_high_and_wide_images_of_a_batch_keep_their_order():
    square = replace(CONFIG, image_size=(128, 128))
    predictor, made = looking(Seer(square), View(1, 0.5), batch_size=3)
    images = [
        black(32, 128, (16, 8, 48, 24)),
        black(128, 32, (8, 16, 24, 48)),
        black(64, 256, (128, 8, 256, 24)),
        black(32, 32),
        black(256, 64, (0, 0, 64, 256)),
    ]
    assert boxes(predictor, *images) == [
        [[16, 8, 48, 24]],
        [[8, 16, 24, 48]],
        [[128, 8, 256, 24]],
        [],
        [[0, 0, 64, 256]],
    ]
    assert sorted(made) == [(64, 128), (128, 64)]
    assert boxes(predictor) == []


def test_images_are_read_a_batch_at_a_time():
    predictor, _ = looking(Seer(CONFIG), View(), View(mirrored=True), batch_size=2)
    taken = []

    def read():
        for i in range(5):
            taken.append(i)
            yield black(64, 128)

    found = predictor.predict(read())
    next(found)
    assert taken == [0, 1]
    assert len(list(found)) == 4


# The same as the specification


@pytest.fixture(scope="module")
def small():
    """A real network of random parameters that finds much, and images for it."""
    config = replace(
        preset("refinedet_eighth_128"),
        image_size=(64, 64),
        num_classes=3,
        network={"width": 1 / 64, "batch_norm": False},
        detection={"score": 0.3, "top": 30},
    )
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (48, 80, 3), np.uint8),
        rng.integers(0, 256, (9, 7, 3), np.uint8),
    ]
    return SpecNetwork(config, initial_parameters(config, 1)), images


def test_the_views_of_a_real_network_are_fused_as_in_the_contract(small):
    network, images = small
    views = (View(), View(mirrored=True), View(2, 1, longest_above=20), View(2, 2, mirrored=True))
    fusion = FusionConfig(views, "soft_vote")
    actual = MultiScalePredictor(
        network, fusion, lambda config: SpecNetwork(config, network.tensors), 2
    ).predict(images)
    for image, mine in zip(images, actual, strict=True):
        height, width = image.shape[:2]
        found = []
        for view in views:
            config = replace(network.config, image_size=view.input_size((64, 64), (height, width)))
            seen = np.ascontiguousarray(image[:, ::-1]) if view.mirrored else image
            batch = normalise(resize_only(seen, config.image_size), config.image)[None]
            heads = SpecNetwork(config, network.tensors).heads(batch)
            found += detections(heads, config)
        want = fuse(found, fusion, (height, width))
        assert len(want.labels) > len(found[0].labels) > 5
        np.testing.assert_allclose(
            mine.boxes, want.boxes * [width, height, width, height], atol=1e-4
        )
        np.testing.assert_allclose(mine.scores, want.scores, atol=1e-6)
        assert_array_equal(mine.labels, want.labels)


def test_one_plain_view_is_the_plain_predictor(small):
    network, images = small
    config = replace(network.config, detection={"clip": False})  # clipped boxes overlap more
    network = SpecNetwork(config, network.tensors)
    fusion = FusionConfig(iou=0.4501, pixel=0.0)  # just above that of suppression
    actual = MultiScalePredictor(network, fusion, pytest.fail, 2).predict(images)
    for mine, want in zip(actual, Predictor(network, 2).predict(images), strict=True):
        assert len(want.labels) > 5
        for a, b in zip(mine, want, strict=True):
            assert_array_equal(a, b)


# The program


class Seers(Backend):
    """A backend of ``Seer``s that find what is at least 20 rows of the input high."""

    name = "seers"
    capabilities = frozenset({"network", "load"})
    asked = ()

    def missing(self):
        return None

    def network(self, config, parameters):
        self.asked.append((config.image_size, sum(float(x.sum()) for x in parameters.values())))
        return Seer(config, 20)

    def load(self, file):
        return Seer(file.settings.model, 20)


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Options of ``eval`` on three images, whose objects are 12 rows of the input high."""
    settings = resolve("refinedet_eighth_128", None, ["model.image_size=[64, 128]"], ("thing",))
    path = tmp_path / "weights.safetensors"
    write_checkpoint(path, Checkpoint(settings, initial_parameters(settings.model, 0), None, 0))
    lines = []
    for i in range(3):
        box = (100 + i, 8, 150 + i, 20)
        cv2.imwrite(str(tmp_path / f"{i}.png"), black(64, 256, box))
        lines.append(" ".join([f"{i}.png", ",".join(map(str, (*box, 1)))]))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    monkeypatch.setattr(Seers, "asked", [])
    monkeypatch.setitem(sys.modules, "seers", SimpleNamespace(Seers=Seers))
    data = ("--layout", "text", "--annotations", tmp_path / "list.txt", "--images", tmp_path)
    return "eval", "--backend", "seers:Seers", "--model", path, *data, "--classes", "thing"


def average_precision(folder):
    return json.loads((folder / "evaluation.json").read_text())["AP"]


@pytest.mark.parametrize("plus", ["paper+", "caffe-coco+"])
def test_a_protocol_with_views_finds_more(run, evaluation, tmp_path, plus):
    plain, out = tmp_path / "plain", tmp_path / "out"
    status, _, err = run(*evaluation, "--protocol", plus[:-1], "--output", plain)
    assert (status, err) == (0, "")
    assert len(Seers.asked) == 1
    assert average_precision(plain) == 0
    assert json.loads((plain / "results.json").read_text()) == []
    status, _, err = run(*evaluation, "--protocol", plus, "--output", out)
    assert (status, err) == (0, "")
    assert average_precision(out) == pytest.approx(1)
    entries = json.loads((out / "results.json").read_text())
    best = {e["image_id"]: e["bbox"] for e in reversed(entries)}
    for i, image_id in enumerate(sorted(best)):  # not all inputs are multiples of the image
        assert best[image_id] == pytest.approx([100 + i, 8, 50, 12], abs=1)
    # Every size once, all with the parameters of the checkpoint.
    sizes = [size for size, _ in Seers.asked[1:]]
    assert len(set(sizes)) == len(sizes) > 2
    assert len({numbers for _, numbers in Seers.asked}) == 1


def test_an_evaluation_goes_on_under_its_own_protocol_alone(run, evaluation, tmp_path, monkeypatch):
    done = []
    real = Seer.scored_boxes

    def interrupted(self, images):
        done.append(self.config.image_size)
        if len(done) > 40:
            raise KeyboardInterrupt
        return real(self, images)

    out = ("--batch-size", 1, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Seer, "scored_boxes", interrupted)
        assert run(*evaluation, *out, "--protocol", "paper+")[0] == 130
    unfinished = tmp_path / "out" / "unfinished.jsonl"
    assert unfinished.read_text().count("\n") == 1 + 2  # 16 looks at each image
    status, _, err = run(*evaluation, *out, "--protocol", "paper", "--resume")
    assert (status, err.count("\n")) == (1, 1)
    assert "unfinished.jsonl: was begun with another settings; remove the file" in err
    done.clear()
    monkeypatch.setattr(Seer, "scored_boxes", interrupted)
    assert run(*evaluation, *out, "--protocol", "paper+", "--resume")[0] == 0
    assert len(done) == 16
    assert average_precision(tmp_path / "out") == pytest.approx(1)
    assert not unfinished.exists()


def test_an_exported_detector_has_one_size(run, evaluation, tmp_path):
    exported = tmp_path / "detector.bin"
    exported.write_bytes(b"")
    (tmp_path / "detector.bin.yaml").write_text(
        to_yaml(Settings(model=CONFIG, class_names=("thing",)))
    )
    options = [exported if str(o).endswith(".safetensors") else o for o in evaluation]
    out = tmp_path / "out"
    status, shown, err = run(*options, "--protocol", "paper+", "--output", out)
    assert (status, shown) == (1, "")
    assert err == (
        f"refinedet: error: {exported}: an exported detector, which takes only 64x128 pixels; "
        "for other sizes give the run or checkpoint that it was exported from\n"
    )
    assert list(out.glob("*")) == []
    # One look by the network itself is no other size.
    status, _, err = run(*options, "--protocol", "caffe-coco", "--output", out)
    assert (status, err) == (0, "")


def test_a_model_is_remade_with_its_own_parameters(tmp_path, small):
    network, _ = small
    settings = Settings(model=network.config, class_names=("a", "b"))
    path = tmp_path / "weights.safetensors"
    write_checkpoint(path, Checkpoint(settings, network.tensors, None, 0))
    model = open_model(SpecBackend(), path)
    other = model.rebuild(replace(network.config, image_size=(64, 128)))
    assert other.config.image_size == (64, 128)
    for name, tensor in network.tensors.items():
        assert_array_equal(other.tensors[name], tensor)


def test_a_view_that_cannot_be_made_is_refused_before_any_image():
    def refused(config):
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        MultiScalePredictor(Seer(CONFIG), FusionConfig((View(), View(2, 2))), refused)
