"""The options of the command line that choose a data set, the same for every command."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from refinedet.cli.option_groups import Command, gathered
from refinedet.data.source import DataSource
from refinedet.errors import DataError
from refinedet.support.remote import CACHE, copy_data

PANEL = "Data set"


class Layout(str, Enum):
    """How a data set lies on the disk."""

    coco = "coco"
    voc = "voc"
    text = "text"


class DataChoice(NamedTuple):
    """What was given of the options below."""

    layout: Layout | None
    root: Path | None
    annotations: Path | None
    images: Path | None
    split: str | None
    classes: str | None
    url: str | None
    cache: Path | None

    def source(self) -> DataSource:
        """The data set, copied to this machine where that is asked for.

        Raises:
            DataError: options that are missing, or exclude one another.
            RemoteError: it cannot be copied.
        """
        if self.layout is None:
            raise DataError(
                "say how the data set lies on the disk: coco, voc or text", key="--layout"
            )
        _require_fit(self.layout.value, "--", self.annotations, self.images, self.split)
        root = self.root
        if self.url is not None:
            if root is not None and (root.is_absolute() or ".." in root.parts):
                raise DataError(
                    f"{root} is outside the copy of --data-url; give a relative one", key="--root"
                )
            root = copy_data(self.url, self.cache or CACHE, typer.echo) / (root or Path())
        elif self.cache is not None:
            raise DataError("is for copies of --data-url; give that too", key="--data-cache")
        names = tuple(name.strip() for name in self.classes.split(",")) if self.classes else ()
        return DataSource(self.layout.value, root, self.annotations, self.images, self.split, names)

    def ground_truth(self) -> Path:
        """COCO's annotations alone, for ``--results``.

        Raises:
            DataError: they are missing, or there are options that nobody would read.
        """
        if self.url is not None:
            raise DataError(
                "is for --model; --results takes files of this machine", key="--data-url"
            )
        if self.annotations is None:
            raise DataError(
                "needs --annotations, the COCO JSON with the ground truth", key="--results"
            )
        if self.layout not in (None, Layout.coco):
            raise DataError(
                "--results is scored with COCO's JSON", key=f"--layout {self.layout.value}"
            )
        for name, value in self._asdict().items():
            if value is not None and name not in ("layout", "annotations"):
                option = "data-cache" if name == "cache" else name
                raise DataError("is not for --results; leave it out", key=f"--{option}")
        return self.annotations


def held_out(
    source: DataSource, annotations: Path | None, images: Path | None, split: str | None
) -> DataSource:
    """The images to evaluate a training on: of ``source``, but for what is given.

    Raises:
        DataError: options of another layout, or the annotations are missing.
    """
    _require_fit(source.layout, "--eval-", annotations, images, split)
    if source.layout != "voc" and annotations is None:  # the training's would be judged
        raise DataError(f"--layout {source.layout} needs it, to evaluate", key="--eval-annotations")
    return replace(
        source,
        annotations=annotations or source.annotations,
        images=images or source.images,
        split=split or source.split,
    )


def _require_fit(
    layout: str, prefix: str, annotations: Path | None, images: Path | None, split: str | None
) -> None:
    """Refuse options of another layout: nobody reads them."""
    of_others: dict[str, object] = {"split": split}
    if layout == "voc":
        of_others = {"annotations": annotations, "images": images}
    for name, value in of_others.items():
        if value is not None:
            raise DataError(f"is not for --layout {layout}; leave it out", key=f"{prefix}{name}")


def _option(kind: Any, name: str, text: str) -> Any:
    return Annotated[kind | None, typer.Option(name, help=text, rich_help_panel=PANEL)]


OPTIONS: dict[str, Any] = {
    "layout": _option(Layout, "--layout", "Layout of the data set."),
    "root": _option(Path, "--root", "Folder of the data set."),
    "annotations": _option(Path, "--annotations", "COCO's JSON or the text list."),
    "images": _option(Path, "--images", "Folder of the images."),
    "split": _option(
        str,
        "--split",
        "VOC: names of lists in ImageSets/Main, with commas; YEAR:NAME joins years.",
    ),
    "classes": _option(str, "--classes", "Class names with commas, in order."),
    "url": _option(
        str,
        "--data-url",
        "file://, s3:// or obs:// folder to copy first; --root and the others start in it.",
    ),
    "cache": _option(
        Path, "--data-cache", f"Folder for copies of --data-url; {CACHE} if not given."
    ),
}
"""By the field of ``DataChoice``."""


def chooses_data(command: Command) -> Command:
    """Give a command these options in place of its argument ``data``, a ``DataChoice``."""
    return gathered(command, "data", OPTIONS, DataChoice)
