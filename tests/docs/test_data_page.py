"""The page on data sets has every kind of error, at the level that the program gives it."""

import re
from pathlib import Path

import pytest

from refinedet.data.findings import POLICY

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["data.md", "zh/data.md"])
def test_the_table_of_errors_is_the_policy(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+) \| (refuse|skip) \|", text, re.M)
    assert dict(rows) == POLICY
    assert len(rows) == len(POLICY)
