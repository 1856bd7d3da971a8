"""Text from files and users, shortened and escaped for one line of a message."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import TypeGuard

Report = Callable[[str], None]
"""Called with one line for the user."""

LONGEST = 300
"""Default of the characters that are kept of a quoted text."""

_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that break a line or cannot be encoded as UTF-8."""


def one_line(text: str, limit: int = LONGEST) -> str:
    """Any text as one printable line of at most ``limit`` characters; the rest becomes "..."."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, limit: int = 80) -> str:
    """``repr`` of a value as one line of at most ``limit`` characters."""
    return one_line(repr(value), limit)


def shown_json(value: object, limit: int = 40) -> str:
    """A value as JSON, in one line of at most ``limit`` characters."""
    return one_line(json.dumps(value), limit)


def is_class_name(value: object) -> TypeGuard[str]:
    """Whether it can name a class: a string of one line, not blank, that UTF-8 can encode."""
    return isinstance(value, str) and bool(value.strip()) and not _NOT_IN_A_LINE.search(value)


def to_stderr(line: str) -> None:
    """Print a line on standard error, apart from the results of a command."""
    print(line, file=sys.stderr)
