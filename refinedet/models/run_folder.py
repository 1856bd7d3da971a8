"""Names of the files of a run, which is a folder.

    settings.yaml     the resolved settings
    log.txt           what was printed
    metrics.jsonl     a JSON object for every step and every evaluation
    checkpoints/      the newest few, each complete
    curves.png        losses, learning rate and average precision over the steps
    detections.png    images of the evaluation set with their detections
    evaluation.json   the last evaluation; evaluation.txt shows it as a table
    cache/            the training images, stored for fast reading

The folder of an evaluation also has ``results.json`` (COCO's format), and ``unfinished.jsonl``
until it is complete. That of ``detect`` has ``detections.json``.
"""

from __future__ import annotations

SETTINGS = "settings.yaml"
LOG = "log.txt"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
CURVES = "curves.png"
DETECTIONS_IMAGE = "detections.png"
DETECTIONS_JSON = "detections.json"
EVALUATION_JSON = "evaluation.json"
EVALUATION_TABLE = "evaluation.txt"
CACHE = "cache"
RESULTS = "results.json"
UNFINISHED = "unfinished.jsonl"
