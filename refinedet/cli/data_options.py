"""The options that choose a data set, the same for every command."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from refinedet.cli.option_groups import Command, option_group
from refinedet.data.source import DataSource, held_out
from refinedet.errors import UsageError
from refinedet.support.remote import CACHE

PANEL = "Data set"


class Layout(str, Enum):
    """Layout of the files of a data set."""

    coco = "coco"
    voc = "voc"
    text = "text"


class DataOptions(NamedTuple):
    """The values of the options below."""

    layout: Layout | None
    root: Path | None
    annotations: Path | None
    images: Path | None
    split: str | None
    class_names: str | None
    url: str | None
    cache: Path | None

    def source(self) -> DataSource:
        """The data set that the options describe.

        Raises:
            UsageError: options that are missing or mutually exclusive.
        """
        if self.layout is None:
            raise UsageError("give the layout of the data set: coco, voc or text", key="layout")
        names = () if self.class_names is None else named_classes(self.class_names)
        source = DataSource(
            self.layout.value,
            self.root,
            self.annotations,
            self.images,
            self.split,
            names,
            self.url,
            self.cache,
        )
        source.check()
        return source

    def ground_truth(self) -> Path:
        """COCO's annotation file, to score a results file.

        Raises:
            UsageError: it is missing, or options are given that are not used with it.
        """
        if self.annotations is None:
            raise UsageError("is needed to score results: the COCO JSON", key="annotations")
        if self.layout not in (None, Layout.coco):
            raise UsageError("results are scored with COCO's JSON alone", key="layout")
        for name, value in self._asdict().items():
            if value is not None and name not in ("layout", "annotations"):
                raise UsageError("is not read with --results; leave it out", key=name)
        return self.annotations


def named_classes(text: str) -> tuple[str, ...]:
    """The names in the value of ``--classes``.

    Raises:
        UsageError: no name, as from an unset shell variable.
    """
    if not text.strip():
        raise UsageError("names no class; give names, or leave it out", key="class_names")
    return tuple(name.strip() for name in text.split(","))


class HeldOutOptions(NamedTuple):
    """Options of the evaluation set where it differs from the training set."""

    eval_annotations: Path | None
    eval_images: Path | None
    eval_split: str | None

    def source(self, training: DataSource) -> DataSource | None:
        """The evaluation set; None if no option is given. Raises the errors of ``held_out``."""
        return held_out(training, *self) if any(self) else None


def _option(kind: Any, name: str, text: str) -> Any:
    return Annotated[kind | None, typer.Option(name, help=text, rich_help_panel=PANEL)]


DATA: dict[str, Any] = {
    "layout": _option(Layout, "--layout", "Layout of the data set."),
    "root": _option(Path, "--root", "Folder of the data set."),
    "annotations": _option(Path, "--annotations", "COCO's JSON or the text list."),
    "images": _option(Path, "--images", "Folder of the images."),
    "split": _option(
        str,
        "--split",
        "VOC: lists in ImageSets/Main, separated by commas; in a VOCdevkit YEAR:NAME.",
    ),
    "class_names": _option(str, "--classes", "Class names in order, separated by commas."),
    "url": _option(
        str,
        "--data-url",
        "file://, s3:// or obs:// folder to copy first; other paths are relative to it.",
    ),
    "cache": _option(Path, "--data-cache", f"Folder for copies of --data-url; default {CACHE}."),
}
"""By the field of ``DataOptions``."""

HELD_OUT: dict[str, Any] = {
    "eval_annotations": _option(Path, "--eval-annotations", "--annotations of the evaluation set."),
    "eval_images": _option(Path, "--eval-images", "--images of the evaluation set."),
    "eval_split": _option(str, "--eval-split", "--split of the evaluation set."),
}
"""By the field of ``HeldOutOptions``."""


def with_data(command: Command) -> Command:
    """Give a command these options in place of its argument ``data``, a ``DataOptions``."""
    return option_group(command, "data", DATA, DataOptions)


def with_held_out(command: Command) -> Command:
    """Give a command these options in place of its argument ``held_out``."""
    return option_group(command, "held_out", HELD_OUT, HeldOutOptions)
