"""The Python of the pages: the page on Python runs; what other pages import exists."""

import ast
import importlib
import re
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

from refinedet import api
from refinedet.backends.reference import SpecBackend
from refinedet.data.batches import batches

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
SMALL = """
preset: refinedet_eighth_128
model: {schedule: {steps: 1, warmup_steps: 0}}
input: {batch_size: 1, workers: 1}
"""


def python_blocks(page):
    """(last heading, code) of every block of Python."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield re.findall(r"^#+ (.*)$", text[: match.start()], re.M)[-1], match[1]


BLOCKS = list(python_blocks(ROOT / "docs" / "python.md"))


class TrainingSpec(SpecBackend):
    """The specification as a backend that trains a run: it reads NumPy's batches."""

    capabilities = SpecBackend.capabilities | {"batches"}
    batches = staticmethod(batches)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that the page names: two images of noise, and small settings."""
    monkeypatch.chdir(tmp_path)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / "bccd" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, name in (("trainval", "image"), ("test", "other")):
        image = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
        for file in (f"bccd/JPEGImages/{name}.jpg", f"{name}.jpg"):
            cv2.imwrite(str(tmp_path / file), image)
        (tmp_path / f"bccd/ImageSets/Main/{split}.txt").write_text(f"{name}\n")
        (tmp_path / f"bccd/Annotations/{name}.xml").write_text(
            "<annotation><object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
            "<xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/bccd.yaml").write_text(SMALL)
    return tmp_path


def test_the_page_runs(files, monkeypatch, capsys):
    """With the specification as the backend; no framework is needed."""
    monkeypatch.setattr(api, "find_backend", lambda *_, **__: TrainingSpec())
    namespace = {}
    for heading, code in BLOCKS:
        if heading not in ("Export", "Another backend"):
            exec(code, namespace)
    ((_, readme),) = python_blocks(ROOT / "README.md")
    exec(readme, namespace)
    assert len(namespace["detector"](["image.jpg", "other.jpg"])) == 2
    assert set(namespace["evaluation"].metrics) >= {"AP", "AP50", "VOC07"}
    assert "missing.jpg" in capsys.readouterr().out


def test_the_page_exports(files, monkeypatch):
    """Of calls that need MindSpore or PyTorch, the arguments."""
    calls = []
    for name in ("load", "export"):
        monkeypatch.setattr(api, name, lambda *given, **named: calls.append((given, named)))
    for heading, code in BLOCKS:
        if heading in ("Export", "Another backend"):
            exec(code, {})
    assert calls == [
        (("runs/bccd", "bccd.mindir"), {}),
        (("bccd.mindir",), {}),
        (("runs/bccd",), {"backend": "torch-cpu"}),
    ]


@pytest.mark.parametrize(("heading", "code"), BLOCKS, ids=[heading for heading, _ in BLOCKS])
def test_an_example_has_at_most_five_lines(heading, code):
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) <= 5, heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_imports_of_this_project_exist(page):
    for _, code in python_blocks(page):
        for node in ast.walk(ast.parse("if True:\n" + textwrap.indent(textwrap.dedent(code), " "))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("refinedet."):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}: {alias.name}"
