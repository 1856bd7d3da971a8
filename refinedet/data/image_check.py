"""The decoding of every image of a data set, before it is evaluated on or reported."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from refinedet.data.dataset import Dataset, Location
from refinedet.data.findings import Findings, size_disagrees
from refinedet.data.images import read_image
from refinedet.errors import DataError


def check_images(dataset: Dataset) -> Dataset:
    """The data set without the images that cannot be decoded, with findings for them.

    Images of another size than annotated stay, with a finding. Shows a progress bar.
    """
    findings = Findings()
    records = []
    for record in tqdm(dataset.records, "images", disable=None, delay=2):
        where = Location(record.path)
        try:
            height, width = read_image(record.path).shape[:2]
        except DataError as error:
            findings.add("unreadable image", where, f"{error.reason}: left out")
            continue
        annotated = record.width, record.height
        if annotated != (width, height):
            findings.add("size disagrees", where, size_disagrees(annotated, (width, height)))
        records.append(record)
    return replace(dataset, records=records, findings=(*dataset.findings, *findings.all()))
