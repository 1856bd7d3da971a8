"""``refinedet conformance``, the same under pytest, and commands that entry points add."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refused

BACKENDS = """
from types import SimpleNamespace
from refinedet.backends.interface import Limitation
from refinedet.backends.operations import OPERATIONS
from refinedet.backends.reference import SpecBackend

class Mixed(SpecBackend):
    limitations = (
        Limitation("box_iou.range", "above one"),
        Limitation("clip_boxes.parity", "no longer"),
    )
    operations = SimpleNamespace(**{
        **{name: op for name, op in OPERATIONS.items() if name != "nms"},
        "box_iou": lambda a, b: OPERATIONS["box_iou"](a, b) * 2,
    })
"""
MIXED = "mixed_backend:Mixed"
WORDS = "box_iou nms.parity clip_boxes"
STATES = {
    "box_iou.parity": "failed",
    "box_iou.symmetry": "passed",
    "box_iou.range": "limited",
    "clip_boxes.parity": "failed",
    "nms.parity": "not implemented",
}


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """Runs the program beside the backend above."""
    (tmp_path / "mixed_backend.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(tmp_path)
    return run


def test_what_passes_is_status_0(run):
    status, out, err = run("conformance", "--backend", "spec", "--profile", "quick", "-k", "iou")
    assert status == 0
    assert "spec reaches no level; operations: " in out
    lines = err.splitlines()
    assert lines[0].startswith("spec box_iou.parity: passed, ")
    assert len(lines) == 3


def test_a_repeated_k_adds_its_checks(run):
    words = ("-k", "box_iou.range", "-k", "softmax.sum nms.separation")
    status, _, err = run("conformance", "--backend", "spec", "--profile", "quick", *words)
    assert status == 0
    names = [line.split()[1].rstrip(":") for line in err.splitlines()]
    assert sorted(names) == ["box_iou.range", "nms.separation", "softmax.sum"]


def test_what_fails_is_status_1_and_in_every_report(run, tmp_path):
    status, out, _ = run(
        *("conformance", "--backend", MIXED, "--backend", "spec", "--profile", "quick"),
        *("--seed", 3, "-k", WORDS, "--level", "operations", "--level", "network"),
        *("--json", tmp_path / "r.json", "--html", tmp_path / "r.html"),
    )
    assert status == 1
    assert "FAILED box_iou.parity on mixed_backend:Mixed" in out
    assert "passes, but is declared as a limitation: no longer" in out
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["profile"], data["seed"]) == ("quick", 3)
    first, second = data["backends"]
    assert (first["backend"], second["backend"]) == (MIXED, "spec")
    assert {row["check"]: row["state"] for row in first["checks"]} == STATES
    assert {row["state"] for row in second["checks"]} == {"passed"}
    page = (tmp_path / "r.html").read_text()
    (failure,) = (row["failure"] for row in first["checks"] if row["check"] == "box_iou.parity")
    assert "replay(&#x27;mixed_backend:Mixed&#x27;" in page
    assert failure["snippet"].splitlines()[-1] in out


def test_a_level_alone(run, tmp_path):
    arguments = ("--backend", "spec", "--profile", "quick", "--level", "detections")
    assert run("conformance", *arguments, "--json", tmp_path / "r.json")[0] == 0
    (backend,) = json.loads((tmp_path / "r.json").read_text())["backends"]
    assert {row["level"] for row in backend["checks"]} == {"detections"}
    assert backend["reached"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the backend to check"),
        (("--backend", "nonsense"), "no 'nonsense'; there are "),
        (("--backend", "spec", "--backend", "nonsense"), "no 'nonsense'; there are "),
        (("--backend", "spec", "-k", "nonsense"), "has 'nonsense' in its name"),
        (("--backend", "spec", "--level", "nonsense"), "'nonsense' is not one of"),
        (("--backend", "spec", "--profile", "nonsense"), "'nonsense' is not one of"),
        (("--backend", "spec", "--json", "absent/r.json"), "there is no folder absent"),
        (("--backend", "spec", "--html", "absent/r.html"), "there is no folder absent"),
        (("--backend", "spec", "--json", "/"), "is a folder; choose the name of a file"),
        (("--backend", "spec", "--html", "/dev/zero"), "is not a file; choose the name of a file"),
        (("--backend", "spec", "--json", "r", "--html", "r"), "is named for two reports"),
        (("--backend", "spec", "--device-id", "1"), "backend spec does not take it"),
    ],
)
def test_a_user_error_is_one_line(run, arguments, message):
    refused(run("conformance", *arguments), message)


def under_pytest(folder, *arguments):
    """pytest in a process of its own, in a folder that has nothing of this project."""
    (folder / "elsewhere").mkdir(exist_ok=True)
    (folder / "mixed_backend.py").write_text(BACKENDS)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--pyargs", "refinedet.conformance"),
            *("-p", "no:cacheprovider", "-v", "--profile", "quick", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder / "elsewhere",
        env=environment,
    )


def test_pytest_has_an_item_for_each_check_and_backend(tmp_path):
    words = " or ".join(WORDS.split())
    done = under_pytest(tmp_path, "--backend", MIXED, "--backend", "spec", "-k", words)
    assert done.returncode == 1, done.stdout + done.stderr
    shown = {"passed": "PASSED", "failed": "FAILED", "limited": "XFAIL"}
    lines = done.stdout.splitlines()
    for check, state in STATES.items():
        expected = shown.get(state, "SKIPPED")
        assert any(f"[{MIXED}-{check}] {expected}" in line for line in lines), check
        assert any(f"[spec-{check}] PASSED" in line for line in lines), check
    assert "  not implemented, operation nms: nms.parity" in done.stdout
    assert "FAILED box_iou.parity on mixed_backend:Mixed\n" in done.stdout
    assert "  to reproduce:" in done.stdout
    counts = "2 failed, 1 not implemented, 1 limited, "
    assert f"{MIXED} reaches no level; operations: {counts}" in done.stdout
    assert "  reported mAP: not run, " in done.stdout
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "ERROR: name the backend to check: --backend NAME"),
        (("--backend", "nonsense"), "no 'nonsense'; there are "),
        (("--backend", "spec", "--level", "nonsense"), "invalid choice: 'nonsense'"),
    ],
)
def test_a_user_error_under_pytest_is_one_line(tmp_path, arguments, message):
    done = under_pytest(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stdout + done.stderr


def test_other_runs_of_pytest_do_not_have_the_options(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_it(): pass")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--backend", "spec"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "unrecognized arguments: --backend" in done.stderr


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """Installs a distribution with commands."""

    def install(code, **commands):
        folder = tmp_path / "site"
        (folder / "plugged-1.dist-info").mkdir(parents=True)
        (folder / "plugged.py").write_text(code)
        info = folder / "plugged-1.dist-info"
        info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
        lines = [f"{name} = plugged:{what}" for name, what in commands.items()]
        info.joinpath("entry_points.txt").write_text(
            "\n".join(["[refinedet.commands]", *lines, ""])
        )
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "plugged", raising=False)
        return Path(folder)

    return install


PLUGGED = """
import typer
app = typer.Typer(no_args_is_help=True)

