"""The report of ``refinedet data check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from refinedet.data.dataset import Dataset, Finding
from refinedet.spec.types import Array
from refinedet.support.text import one_line

MEANING = {
    "refuse": "training and evaluation will not start",
    "skip": "left out or clipped",
}
"""What the level of a finding means."""


def dataset_report(dataset: Dataset, examples: int = 5) -> str:
    """Counts, sizes, classes and findings of a data set, as lines of text.

    Args:
        examples: findings shown of each kind.
    """
    records = dataset.records
    counts = np.array([len(r.labels) for r in records], np.int64)
    lines = [f"{dataset.name}: {_count(len(records), 'image')}, {_count(counts.sum(), 'object')}"]
    crowds = sum(int(r.crowd.sum()) for r in records)
    difficult = sum(int(r.difficult.sum()) for r in records)
    if crowds:
        lines.append(f"  {_count(crowds, 'crowd')}: not trained on")
    if difficult:
        lines.append(f"  {difficult:,} difficult: ignored by VOC evaluation")
    if empty := int((counts == 0).sum()):
        lines.append(f"  {_count(empty, 'image')} without objects: evaluated, not trained on")
    if len(records):
        lines += ["", *_ranges(dataset, counts)]
    lines += ["", *_classes(dataset)]
    for level, meaning in MEANING.items():
        findings = [f for f in dataset.findings if f.level == level]
        if findings:
            lines += ["", f"{level}: {_count(len(findings), 'finding')}; {meaning}"]
            lines += _by_kind(findings, examples)
    if not dataset.findings:
        lines += ["", "No problems found."]
    return "\n".join(lines)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _ranges(dataset: Dataset, counts: Array) -> list[str]:
    boxes = np.concatenate([r.boxes for r in dataset.records])
    rows = [
        ("image width", np.array([r.width for r in dataset.records])),
        ("image height", np.array([r.height for r in dataset.records])),
        ("objects per image", counts),
        ("object width", boxes[:, 2] - boxes[:, 0]),
        ("object height", boxes[:, 3] - boxes[:, 1]),
    ]
    lines = [f"{'':<18}{'minimum':>9}{'median':>9}{'maximum':>9}"]
    for name, values in rows:
        if values.size:
            columns = (values.min(), np.median(values), values.max())
            lines.append(f"{name:<18}" + "".join(f"{float(v):>9.5g}" for v in columns))
    return lines


def _classes(dataset: Dataset) -> list[str]:
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in dataset.records:
        labels = record.labels.tolist()
        objects.update(labels)
        images.update(set(labels))
    names = [one_line(name) for name in dataset.class_names]
    width = max([len("class"), *map(len, names)])
    lines = [f"{'class':<{width}}{'objects':>10}{'images':>10}"]
    for label, name in enumerate(names, start=1):
        lines.append(f"{name:<{width}}{objects[label]:>10,}{images[label]:>10,}")
    return lines


def _by_kind(findings: list[Finding], examples: int) -> list[str]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    lines = []
    for kind, group in groups.items():
        lines.append(f"  {kind}: {len(group):,}")
        lines += [f"    {finding}" for finding in group[:examples]]
        if len(group) > examples:
            lines.append(f"    and {len(group) - examples:,} more")
    return lines
