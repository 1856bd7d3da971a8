"""Batches through MindRecord: a function of data, settings and seed; the cache is whole or new."""

import json

import numpy as np
import pytest

from refinedet.adapters.mindspore.backend import MindSporeCPU
from refinedet.data.batches import batches as batches_in_numpy
from refinedet.data.dataset import Dataset, make_record
from refinedet.data.samples import reading_order
from refinedet.errors import DataError
from refinedet.settings import InputSettings
from refinedet.spec.config import replace
from refinedet.spec.presets import preset

COUNT = 10
CONFIG = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=3,
    schedule={"steps": 7, "warmup_steps": 0},
)
SETTINGS = InputSettings(batch_size=4, seed=11)
COUNT = 10
"""Images of the data set ``noise``."""


def batches(dataset, cache, first_step=0, **changes):
    settings = InputSettings(**{**vars(SETTINGS), **changes})
    return list(MindSporeCPU().batches(dataset, CONFIG, settings, cache, first_step))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_batches_are_those_of_any_other_backend(noise, tmp_path):
    """The plain loader's, from a set with an image that no loader can read."""
    noise.records[2].path.write_bytes(b"no image")
    for first_step in (0, 5):
        mine = batches(noise, tmp_path / "cache", first_step)
        plain = batches_in_numpy(noise, CONFIG, SETTINGS, tmp_path / "cache", first_step)
        assert_same(mine, list(plain))


def test_an_epoch_shows_every_image_once():
    slices = list(reading_order(10, 0, 0, 30))
    assert [sorted(s.indices) for s in slices] == [list(range(10))] * 3
    assert [s.positions[0] for s in slices] == [0, 10, 20]
    assert not np.array_equal(slices[0].indices, slices[1].indices)
    middle = reading_order(10, 0, 4, 17)
    whole = np.concatenate([s.indices for s in slices])
    np.testing.assert_array_equal(np.concatenate([s.indices for s in middle]), whole[4:17])


def test_cache_is_kept_and_rebuilt_when_its_source_changes(noise, tmp_path):
    from refinedet.adapters.mindspore.pipeline import build_cache

    cache = tmp_path / "cache"
    file, count, _ = build_cache(noise, cache)
    written = file.stat().st_mtime_ns
    assert count == COUNT
    assert build_cache(noise, cache)[0].stat().st_mtime_ns == written
    fewer = Dataset(noise.name, noise.class_names, noise.records[:4])
    assert build_cache(fewer, cache)[1] == 4
    noise.records[0].boxes[0, 0] += 1
    assert build_cache(noise, cache)[1] == COUNT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "images"]


def test_cache_leaves_out_unreadable_images_with_a_count(noise, tmp_path):
    from refinedet.adapters.mindspore.pipeline import build_cache

    whole = noise.records[2].path.read_bytes()
    noise.records[2].path.write_bytes(whole[:100])
    assert build_cache(noise, tmp_path / "cache")[1:] == (COUNT - 1, 1)


def test_a_failed_cache_leaves_the_old_one(noise, tmp_path, monkeypatch):
    from refinedet.adapters.mindspore import pipeline

    cache = tmp_path / "cache"
    pipeline.build_cache(noise, cache)
    before = json.loads((cache / "cache.json").read_text())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.FileWriter, "write_raw_data", full)
    fewer = Dataset(noise.name, noise.class_names, noise.records[:4])
    with pytest.raises(DataError, match="No space left"):
        pipeline.build_cache(fewer, cache)
    assert json.loads((cache / "cache.json").read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "images"]


def test_nothing_to_train_on_is_one_line(noise, tmp_path):
    empty = Dataset("empty", ("a", "b"), [make_record(1, noise.records[0].path, (80, 48), [])])
    with pytest.raises(DataError, match="no image has an object"):
        batches(empty, tmp_path / "cache")
    with pytest.raises(DataError, match="max_objects"):
        batches(noise, tmp_path / "cache", max_objects=2)
