"""Every command in the README and on the pages exists, with its options, settings and files."""

import re
import shlex
from configparser import RawConfigParser
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from refinedet.cli.app import app
from refinedet.errors import RefineDetError
from refinedet.settings import resolve

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


def code_of(text):
    """The lines of the blocks of code, and code within the text."""
    text = text.replace("\\\n", " ")
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text):
        yield " ".join(span.split())


def commands(text):
    """Each ``refinedet ...`` as words."""
    for code in code_of(text):
        if match := re.match(r"(?:\$ )?(?:\S*/)?refinedet ([a-z].*)", code):
            yield shlex.split(match[1], comments=True)


def wrong(words):
    """What is wrong with a command line, or None."""
    command = get_command(app)
    while hasattr(command, "commands"):  # a group
        if not words or words[0].startswith(("-", "[")) or words[0].isupper():
            return None  # the text speaks of the group
        name, *words = words
        group = command
        if (command := group.get_command(None, name)) is None:
            return f"no command {name}"
    if "--" in words:  # what launch starts
        at = words.index("--")
        if problem := wrong(words[at + 1 :]):
            return problem
        words = words[:at]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", word.partition("=")[0]):
            if option not in known:
                return f"{command.name} has no {option}"
    return wrong_settings(words)


def wrong_settings(words):
    """Why the settings that a command line gives are refused, or None."""
    pairs = list(pairwise(words))
    given = {option: value for option, value in pairs if not value.isupper()}
    changes = tuple(value for option, value in pairs if option == "--set" and "VALUE" not in value)
    file = given.get("--settings", "")
    try:
        resolve(given.get("--preset"), ROOT / file if file.startswith("docs/") else None, changes)
    except RefineDetError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page):
    problems = [(words, wrong(words)) for words in commands(page.read_text(encoding="utf-8"))]
    assert [pair for pair in problems if pair[1]] == []


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("train --run a \\\n        --nonsense", "train has no --nonsense"),
        ("teach --run", "no command teach"),
        ("train --set modle.name=a", "unknown key 'modle.name'"),
        ("train --settings docs/bccd.yaml --preset none", "no 'none'"),
        ("launch --ranks 2 -- train --nonsense", "train has no --nonsense"),
    ],
)
@pytest.mark.parametrize("form", ["x\n\n    refinedet {}\n", "x `refinedet {}`\n"])
def test_a_wrong_command_is_detected(form, command, problem):
    (words,) = commands(form.format(command.replace("\\\n", " ")))
    assert problem in wrong(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_environments_extras_and_test_files_exist(page):
    """Of the commands ``tox``, ``pip`` and ``pytest``."""
    tox = RawConfigParser()
    tox.read(ROOT / "tox.ini")
    extras = re.search(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[",
        (ROOT / "pyproject.toml").read_text(),
        re.S,
    )[1]
    for code in code_of(page.read_text(encoding="utf-8")):
        for name in re.findall(r"\btox -e ([\w-]+)", code):
            assert f"testenv:{name}" in tox, code
        for names in re.findall(r"\.\[([\w,]+)\]", code):
            for name in names.split(","):
                assert re.search(rf"^{name} = \[", extras, re.M), code
        for path in re.findall(r"\b(?:tests|docs|adapters|refinedet)/[\w./-]+", code):
            assert (ROOT / path).exists(), code
