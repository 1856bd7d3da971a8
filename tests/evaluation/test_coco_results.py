"""Results files are read a chunk at a time: the same entries, and the same refusals."""

import io
import json
import tracemalloc

import numpy as np
import pytest

from refinedet.errors import DataError
from refinedet.evaluation import coco_results as results
from refinedet.evaluation.box_tables import DetectionTable
from refinedet.evaluation.coco_results import _detection_rows, _list_entries, write_results
from refinedet.spec.detection import Detections

GOOD = [
    "[]",
    " [ ] \n",
    '[{"a": 1}]',
    '[{"a": [1, 2.5e-3, -7]}, {"b": "]},{ \\" \\u00e9"},\r\n\t{"c": {"d": null}}]\n',
    '[1, 23, true, null, NaN, "x", [], {}]',
    '[{"score": 0.12345678901234567, "bbox": [1e2, 3, 4, 5]} , {"é": "ü"}]',
]
BAD = [
    "",
    "{}",
    "[",
    "[{}",
    "[{},",
    "[{},]",
    "[,{}]",
    "[{} {}]",
    "[{},,{}]",
    "[{};{}]",
    "[{}] {}",
    "[{}]]",
    '[{"a": 1]',
    '[{"a" 1}]',
    '[{"a": "\n"}]',
    "[tru]",
    "nonsense",
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 1000])
def test_chunks_of_any_size_give_the_same_entries(monkeypatch, chunk):
    monkeypatch.setattr(results, "CHUNK", chunk)
    for text in GOOD:
        if chunk < 1000 and "23" in text:
            continue  # a bare number may be cut; results hold objects
        assert repr(list(_list_entries(io.StringIO(text.lstrip())))) == repr(json.loads(text)), text
    for text in BAD:
        with pytest.raises(ValueError):
            list(_list_entries(io.StringIO(text)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_file_in_any_encoding_of_json_is_read(monkeypatch, tmp_path, chunk, encoding):
    monkeypatch.setattr(results, "CHUNK", chunk)
    entries = [
        {"image_id": i % 3, "category_id": 9, "bbox": [i, 2, 3, 4.5], "score": i / 7, "more": "é"}
        for i in range(20)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding)
    detected = _detection_rows(path, {0, 1, 2}, {9: 4})
    assert isinstance(detected, DetectionTable)
    assert detected.image_ids.tolist() == [i % 3 for i in range(20)]
    assert detected.classes.tolist() == [4] * 20
    assert detected.boxes.tolist() == [[i, 2, 3, 4.5] for i in range(20)]
    assert detected.scores.tolist() == [i / 7 for i in range(20)]


@pytest.mark.parametrize("text", BAD)
def test_the_error_for_what_is_not_a_list_names_the_reason(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results\.json: (not JSON: |empty file|the content is)"):
        list(results._results(path))


def test_a_large_file_is_written_and_read_in_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.random((200, 2), np.float32) * 300
    boxes = np.hstack([low, low + 20])
    scores, labels = rng.random(200, np.float32), rng.integers(1, 81, 200)
    detected = {i: Detections(boxes, scores, labels) for i in range(60)}
    path = tmp_path / "results.json"
    tracemalloc.start()
    write_results(path, tuple(range(1, 81)), detected)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    read = _detection_rows(path, detected, {i: i - 1 for i in range(1, 81)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 1.2e6
    assert len(read.scores) == 12_000
    assert written < 2e6
    assert peak < 12_000 * 56 * 1.3 + 6e6  # its numbers, grown by an eighth, and a chunk
