"""The options that choose a backend."""

import sys
from types import SimpleNamespace

import pytest
from helpers import refused

from refinedet.backends.interface import Backend
from refinedet.backends.registry import BackendChoice, find_backend
from refinedet.cli.backend_options import with_backend
from refinedet.errors import BackendError, UsageError

COMMANDS = ("demo", "train", "eval", "detect", "export", "bench", "conformance")


class Many(Backend):
    """A backend with several devices."""

    name = "many"

    def __init__(self, device_id=0):
        self.device_id = device_id

    def missing(self):
        return None


@pytest.fixture(autouse=True)
def backends(monkeypatch):
    monkeypatch.setitem(sys.modules, "many_backends", SimpleNamespace(Many=Many))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_computes_has_them(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    for option in ("--backend", "--target", "--device-id", "--streams", "--lite-python"):
        assert option in out, option


def test_options_reach_the_backend():
    assert find_backend("many_backends:Many", device_id=3).device_id == 3
    assert BackendChoice("many_backends:Many").find().device_id == 0


@pytest.mark.parametrize("option", ["streams", "lite_python"])
def test_an_option_that_the_backend_does_not_take(option):
    with pytest.raises(UsageError, match=f"^{option}: backend many_backends:Many does not take it"):
        find_backend("many_backends:Many", **{option: 1})


@with_backend
def one(word: str, backend: BackendChoice) -> None:
    raise BackendError(f"{word} {backend}")


@with_backend
def several(backends: list[BackendChoice]) -> None:
    raise BackendError(f"{backends}")


NONE = {"backend": None, "target": None, "device_id": None, "streams": None, "lite_python": None}


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, BackendChoice("mindspore-cpu")),
        ({"backend": "spec"}, BackendChoice("spec")),
        ({"device_id": 0}, BackendChoice("mindspore-cpu", (("device_id", 0),))),
    ],
)
def test_one_backend(given, chosen):
    with pytest.raises(BackendError, match=r"^a ") as caught:
        one(word="a", **{**NONE, **given})
    assert str(caught.value) == f"a {chosen}"


def test_several_backends_each_once():
    with pytest.raises(BackendError) as caught:
        several(**{**NONE, "backend": ["spec", "a:b", "spec"], "streams": 2})
    expected = [BackendChoice("spec", (("streams", 2),)), BackendChoice("a:b", (("streams", 2),))]
    assert str(caught.value) == str(expected)


def test_a_target_is_short_for_mindspores_backend(run, tmp_path):
    files = ("--model", tmp_path, "--output", tmp_path / "x")
    refused(run("export", *files, "--target", "cpu", "--backend", "spec"), "give one")
    refused(run("export", *files, "--target", "npu"), "'npu' is not one of")
    refused(
        run("export", *files, "--target", "cpu", "--streams", 2),
        "--streams: backend mindspore-cpu does not take it",
    )
    refused(run("conformance"), "--backend: give the backend to check, or --target")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("many_backends:None_", "has no attribute 'None_'"),
        (":", "Empty module name"),
        ("../x:y", "package"),
        ("many_backends:broken", "is no backend"),
        ("json:dumps", "is no backend"),
        ("sys:exit", "is no backend"),
        ("os.path:sep", "is no backend"),
        ("collections:Counter", "is no backend"),
        ("syntax_error:X", "syntax_error.py"),
        ("ends_the_program:X", "SystemExit"),
    ],
)
def test_what_is_no_backend_is_told(run, monkeypatch, tmp_path, name, message):
    monkeypatch.setattr(sys.modules["many_backends"], "broken", 3, raising=False)
    (tmp_path / "syntax_error.py").write_text("this is no Python")
    (tmp_path / "ends_the_program.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    refused(run("demo", "--backend", name, "--run", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()
