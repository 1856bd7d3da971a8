"""The report: the level reached, its text and page, and its documented data."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from refinedet.conformance.registry import CHECKS, LEVELS
from refinedet.conformance.report import Report, as_data, as_text, reached
from refinedet.conformance.report_html import as_html
from refinedet.conformance.reported import NOT_EVALUATED, ReportedOutcome
from refinedet.conformance.runner import (
    FAILED,
    LIMITED,
    NOT_IMPLEMENTED,
    PASSED,
    Failure,
    Outcome,
    select,
)
from refinedet.evaluation.published import Comparison

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/conformance.md"
FAILURE = Failure(
    "box_iou differs at (0, 1)", "AAA", "EEE", 3e-4, 2e-6, "(1, 2)", "replay('x', (1, 2))"
)


def passing(backend="spec", levels=LEVELS):
    """Every check of these levels, passed."""
    return [
        Outcome(backend, c.name, c.level, c.law, PASSED, 0.25, 0.5, 200, 1) for c in select(levels)
    ]


def changed(outcomes, level, **fields):
    """The first check of a level, changed."""
    at = next(i for i, outcome in enumerate(outcomes) if outcome.level == level)
    return [*outcomes[:at], replace(outcomes[at], **fields), *outcomes[at + 1 :]]


EVALUATED = ReportedOutcome(
    PASSED, "", (Comparison("AP", 0.29, 0.2887, "within"),), "metric & <value>", 0.5
)


@pytest.fixture
def mixed():
    """Two backends; all states."""
    second = passing("my:<Backend>")
    second = changed(second, "network", state=FAILED, worst=150.0, failure=FAILURE)
    second = changed(second, "training", state=NOT_IMPLEMENTED, reason="trainer", worst=0.0)
    limited = {"state": LIMITED, "reason": "ties & <more>", "failure": FAILURE}
    second = changed(second, "detections", **limited)
    return Report("quick", 7, (*passing(), *second), {"spec": EVALUATED})


def test_all_passed_reaches_the_highest_level():
    assert reached(passing(), EVALUATED) == ("reported mAP", "")


def test_without_a_passed_evaluation_the_highest_property_level_is_reached():
    assert reached(passing()) == ("detections", "reported mAP: not run")
    failed = replace(EVALUATED, state=FAILED)
    assert reached(passing(), failed) == ("detections", "reported mAP: failed")


def test_an_evaluation_alone_reaches_nothing():
    assert reached(passing()[1:], EVALUATED) == (None, "operations: 1 not run")


def test_a_failed_evaluation_fails_the_run():
    outcomes = tuple(passing())
    assert not Report("quick", 0, outcomes, {"spec": NOT_EVALUATED}).failed()
    assert Report("quick", 0, outcomes, {"spec": replace(EVALUATED, state=FAILED)}).failed()


@pytest.mark.parametrize("state", [FAILED, NOT_IMPLEMENTED, LIMITED])
def test_a_check_that_did_not_pass_withholds_its_level_and_all_above(state):
    outcomes = changed(passing(), "network", state=state)
    assert reached(outcomes) == ("operations", f"network: 1 {state}")
    assert reached(changed(passing(), "operations", state=state))[0] is None


def test_a_level_that_was_not_run_is_not_reached():
    count = sum(c.level == "operations" for c in CHECKS.values())
    assert reached(passing(levels=["network"])) == (None, f"operations: {count} not run")
    assert reached(passing()[1:]) == (None, "operations: 1 not run")


def test_a_level_without_checks_is_not_reached(monkeypatch):
    only = {n: c for n, c in CHECKS.items() if c.level == "operations"}
    monkeypatch.setattr("refinedet.conformance.report.CHECKS", only)
    assert reached(passing(levels=["operations"])) == ("operations", "network: has no checks")


def paths(value, path=""):
    """The fields of JSON, as the documentation names them."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from paths(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for part in value:
            yield from paths(part, f"{path}[]")
    else:
        yield path


def test_the_data_are_as_documented(mixed):
    data = json.loads(json.dumps(as_data(mixed), allow_nan=False))
    text = DOCUMENT.read_text().split("## JSON")[1]
    documented = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert set(paths(data)) == set(documented)
    assert data["schema"] in text
    assert [row["backend"] for row in data["backends"]] == ["spec", "my:<Backend>"]
    assert data["backends"][0]["reached"] == "reported mAP"
    assert data["backends"][1]["reached"] == "operations"
    for backend in data["backends"]:
        assert sum(row["checks"] for row in backend["levels"]) == len(backend["checks"])


