"""Batches in NumPy: a function of data, settings and seed; images are decoded once."""

import json
from dataclasses import replace as replaced

import numpy as np
import pytest

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.data import batches as module
from refinedet.data.batches import batches
from refinedet.data.dataset import Dataset, make_record
from refinedet.data.samples import SampleMaker, reading_order
from refinedet.errors import DataError
from refinedet.settings import InputSettings
from refinedet.spec.config import replace
from refinedet.spec.presets import preset

CONFIG = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=3,
    schedule={"steps": 7, "warmup_steps": 0},
)
COUNT = 10
"""Images of the data set ``noise``."""


def load_all(dataset, cache, first_step=0, load=batches, **changes):
    settings = InputSettings(**{"batch_size": 4, "seed": 11, **changes})
    return list(load(dataset, CONFIG, settings, cache, first_step))


# MindSpore refuses more workers than there are cores.
LOADERS = pytest.mark.parametrize(
    ("load", "workers"),
    [(batches, 3), (MindSporeCPU().batches, 2)],
    ids=["numpy", "mindspore"],
)


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


@LOADERS
def test_batches_have_the_interfaces_shapes_and_equal_the_samples(noise, tmp_path, load, workers):
    actual = load_all(noise, tmp_path / "cache", load=load)
    assert len(actual) == 7
    order = np.concatenate([s.indices for s in reading_order(COUNT, 11, 0, 28)])
    make = SampleMaker(CONFIG, InputSettings(batch_size=4, seed=11), 8)
    for step, batch in enumerate(actual):
        assert batch.images.shape == (4, 3, 64, 128)
        assert [a.dtype for a in batch] == [np.float32, np.float32, np.int32, np.float32, np.int32]
        for row in range(4):
            position = step * 4 + row
            record = noise.records[order[position]]
            encoded = np.fromfile(record.path, np.uint8)
            expected = make(encoded, record.boxes, record.labels, np.int64(position))
            for x, y in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(x[row], y)


@LOADERS
def test_same_seed_same_batches_whatever_the_workers_and_the_start(noise, tmp_path, load, workers):
    whole = load_all(noise, tmp_path / "cache", load=load)
    assert_same(load_all(noise, tmp_path / "cache", load=load, workers=workers), whole)
    assert_same(load_all(noise, tmp_path / "other", 3, load), whole[3:])
    other = load_all(noise, tmp_path / "cache", load=load, seed=12)
    assert not np.array_equal(other[0].images, whole[0].images)


def test_few_samples_are_made_ahead_of_the_reader(noise, tmp_path, monkeypatch):
    made_for = []

    class Counting(SampleMaker):
        def __call__(self, encoded, boxes, labels, position):
            made_for.append(int(position))
            return super().__call__(encoded, boxes, labels, position)

    monkeypatch.setattr(module, "SampleMaker", Counting)
    config = replace(CONFIG, schedule={"steps": 1000})
    reader = batches(noise, config, InputSettings(batch_size=4), tmp_path / "cache", 0)
    next(reader)
    reader.close()
    assert 4 <= len(made_for) <= 4 * (1 + module.AHEAD)


def test_images_are_decoded_once_for_each_state_of_the_data(noise, tmp_path, monkeypatch):
    decoded, plain = [], module.decode_image

    def decode(encoded, name):
        decoded.append(name)
        return plain(encoded, name)

    monkeypatch.setattr(module, "decode_image", decode)
    load_all(noise, tmp_path / "cache")
    assert len(decoded) == COUNT
    load_all(noise, tmp_path / "cache")
    assert len(decoded) == COUNT
    noise.records[0].boxes[0, 0] += 1
    load_all(noise, tmp_path / "cache")
    assert len(decoded) == 2 * COUNT
    (tmp_path / "cache" / module.READABLE).write_text("{")
    load_all(noise, tmp_path / "cache")
    assert len(decoded) == 3 * COUNT


def test_unreadable_images_are_left_out_with_a_count(noise, tmp_path, capsys):
    whole = noise.records[2].path.read_bytes()
    noise.records[2].path.write_bytes(whole[:100])
    fewer = Dataset(noise.name, noise.class_names, noise.records[:2] + noise.records[3:])
    actual = load_all(noise, tmp_path / "cache")
    for _ in range(2):  # from the cache, too
        assert capsys.readouterr().err == "noise: left out 1 images that cannot be read\n"
        assert_same(load_all(noise, tmp_path / "cache"), actual)
    assert_same(load_all(fewer, tmp_path / "other"), actual)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), r"\d\.png: No such file"),
        (lambda path: path.write_bytes(b"no image"), r"\d\.png: image at position \d+: "),
    ],
)
def test_an_image_that_goes_bad_is_one_line_with_its_name(noise, tmp_path, spoil, reason):
    reader = batches(noise, CONFIG, InputSettings(batch_size=4), tmp_path / "cache", 0)
    next(reader)
    for record in noise.records:
        spoil(record.path)
    with pytest.raises(DataError, match=reason):
        list(reader)


def test_nothing_to_train_on_is_one_line(noise, tmp_path):
    empty = Dataset("empty", ("a", "b"), [make_record(1, noise.records[0].path, (80, 48), [])])
    with pytest.raises(DataError, match="no image has an object"):
        load_all(empty, tmp_path / "cache")
    with pytest.raises(DataError, match="max_objects"):
        load_all(noise, tmp_path / "cache", max_objects=2)
    for record in noise.records:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match="no readable image"):
        load_all(noise, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_size_than_annotated_is_one_line(noise, tmp_path):
    wrong = [replaced(record, width=81) for record in noise.records]
    with pytest.raises(DataError, match="81x48"):
        load_all(Dataset(noise.name, noise.class_names, wrong), tmp_path / "cache")


def test_the_list_of_readable_images_is_whole_or_not_there(noise, tmp_path):
    load_all(noise, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [module.READABLE]
    assert json.loads((tmp_path / "cache" / module.READABLE).read_text())["readable"] == list(
        range(COUNT)
    )
