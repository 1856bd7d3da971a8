"""The program, as users type it."""

import pytest

from refinedet.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program; gives its status, what it printed, and its errors."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["refinedet", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
