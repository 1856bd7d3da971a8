"""The demonstration, whose training may be short."""

import json


def test_a_short_demonstration_goes_all_the_way(run, tmp_path):
    folder = tmp_path / "demo"
    status, out, _ = run("demo", "--steps", 2, "--run", folder)
    assert status == 0
    assert f"run from {folder / 'detector.mindir'}, same detections" in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "total" in row] == [1, 2]
    assert "AP" in json.loads((folder / "evaluation.json").read_text())
