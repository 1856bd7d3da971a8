"""A text list: one line an image, as the model zoo's README documents it.

    train/0001.jpg 0,259,401,459,7 35,28,324,201,2

The path of the image, relative to the images' folder, then its objects, each
``x_min,y_min,x_max,y_max,class``: pixels, and the number of a class from 1 (0 is the
background). Spaces separate; a path has none. Empty lines and lines that begin with #
are not read.
"""

from __future__ import annotations

from pathlib import Path

from refinedet.data.dataset import Dataset, Location, Object, Record, make_record
from refinedet.data.files import ImageFinder, parse_float, parse_int, read_lines
from refinedet.data.findings import Findings, require_names
from refinedet.data.images import image_size
from refinedet.errors import DataError


def read_text_list(file: Path, image_folder: Path, class_names: tuple[str, ...]) -> Dataset:
    """Read a text list.

    Args:
        file: the list, UTF-8.
        image_folder: the folder that the paths are relative to.
        class_names: name of class 1, 2, ...
    Raises:
        UsageError: no class names.
        DataError: no such file or folder.
    """
    require_names(class_names)
    findings = Findings()
    finder = ImageFinder(image_folder, findings)
    records: list[Record] = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line or line.startswith("#"):
            continue
        where = Location(file, f"line {number}")
        name, *fields = line.split()
        path = finder.find(where, name)
        if path is None:
            continue
        try:
            size = image_size(path)
        except DataError as error:
            findings.add("unreadable image", Location(path), f"{error.reason}: left out")
            continue
        parsed = [
            _object(
                Location(file, f"line {number}: object {i}"),
                *(text, size, len(class_names), findings),
            )
            for i, text in enumerate(fields, start=1)
        ]
        objects = [o for o in parsed if o is not None]
        records.append(make_record(len(records) + 1, path, size, objects))
    return Dataset(f"text {file}", class_names, records, findings.all())


def _object(
    where: Location, text: str, size: tuple[int, int], classes: int, findings: Findings
) -> Object | None:
    parts = text.split(",")
    try:
        x_min, y_min, x_max, y_max = (parse_float(part) for part in parts[:-1])
        label = parse_int(parts[-1])
    except ValueError:
        reason = f"{text!r:.60} is not x_min,y_min,x_max,y_max,class; correct it"
        findings.add("malformed annotation", where, reason)
        return None
    if not 1 <= label <= classes:
        findings.add("unknown class", where, f"class {label} is outside 1..{classes}; correct it")
        return None
    box = findings.box(where, (x_min, y_min, x_max, y_max), size)
    return Object(box, label) if box else None
