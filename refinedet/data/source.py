"""Where a data set is: which layout, which files, and a URL to copy them from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from refinedet.data.dataset import Dataset
from refinedet.data.formats.coco import read_coco
from refinedet.data.formats.text_list import read_text_list
from refinedet.data.formats.voc import read_voc
from refinedet.data.image_check import check_images as decode_images
from refinedet.errors import UsageError
from refinedet.support.remote import CACHE, copy_data

LAYOUTS = ("coco", "voc", "text")
"""How a data set can lie on the disk: COCO's JSON, PASCAL VOC's folders, a text list."""


@dataclass(frozen=True)
class DataSource:
    """A data set on the disk, or at a URL.

    Attributes:
        layout: one of ``LAYOUTS``.
        root: VOC's folder; for the others the folder from which the next two start.
        annotations: COCO's JSON file, or the text list.
        images: folder of the images.
        split: VOC's lists in ImageSets/Main, separated by commas.
        class_names: classes to use, in the order of their labels; empty takes those of
            the data set.
        url: ``file://``, ``s3://`` or ``obs://`` folder that is copied to this machine
            first; ``root`` and the others then start in the copy.
        cache: folder for such copies.
    """

    layout: str
    root: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    split: str | None = None
    class_names: tuple[str, ...] = ()
    url: str | None = None
    cache: Path | None = None

    def check(self) -> None:
        """Check the arguments against one another; nothing is read.

        Raises:
            UsageError: an argument that the layout needs is missing, or one that it does
                not read is given; names it.
        """
        if self.layout not in LAYOUTS:
            raise UsageError(f"no {self.layout!r}; there are {', '.join(LAYOUTS)}", key="layout")
        self._refuse_unread()
        needed: tuple[str, ...] = ("root", "split") if self.layout == "voc" else ("annotations",)
        if self.layout != "voc" and self.root is None and self.url is None:
            needed += ("images",)
        for name in needed:
            if getattr(self, name) is None and not (name == "root" and self.url):
                raise UsageError(f"layout {self.layout} needs it", key=name)
        if self.url is None and self.cache is not None:
            raise UsageError("is only read with the URL of a data set; leave it out", key="cache")
        if self.url and self.root and (self.root.is_absolute() or ".." in self.root.parts):
            raise UsageError(
                f"{self.root} is outside the copied folder; give a relative path", key="root"
            )

    def require_class_names(self) -> None:
        """Raise a ``UsageError`` where the layout has no class names of its own and none are given.

        An evaluation has those of the model; a training needs them.
        """
        if self.layout == "text" and not self.class_names:
            raise UsageError("layout text needs the names of class 1, 2, ...", key="class_names")

    def _refuse_unread(self) -> None:
        for name in ("annotations", "images") if self.layout == "voc" else ("split",):
            if getattr(self, name) is not None:
                raise UsageError(f"is not read with layout {self.layout}; leave it out", key=name)

    def fetched(self, report: Callable[[str], None] = print) -> DataSource:
        """The same data set on this machine: copied from ``url``, where one is given.

        Args:
            report: called with one line about what was copied.
        Raises:
            RemoteError, OSError: it cannot be copied.
        """
        if self.url is None:
            return self
        copy = copy_data(self.url, self.cache or CACHE, report)
        return replace(self, root=copy / (self.root or Path()), url=None, cache=None)


def held_out(
    source: DataSource, annotations: Path | None, images: Path | None, split: str | None
) -> DataSource:
    """The images to evaluate a training on: those of ``source`` but for what is given.

    Raises:
        UsageError: an argument that the layout does not read, or no annotations; the key
            is the argument's name after ``eval_``.
    """
    try:
        replace(source, annotations=annotations, images=images, split=split)._refuse_unread()
    except UsageError as error:
        raise UsageError(error.reason, key=f"eval_{error.key}") from None
    if source.layout != "voc" and annotations is None:  # those of the training would be used
        raise UsageError(f"layout {source.layout} needs it, to evaluate", key="eval_annotations")
    return replace(
        source,
        annotations=annotations or source.annotations,
        images=images or source.images,
        split=split or source.split,
    )


def read_dataset(source: DataSource, *, check_images: bool = False) -> Dataset:
    """Read a data set; all that is wrong with it is in its findings.

    Args:
        source: on this machine: ``DataSource.fetched``.
        check_images: decode every image too; takes about a millisecond each.
    Raises:
        UsageError: as ``DataSource.check``.
        DataError: there is nothing to read.
    """
    source.check()
    base, names = source.root or Path(), source.class_names or None
    if source.layout == "voc":
        dataset = read_voc(base, source.split or "", names)
    else:
        annotations = base / (source.annotations or Path())
        images = base / (source.images or Path())
        if source.layout == "coco":
            dataset = read_coco(annotations, images, names)
        else:
            source.require_class_names()
            dataset = read_text_list(annotations, images, source.class_names)
    return decode_images(dataset) if check_images else dataset
