"""Interpreters and Lite processes that fail: one line each, no hang, nothing left behind."""

import ast
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import venv
from pathlib import Path

import numpy as np
import pytest

from refinedet.adapters import devices
from refinedet.adapters.lite import process, process_main
from refinedet.adapters.lite.backend import Ascend310, MindSporeLite
from refinedet.adapters.lite.process import Interpreter, LiteProcess
from refinedet.backends.registry import find_backend
from refinedet.errors import BackendError, UsageError


def output(work, *arguments):
    """The one line of a failure."""
    with pytest.raises((BackendError, UsageError)) as caught:
        work(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def script(tmp_path, text):
    """An interpreter that is a shell script."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Gives this Python a ``mindspore_lite`` whose converter does what it is told."""

    def made(work):
        text = f"""
import os, signal
from types import SimpleNamespace
__version__ = "0"
ModelType = FmkType = SimpleNamespace(MINDIR=0, ONNX=0)
class Converter:
    def convert(self, kind, model, output):
{textwrap.indent(textwrap.dedent(work), " " * 8)}"""
        (tmp_path / "mindspore_lite.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return Interpreter(sys.executable, "lite_python")

    return made


def gone(pid):
    """Whether a process ends within five seconds; one that nobody has waited for has ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# Which interpreter


def test_the_option_comes_before_the_variable_and_that_before_this_process(monkeypatch, tmp_path):
    monkeypatch.setenv("REFINEDET_LITE_PYTHON", "/by/variable")
    assert MindSporeLite(Path("/by/option")).python == ("/by/option", "lite_python")
    assert MindSporeLite().python == ("/by/variable", "REFINEDET_LITE_PYTHON")
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("REFINEDET_LITE_PYTHON")
        else:
            monkeypatch.setenv("REFINEDET_LITE_PYTHON", unset)
        assert MindSporeLite().python is None


def test_a_file_of_this_folder_comes_before_one_on_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert process.other_interpreter(Path("./sh")).path == "sh"
    (tmp_path / "sh").touch()
    assert process.other_interpreter(Path("./sh")).path == str(tmp_path / "sh")


def test_without_lite_one_line_says_how_to_name_an_interpreter(monkeypatch):
    monkeypatch.delenv("REFINEDET_LITE_PYTHON", raising=False)
    assert output(find_backend, "mindspore-lite") == (
        "backend mindspore-lite: MindSpore Lite is not installed for this Python; name an "
        "interpreter that has it as lite_python or in REFINEDET_LITE_PYTHON; it needs NumPy and "
        "mindspore-lite, see docs/ascend310.md"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 0", "cannot run MindSpore Lite, it ended with status 0; it needs NumPy and"),
        (
            "echo 'Error: no display' >&2; exit 3",
            "cannot run MindSpore Lite, it ended with status 3: Error: no display",
        ),
        ("kill -SEGV $$", "cannot run MindSpore Lite, it ended with status -11; it needs"),
        ("echo I am no Python at all, but I talk; cat", "does not run as a Python interpreter; it"),
        ("yes", "does not run as a Python interpreter; it needs"),
        (
            f"printf '{process_main.GREETING.decode()}'; yes",
            "does not run as a Python interpreter; it",
        ),
    ],
    ids=["ends", "fails", "crashes", "talks", "never stops", "imitates"],
)
def test_what_is_no_python_is_told(tmp_path, text, message):
    path = script(tmp_path, text)
    assert f"lite_python {path}: {message}" in str(MindSporeLite(path).missing())
    lacking = MindSporeLite(path).missing()
    assert lacking is not None
    assert "\n" not in lacking


def test_a_file_that_is_not_there_or_not_a_program_is_told(tmp_path):
    absent = tmp_path / "absent"
    assert MindSporeLite(absent).missing() == (
        f"lite_python {absent}: cannot start it: No such file or directory; {process.HOW_TO}"
    )
    (tmp_path / "text").write_text("hello")
    assert "cannot start it: Permission denied" in str(MindSporeLite(tmp_path / "text").missing())
    assert "cannot start it: Permission denied" in str(MindSporeLite(tmp_path).missing())


def test_an_interpreter_without_numpy_or_lite_is_told(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare/bin/python"
    lacking = MindSporeLite(python).missing()
    assert "ended with status 1: ModuleNotFoundError: No module named 'numpy'; it needs" in lacking
    (site,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    (site / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    lacking = MindSporeLite(python).missing()
    assert "ModuleNotFoundError: No module named 'mindspore_lite'; it needs" in lacking


def test_one_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    monkeypatch.setitem(process.LIMITS, "start", 1)
    path = script(tmp_path, f"echo $$ > {tmp_path}/pid; sleep 1000; echo late")
    began = time.monotonic()
    assert MindSporeLite(path).missing() == (
        f"lite_python {path}: no answer to 'start' within 1 s; the process was ended"
    )
    assert time.monotonic() - began < 10
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: MindSporeLite(streams=0), "streams: 0 is not a number from 1 to 64"),
        (lambda: MindSporeLite(streams=65), "streams: 65 is not a number from 1 to 64"),
        (lambda: Ascend310(streams=10**9), "streams: 1000000000 is not a number from 1 to 64"),
        (lambda: Ascend310(device_id=-1), "device_id: -1 is not a number from 0"),
        (lambda: Ascend310(batch=0), "batch: 0 is not a number from 1"),
    ],
)
def test_numbers_out_of_range_are_told(made, message):
    assert output(made) == message


# Ascend 310


def test_all_that_ascend_lacks_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("REFINEDET_LITE_PYTHON", raising=False)
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    monkeypatch.setattr(devices, "CANN", "libnosuch.so")
    line = output(find_backend, "mindspore-ascend310")
    driver, cann, lite, *_ = line.split("; ")
    assert driver.startswith(
        f"backend mindspore-ascend310: no Ascend driver ({tmp_path} has no davinci0): install"
    )
    assert cann == "no CANN (libnosuch.so is not found): install it, and source its set_env.sh"
    assert lite.startswith("MindSpore Lite is not installed for this Python")


def test_a_device_that_is_not_there_is_told(monkeypatch, tmp_path):
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    assert "device_id 2: there are 2 (davinci0, davinci1)" in str(Ascend310(2).missing())
    assert "davinci" not in str(Ascend310(1).missing())


# Lite processes


@pytest.fixture
def hung(stand_in):
    """A process that sleeps in Lite's converter, deaf to Python's signals."""
    return stand_in("""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        open(output, "w").close()
        while True:
            signal.pause()
    """)


def given(tmp_path):
    return {"onnx": "", "output": str(tmp_path / "begun"), "device": None, "shape": [1]}


def begun(tmp_path):
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)


def test_a_process_that_is_late_is_ended(hung, tmp_path, monkeypatch):
    monkeypatch.setitem(process.LIMITS, "convert", 1)
    made = LiteProcess(hung)
    assert output(made.ask, "convert", given(tmp_path)) == (
        f"{hung}: no answer to 'convert' within 1 s; the process was ended"
    )
    assert gone(made._process.pid)


def test_a_process_that_is_killed_is_told(hung, tmp_path):
    made = LiteProcess(hung)

    def kill():
        begun(tmp_path)
        os.kill(made._process.pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    line = output(made.ask, "convert", given(tmp_path))
    assert line.startswith(
        f"{hung}: its Lite process ({made._process.pid}) ended by signal SIGKILL at 'convert'; "
        "if nobody ended it, memory may have run out"
    )
    assert "SIGKILL" in output(made.ask, "convert", given(tmp_path))  # and again


def test_a_real_process_that_is_killed_is_told(python):
    made = LiteProcess(python)
    os.kill(made._process.pid, signal.SIGKILL)
    line = output(made.ask, "run", {}, {"images": np.zeros((1, 3, 320, 320), np.float32)})
    assert "ended by signal SIGKILL at 'run'" in line


ORPHAN = """
import os, sys
from refinedet.adapters.lite.process import LIMITS, Interpreter, LiteProcess
LIMITS["convert"] = 2
made = LiteProcess(Interpreter(sys.argv[1], ""))
print(made._process.pid, flush=True)
if len(sys.argv) > 2:
    given = {"onnx": "", "output": sys.argv[2], "device": None, "shape": [1]}
    made.ask("convert", given)
sys.stdin.read()
"""


def orphan(*arguments):
    """The id of a process whose parent waits to be killed, and the parent."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",  # not among the source folders, which it would import
    )
    return int(parent.stdout.readline()), parent


def ended(parent):
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()


def test_a_process_ends_with_its_parent(python):
    pid, parent = orphan(python.path)
    assert Path(f"/proc/{pid}").exists()
    ended(parent)
    assert gone(pid)


def test_a_process_that_hangs_ends_after_its_parent_by_itself(hung, tmp_path):
    pid, parent = orphan(hung.path, tmp_path / "begun")
    begun(tmp_path)
    ended(parent)
    assert gone(pid)


def test_a_process_ends_with_its_network(python):
    made = LiteProcess(python)
    pid = made._process.pid
    del made
    assert not Path(f"/proc/{pid}").exists()


def test_what_lite_prints_disturbs_no_answer(stand_in, tmp_path):
    """Its C++ writes to standard output, and reads whatever it likes."""
    made = LiteProcess(
        stand_in("""
            os.write(1, b"CONVERT RESULT SUCCESS:0\\n" * 1000)
            assert os.read(0, 100) == b""
            if not model:
                raise RuntimeError("two\\nlines")
        """)
    )
    for _ in range(3):
        assert made.ask("convert", {**given(tmp_path), "onnx": "x"}) == ({}, {})
    assert output(made.ask, "convert", given(tmp_path)) == "MindSpore Lite: RuntimeError: two lines"


def test_the_file_of_the_process_is_of_python_3_7_and_needs_numpy_alone():
    tree = ast.parse(Path(process_main.__file__).read_text(), feature_version=(3, 7))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    assert names - set(sys.stdlib_module_names) == {"numpy", "mindspore_lite"}
