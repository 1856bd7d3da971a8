"""Where a data set is, in words that a command line or a file can say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refinedet.data.dataset import Dataset
from refinedet.data.formats.coco import read_coco
from refinedet.data.formats.text_list import read_text_list
from refinedet.data.formats.voc import read_voc
from refinedet.data.image_check import check_images as decode_images
from refinedet.errors import DataError


@dataclass(frozen=True)
class DataSource:
    """A data set on the disk.

    Attributes:
        layout: ``coco``, ``voc`` or ``text``.
        root: VOC's folder; for the others the folder from which the next two start.
        annotations: COCO's JSON file, or the text list.
        images: folder of the images.
        split: VOC's lists.
        class_names: of the classes expected, in the order of their labels; empty takes
            those of the data set.
    """

    layout: str
    root: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    split: str | None = None
    class_names: tuple[str, ...] = ()


def read_dataset(source: DataSource, *, check_images: bool = False) -> Dataset:
    """Read a data set; all that is wrong with it is in its findings.

    Args:
        check_images: decode every image too; takes about a millisecond each.
    Raises:
        DataError: an option is missing, or there is nothing to read.
    """
    names = source.class_names or None
    if source.layout == "voc":
        root = _given(source, "root")
        if source.split is None:
            raise DataError(
                "--layout voc needs the names of lists in ImageSets/Main", key="--split"
            )
        dataset = read_voc(root, source.split, names)
    else:
        base = source.root or Path()
        annotations = base / _given(source, "annotations")
        images = base / (source.images or (Path() if source.root else _given(source, "images")))
        if source.layout == "coco":
            dataset = read_coco(annotations, images, names)
        elif names is None:
            raise DataError("--layout text needs the names of class 1, 2, ...", key="--classes")
        else:
            dataset = read_text_list(annotations, images, names)
    return decode_images(dataset) if check_images else dataset


def _given(source: DataSource, name: str) -> Path:
    value: Path | None = getattr(source, name)
    if value is None:
        raise DataError(f"--layout {source.layout} needs it", key=f"--{name}")
    return value
