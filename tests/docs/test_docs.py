"""Every command in the README and on the pages exists, with the options it is given."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from refinedet.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


def commands(text):
    """Each ``refinedet ...`` of the blocks of code, and of code within the text, as words."""
    text = text.replace("\\\n", " ")
    blocks = [line for line in text.splitlines() if line.startswith("    ")]
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += [line for block in fenced for line in block.splitlines()]
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)]
    for code in [*blocks, *inline]:
        if match := re.match(r"\s*(?:\$ )?(?:\S*/)?refinedet ([a-z].*)", code):
            yield shlex.split(match[1], comments=True)


def wrong(words):
    """What is wrong with a command line, or None: its names alone are looked at."""
    command = get_command(app)
    while hasattr(command, "commands"):  # a group
        if not words or words[0].startswith(("-", "[")) or words[0].isupper():
            return None  # the text speaks of the group
        name, *words = words
        if (found := command.get_command(None, name)) is None:
            return f"no command {name}"
        command = found
    if "--" in words:  # what launch starts
        at = words.index("--")
        if said := wrong(words[at + 1 :]):
            return said
        words = words[:at]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", word.partition("=")[0]):
            if option not in known:
                return f"{command.name} has no {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page):
    said = [(words, wrong(words)) for words in commands(page.read_text(encoding="utf-8"))]
    assert [pair for pair in said if pair[1]] == []


def test_a_wrong_command_is_seen():
    text = (
        "x\n\n    refinedet train --run a \\\n        --nonsense\n\nsays `refinedet teach --run`\n"
    )
    assert [wrong(words) for words in commands(text)] == [
        "train has no --nonsense",
        "no command teach",
    ]
