"""Every setting named on a page exists, in tables and text too; every settings file is valid."""

import dataclasses
import re
from pathlib import Path

import pytest

from refinedet.settings import Settings, resolve

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
FILES = [".py", ".onnx", ".mindir", ".air"]


def setting_names(section, prefix=""):
    """Dotted names of all settings and of their sections."""
    for field in dataclasses.fields(section):
        yield prefix + field.name
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, f"{prefix}{field.name}.")


KNOWN = {*setting_names(Settings())}


def unknown_settings(text):
    for name in re.findall(r"(?<![\w./-])((?:model|input|train)\.[a-z_][a-z_0-9.]*)", text):
        if name.rstrip(".") not in KNOWN and Path(name).suffix not in FILES:
            yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_settings_exist(page):
    assert list(unknown_settings(page.read_text(encoding="utf-8"))) == []


def test_an_unknown_setting_is_detected():
    text = "| `model.picture` | in `train.every`, not `train.py` or `input.workers`."
    assert list(unknown_settings(text)) == ["model.picture", "train.every"]


@pytest.mark.parametrize("file", sorted((ROOT / "docs").glob("**/*.yaml")), ids=lambda f: f.name)
def test_settings_files_are_valid(file):
    resolve(None, file, ())