def test_infinite_errors_are_valid_json():
    failure = replace(FAILURE, error=float("inf"))
    outcomes = changed(passing(), "operations", state=FAILED, worst=float("inf"), failure=failure)
    data = as_data(Report("quick", 0, tuple(outcomes)))
    json.dumps(data, allow_nan=False)
    assert data["backends"][0]["levels"][0]["worst"] == 1e9


def test_two_reports_of_one_run_are_equal(mixed):
    assert as_data(mixed) == as_data(mixed)


def test_the_text_has_a_table_a_level_and_every_failure(mixed):
    text = as_text(mixed)
    assert "profile quick, seed 7" in text
    rows = [line.split() for line in text.splitlines() if " network " in line]
    count = sum(c.level == "network" for c in CHECKS.values())
    assert rows[0][-7:] == [str(count), str(count), "0", "0", "0", "0.50%", "0.5"]
    assert rows[1][-7:] == [str(count), str(count - 1), "1", "0", "0", "0.50%", "150"]
    assert "spec reaches level reported mAP\n" in text
    assert "my:<Backend> reaches level operations; network: 1 failed" in text
    assert "  not implemented, trainer: " in text
    assert "  limited, ties & <more>: " in text
    lines = [line.split()[-2:] for line in text.splitlines() if "  reported mAP  " in line]
    assert lines == [["mAP", "passed"], ["not", "run"]]
    assert f"  reported mAP: not run, {NOT_EVALUATED.reason}" in text
    failure = text[text.index("FAILED ") :]
    for shown in (
        "FAILED network",
        " on my:<Backend>",
        "  law       ",
        "  failure   box_iou differs at (0, 1)",
        "  input     (1, 2)",
        "  actual    AAA",
        "  expected  EEE",
        "  error     0.0003, allowed 2e-06",
        "    replay('x', (1, 2))",
    ):
        assert shown in failure
    assert failure.count("FAILED") == 1


def test_the_terminal_shortens_long_inputs_and_json_does_not():
    case = "(" + "1, " * 5000 + ")"
    failure = replace(FAILURE, case=case, snippet=f"replay({case})")
    outcomes = changed(passing(), "operations", state=FAILED, failure=failure)
    report = Report("quick", 0, tuple(outcomes))
    text = as_text(report)
    assert len(text) < 4000
    assert "(15,002 characters)" in text
    assert "--json" in text
    assert case in json.dumps(as_data(report))


class Page(HTMLParser):
    """Tags that are open, and what a page would load."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.tags = set()
        self.attributes = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_sound_and_loads_nothing(mixed):
    page = Page()
    text = as_html(as_data(mixed))
    page.feed(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "onclick"}
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_what_the_text_shows(mixed):
    text = as_html(as_data(mixed))
    assert "my:&lt;Backend&gt; reaches level operations; network: 1 failed" in text
    assert "limited: ties &amp; &lt;more&gt;" in text
    assert '<td class="not-run" colspan="7">not run</td>' in text
    assert '<td class="passed" colspan="7">passed</td>' in text
    assert "<pre>metric &amp; &lt;value&gt;</pre>" in text
    assert f"<p>reported mAP: not run, {NOT_EVALUATED.reason}</p>" in text
    for outcome in mixed.outcomes:
        assert f"<code>{outcome.check}</code>" in text
    for shown in ("AAA", "EEE", "(1, 2)", "Error 0.0003, allowed 2e-06"):
        assert shown in text


@pytest.mark.parametrize("place", ["message", "actual", "expected", "case", "snippet"])
def test_the_page_escapes_everything_of_a_failure(place):
    failure = replace(FAILURE, **{place: "<b>&</b>"})
    outcomes = changed(passing(), "operations", state=FAILED, failure=failure, law="<b>&</b>")
    outcomes = changed(
        outcomes, "network", state=NOT_IMPLEMENTED, reason="<b>&</b>", check="<b>&</b>"
    )
    text = as_html(as_data(Report("<b>&</b>", 0, tuple(outcomes))))
    assert "<b>" not in text
    assert text.count("&lt;b&gt;&amp;&lt;/b&gt;") >= 6


@pytest.mark.parametrize(("worst", "kind"), [(0.5, ""), (0.9, "near"), (1.5, "over")])
def test_an_error_near_its_tolerance_is_highlighted(worst, kind):
    outcomes = [replace(outcome, worst=0.0) for outcome in passing()]
    text = as_html(as_data(Report("quick", 0, tuple(changed(outcomes, "network", worst=worst)))))
    width = round(100 * min(worst, 1))
    cell = f'<td class="{kind}"><span class="bar"><i style="width:{width}%"></i></span>{worst:g}<'
    assert text.count(cell) == 2  # of the check and of its level
