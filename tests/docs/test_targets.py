"""Each target has a page, and a tox environment that checks the device first."""

import re
from configparser import RawConfigParser
from pathlib import Path

import pytest

from refinedet.backends.registry import backend_names, lacking

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = {
    "cpu": "mindspore-cpu",
    "gpu": "mindspore-gpu",
    "ascend": "mindspore-ascend",
    "ascend310": "mindspore-ascend310",
    "lite": "mindspore-lite",
    "onnxruntime": "onnxruntime",
    "torch": "{posargs:torch-cpu}",
}
TRAIN = ("cpu", "gpu", "ascend")
PAGES = ("cpu", "gpu", "ascend", "ascend310")
PARTS = ("Install", "Verify", "Train", "Evaluate", "Export", "Deploy", "What was run on what")


def tox():
    parser = RawConfigParser()
    parser.read(ROOT / "tox.ini")
    return parser


def commands(environment):
    text = tox()[f"testenv:{environment}"]["commands"].replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_its_environment_prints_the_device_and_tests_the_backend(environment):
    backend = ENVIRONMENTS[environment]
    first, *others = commands(environment)
    assert first.removesuffix(" {posargs}") == f"refinedet backends {backend}"
    (suite,) = (line for line in others if line.startswith("refinedet conformance"))
    assert f"--backend {backend} " in suite
    assert "--json {env_dir}/" in suite
    assert "--html {env_dir}/" in suite
    if environment in TRAIN:
        assert others[-1].startswith(f"refinedet demo --backend {backend} ")
    else:
        assert others[0].startswith("pytest tests/")


def test_no_backend_is_without_an_environment():
    named = {*ENVIRONMENTS.values(), "torch-cpu", "torch-cuda", "spec"} - {"{posargs:torch-cpu}"}
    assert set(backend_names()) <= named


def test_a_missing_device_is_not_skipped():
    assert tox()["tox"]["skip_missing_interpreters"] == "false"
    assert not any(line.startswith("-") for name in ENVIRONMENTS for line in commands(name))


@pytest.mark.parametrize("page", PAGES)
def test_its_page_has_every_section(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == list(PARTS)


@pytest.mark.parametrize("target", TRAIN)
def test_its_page_has_every_command(target):
    text = (ROOT / "docs" / f"{target}.md").read_text(encoding="utf-8")
    for command in ("train", "eval", "detect", "export"):
        assert re.search(rf"^    refinedet {command} .*--target {target}", text, re.M), command


@pytest.mark.parametrize("target", ["gpu", "ascend", "ascend310"])
def test_the_page_has_the_error_of_a_missing_device(target, monkeypatch):
    """The error that this machine, without the device, prints."""
    monkeypatch.delenv("REFINEDET_LITE_PYTHON", raising=False)
    text = (ROOT / "docs" / f"{target}.md").read_text(encoding="utf-8")
    name = f"mindspore-{target}"
    assert f"    refinedet: error: backend {name}: {lacking(name)}\n" in text
    assert "Not run on hardware" in text or "not run on hardware" in text
