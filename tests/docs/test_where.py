"""The code maps of README and CONTRIBUTING name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def table_rows(page, header):
    """Cells of the rows of the table that begins with the header."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = lines.index(header) + 2
    for line in lines[start:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def names_of_files(cell):
    """The names of the second column; code in brackets is no file."""
    return code(re.sub(r"\([^)]*\)", "", cell))


ROWS = list(table_rows("README.md", "| folder | files |"))


@pytest.mark.parametrize(("folder", "files"), ROWS, ids=[row[0] for row in ROWS])
def test_the_files_of_the_readme_exist(folder, files):
    (folder,) = code(folder)
    for name in names_of_files(files):
        path = ROOT / folder / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), path


def test_the_readme_names_every_folder_of_the_application_and_the_adapters():
    inits = [*ROOT.glob("refinedet/*/__init__.py"), *ROOT.glob("adapters/*/__init__.py")]
    folders = [init.parent for init in inits if not init.parent.is_symlink()]
    assert len(folders) > 10
    named = {code(folder)[0] for folder, _ in ROWS}
    assert {f"{folder.relative_to(ROOT).as_posix()}/" for folder in folders} <= named


QUESTIONS = list(table_rows("CONTRIBUTING.md", "| topic | file |"))


def test_thirty_questions_are_answered():
    assert len(QUESTIONS) >= 30


@pytest.mark.parametrize(("question", "files"), QUESTIONS, ids=[row[0] for row in QUESTIONS])
def test_the_files_of_contributing_exist(question, files):
    assert code(files), question
    for name in code(files):
        assert (ROOT / name).exists(), name


def test_the_layers_are_those_of_the_contract():
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\nlayers = [")[2]
    expected = re.findall(r'"([^"]+)"', contract.partition("]")[0])
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = page.partition("\n## Layers\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in picture.splitlines() if line.startswith("    ")]
    names = [re.split(r"\s{2,}|$", line)[0].replace(" | ", " : ") for line in lines]
    assert ["__main__", *names] == expected
