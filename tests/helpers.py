"""What the tests of several rooms share; needs pytest alone."""

import re
from contextlib import contextmanager

import pytest


@contextmanager
def raises_line(kind, message=None, *, match=".", path=None):
    """The block raises an error of one line; yields pytest's information about it.

    Args:
        kind: class of the error.
        message: the whole line; or
        match: a pattern that occurs in it.
        path: the file or folder with which the line begins.
    """
    with pytest.raises(kind) as caught:
        yield caught
    line = str(caught.value)
    assert "\n" not in line
    assert message is None or line == message
    assert re.search(match, line), line
    assert path is None or line.startswith(f"{path}: "), line


def refused(result, message):
    """Assert that a command ended with status 1 and one error line that contains ``message``.

    Args:
        result: status, standard output and standard error, as the fixture ``run`` gives them.
    """
    status, _, err = result
    assert status == 1, result
    assert err.startswith("refinedet: error: "), err
    assert err.count("\n") == 1, err
    assert message in err
