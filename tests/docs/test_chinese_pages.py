"""Every Chinese page has the headings, code, tables, numbers and links of its English page."""

import os
import re
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Pages of docs/ whose Chinese version is docs/zh/ under the same name.
TRANSLATED = (
    "ascend", "ascend310", "data", "distributed", "gpu", "modelarts", "modelzoo", "recipes",
)  # fmt: skip
PAIRS = {"README.md": "README_CN.md"} | {
    f"docs/{name}.md": f"docs/zh/{name}.md" for name in TRANSLATED
}
ENGLISH = {chinese: english for english, chinese in PAIRS.items()}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def is_code(line):
    return line.startswith("    ")


def split_fences(text):
    """The text without its fenced blocks of code, and those blocks."""
    fence = re.compile(r"^```[^\n]*\n.*?^```$", re.DOTALL | re.MULTILINE)
    return fence.sub("", text), fence.findall(text)


def lines_of_text(text):
    """Lines of neither code nor tables."""
    text, _ = split_fences(text)
    return [line for line in text.splitlines() if not is_code(line) and not line.startswith("|")]


def heading_lines(text):
    return [line for line in lines_of_text(text) if re.match(r"#+ ", line)]


def headings(page):
    """The depths of the headings, in order."""
    return [len(line.split()[0]) for line in heading_lines(read(page))]


def code_blocks(page):
    """Every block of code, to the letter."""
    text, fenced = split_fences(read(page))
    indented = groupby(text.splitlines(), is_code)
    return ["\n".join(lines) for code, lines in indented if code], fenced


def tables(page):
    """The rows of each table; of a cell the code and the numbers."""
    text, _ = split_fences(read(page))
    return [
        [
            [sorted(re.findall(r"`[^`]*`|[-\d.,]*\d", cell)) for cell in row.split("|")]
            for row in rows
        ]
        for is_table, rows in groupby(text.splitlines(), lambda line: line.startswith("|"))
        if is_table
    ]


def inline_code(page):
    """Names, options and settings in code within the text, in any order."""
    spans = re.findall(r"`([^`]+)`", "\n".join(lines_of_text(read(page))))
    return sorted(" ".join(span.split()) for span in spans)


def numbers(page):
    """The numbers of the running text, in any order."""
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(lines_of_text(read(page))))
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", plain))


def anchors(page):
    """The anchor of each heading, as code hosts make them."""
    titles = [line.lstrip("#").strip() for line in heading_lines(read(page))]
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def link_targets(page):
    """(file, anchor) of each link; the file from the project's root, or a URL."""
    text, _ = split_fences(read(page))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            yield link, ""
        else:
            file, _, anchor = link.partition("#")
            folder = (ROOT / page).parent
            path = os.path.relpath(folder / file, ROOT) if file else page
            yield path, anchor


def links(page):
    """Targets of the links; pages by their English names, headings by their positions."""
    own = {page, PAIRS.get(page), ENGLISH.get(page)}
    return sorted(
        {
            (ENGLISH.get(file, file), anchors(file).index(anchor) if anchor else -1)
            for file, anchor in link_targets(page)
            if anchor or file not in own
        }
    )


@pytest.mark.parametrize("part", [headings, code_blocks, tables, inline_code, links, numbers])
@pytest.mark.parametrize("english", PAIRS)
def test_a_chinese_page_has_what_its_english_page_has(english, part):
    assert part(PAIRS[english]) == part(english)


@pytest.mark.parametrize("part", [headings, code_blocks, tables, inline_code, links, numbers])
def test_the_readme_has_all_that_is_compared(part):
    assert part("README.md")


def test_no_chinese_page_is_left_unchecked():
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/zh").glob("**/*.md")}
    assert files == set(ENGLISH) - {"README_CN.md"}


@pytest.mark.parametrize("english", PAIRS)
def test_two_versions_link_to_each_other(english):
    assert (PAIRS[english], "") in link_targets(english)
    assert (english, "") in link_targets(PAIRS[english])


@pytest.mark.parametrize("chinese", ENGLISH)
def test_a_chinese_page_links_to_chinese_pages(chinese):
    others = {file for file, _ in link_targets(chinese)} - {ENGLISH[chinese]}
    assert others.isdisjoint(PAIRS)


@pytest.mark.parametrize(
    "page",
    [
        path.relative_to(ROOT).as_posix()
        for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    ],
)
def test_links_lead_to_files_and_headings(page):
    for file, anchor in link_targets(page):
        if "://" not in file:
            assert (ROOT / file).exists(), file
            assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        (headings, "\n## ", "\n### "),
        (code_blocks, "    refinedet eval ", "    refinedet evaluate "),
        (code_blocks, "import refinedet\n", "import refinedet as r\n"),
        (tables, "| `--target gpu` |", "| `--target cpu` |"),
        (inline_code, "`--resume`", "`--continue`"),
        (links, "(docs/measurements.md)", "(docs/conformance.md)"),
        (links, "#what-was-run-on-what", "#speed-and-memory"),
        (numbers, "0.903", "0.904"),
    ],
)
def test_a_difference_is_detected(part, before, after, tmp_path, monkeypatch):
    expected = part("README.md")
    for name in ("docs", "CHANGELOG.md", "CONTRIBUTING.md", "README_CN.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = read("README.md")
    assert before in text
    (tmp_path / "README.md").write_text(text.replace(before, after, 1), encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert part("README.md") != expected
