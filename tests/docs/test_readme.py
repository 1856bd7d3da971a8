"""The Chinese README says what the English one does: its headings, commands, tables, links."""

import re
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README_CN.md"


def headings(text):
    """Their depths, in order."""
    return [len(line.split()[0]) for line in text.splitlines() if re.match(r"#+ ", line)]


def commands(text):
    """Every block of code, as it is typed and as it answers."""
    blocks = groupby(text.splitlines(), lambda line: line.startswith("    "))
    return ["\n".join(lines) for code, lines in blocks if code]


def tables(text):
    """Of each table the rows; of a cell what does not depend on the language."""
    found = groupby(text.splitlines(), lambda line: line.startswith("|"))
    return [
        [
            [sorted(re.findall(r"`[^`]*`|[-\d.,]*\d", cell)) for cell in row.split("|")]
            for row in rows
        ]
        for table, rows in found
        if table
    ]


def spans(text):
    """Names, options and metrics in code, however often and in whatever order."""
    found = re.findall(r"`([^`]+)`", "\n".join(lines_of_text(text)))
    return sorted(" ".join(span.split()) for span in found)


def links(text):
    """Where the links lead; the two READMEs name each other."""
    found = set(re.findall(r"\]\(([^)]+)\)", text))
    return sorted(found - {ENGLISH.name, CHINESE.name})


def numbers(text):
    """Every metric of the running text, in whatever order."""
    plain = "\n".join(lines_of_text(text))
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`]*`|\]\([^)]*\)", "", plain)))


def lines_of_text(text):
    """Neither code nor tables."""
    return [line for line in text.splitlines() if not line.startswith(("    ", "|"))]


@pytest.mark.parametrize("part", [headings, commands, tables, spans, links, numbers])
def test_both_languages_say_the_same(part):
    english = part(ENGLISH.read_text(encoding="utf-8"))
    assert english, "the README has none: this test reads it wrongly"
    assert part(CHINESE.read_text(encoding="utf-8")) == english


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE])
def test_links_lead_to_files(readme):
    text = readme.read_text(encoding="utf-8")
    inside = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(inside) > 10
    for link in inside:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists(), link
        if anchor:
            known = re.findall(r"^#+ (.*)", (ROOT / file).read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in known]
