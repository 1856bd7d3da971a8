"""The values of options and the names of settings on the pages are ones that the program has."""

import dataclasses
import re
from pathlib import Path

import pytest

from refinedet.backends.registry import backend_names
from refinedet.cli.backend_options import Target
from refinedet.cli.data_options import Layout
from refinedet.evaluation.protocols import PROTOCOLS
from refinedet.evaluation.published import published
from refinedet.settings import Settings, resolve
from refinedet.spec.config import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
# These name backends that another project registers.
OTHERS = ("docs/write-a-backend.md", "docs/example-backend/README.md")
PAGES = [page for page in PAGES if page.relative_to(ROOT).as_posix() not in OTHERS]


def setting_names(section=None, prefix=""):
    """Dotted names of all settings and of their sections."""
    section = section or Settings()
    for field in dataclasses.fields(section):
        yield prefix + field.name
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, f"{prefix}{field.name}.")


KNOWN = {
    "layout": {layout.value for layout in Layout},
    "target": {target.value for target in Target},
    "preset": set(PRESETS),
    "protocol": set(PROTOCOLS),
    "expect": set(published()),
    "backend": set(backend_names()),
}
SETTINGS = {*setting_names()}


def unknown_values(text):
    """Every value of an option, or name of a setting, that does not exist."""
    for option, known in KNOWN.items():
        for value in re.findall(rf"--{option}[ =]([a-z][\w+-]*)(?![\w./{{-])", text):
            if value not in known:
                yield f"--{option} {value}"
    for file in re.findall(r"--settings (docs/[\w./-]+)", text):
        if not (ROOT / file).is_file():
            yield f"--settings {file}"
    for name in re.findall(r"(?<![\w./-])((?:model|input|train)\.[a-z_][a-z_0-9.]*)", text):
        if name.rstrip(".") not in SETTINGS and not name.endswith((".py", ".onnx", ".mindir")):
            yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_values_exist(page):
    assert list(unknown_values(page.read_text(encoding="utf-8"))) == []


def test_an_unknown_value_is_reported():
    text = (
        "`--layout yolo`, `--set model.picture.mean=0`, `--settings docs/none.yaml` and `train.py`"
    )
    assert list(unknown_values(text)) == [
        "--layout yolo",
        "--settings docs/none.yaml",
        "model.picture.mean",
    ]


@pytest.mark.parametrize("file", sorted((ROOT / "docs").glob("**/*.yaml")), ids=lambda f: f.name)
def test_settings_files_are_valid(file):
    resolve(None, file, ())