@app.command("one")
def one(text: str):
    "One of two."
    typer.echo(f"one {text}")

@app.command("two")
def two():
    typer.echo("two")

def alone(times: int = 1):
    "Prints it."
    typer.echo("alone " * times)
"""


def test_entry_points_add_commands_and_groups(run, plug):
    plug(PLUGGED, alone="alone", many="app", bench="alone")
    assert run("alone", "--times", 2)[:2] == (0, "alone alone \n")
    assert run("many", "one", "x")[:2] == (0, "one x\n")
    assert "Prints it." in run("--help")[1]
    assert "Measure" in run("bench", "--help")[1]  # the program's own stays
    status, _, err = run("many", "three")
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import absent_module", "No module named 'absent_module'"),
        ("raise RuntimeError('two\\nlines')", "two lines"),
        ("", "has no attribute 'command'"),
    ],
)
def test_a_broken_command_is_an_error_when_called_and_breaks_no_other(run, plug, code, message):
    plug(code, broken="command")
    assert run("presets", "list")[0] == 0
    status, out, _ = run("--help")
    assert status == 0
    assert "broken" in out
    for arguments in ((), ("--option", "x"), ("--help",)):
        status, out, err = run("broken", *arguments)
        assert status == (0 if arguments == ("--help",) else 1)
        if status:
            assert err.startswith("refinedet: error: broken: cannot load plugged:command: ")
            assert message in err
            assert err.count("\n") == 1
