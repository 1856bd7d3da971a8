"""The example backend passes what it implements, and the page "Write a backend" is true."""

import configparser
import inspect
import os
import pydoc
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer

from refinedet.backends import interface, registry
from refinedet.backends.operations import OPERATIONS
from refinedet.conformance.cli import conformance
from refinedet.conformance.registry import LEVELS
from refinedet.conformance.report import Report, as_text
from refinedet.conformance.runner import (
    FAILED,
    LIMITED,
    NOT_IMPLEMENTED,
    PASSED,
    outcome_of,
    select,
)
from refinedet.spec.config import PRECISIONS, replace
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/example-backend"
PAGE = (ROOT / "docs/write-a-backend.md").read_text("utf-8")
FENCE = "`" * 3


def blocks(kind):
    return re.findall(rf"^{FENCE}{kind}\n(.*?)^{FENCE}$", PAGE, re.M | re.S)


TOML, TEXT, SHELL = blocks("toml"), blocks("text"), blocks("sh")
FAULTY, REMEDY, MEMBERS, HALF, DECLARED = blocks("python")
REPAIRED = FAULTY.replace("    return shared / union\n", REMEDY)
COMMANDS = [line for block in SHELL for line in block.splitlines()]


def module(*sources):
    """A module with this text, its class ``MyBackend`` with the members of all of them."""
    made = ModuleType("my_backend")
    classes = []
    for source in sources:
        exec(source, made.__dict__)
        classes.append(made.MyBackend)
    made.MyBackend = type("MyBackend", tuple(reversed(classes)), {})
    return made


def outcomes(backend, checks):
    return [outcome_of(backend, check) for check in checks]


# The example


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return registry.find_backend("refinedet_numpy32:NumPyFloat32")


@pytest.mark.parametrize("level", LEVELS)
def test_the_example_fails_no_check_and_has_no_trainer(example, level):
    ran = outcomes(example, select([level]))
    wrong = {one.check: one.failure.message for one in ran if one.state == FAILED}
    assert not wrong
    expected = NOT_IMPLEMENTED if level == "training" else PASSED
    assert {one.state for one in ran} == {expected}


def test_the_example_has_every_operation(example):
    for name, function in OPERATIONS.items():
        own = getattr(example.operations, name)
        assert list(inspect.signature(own).parameters) == list(
            inspect.signature(function).parameters
        )
        assert own.__module__.startswith("refinedet_numpy32")


def test_the_example_imports_nothing_of_the_specification_that_computes():
    kinds = r"\w*Config|Array|Backend|Detections|Heads|Loss|ModuleLoss|Parameters|parameter_table"
    for file in EXAMPLE.glob("refinedet_numpy32/*.py"):
        text = file.read_text("utf-8")
        for names in re.findall(r"^from refinedet\.\S+ import (\([^)]*\)|.*)$", text, re.M):
            for name in re.findall(r"\w+", names):
                assert re.fullmatch(rf"{kinds}|VGG16_BLOCKS", name), f"{file.name}: {name}"
        assert "float64" not in text.split('"""', 2)[2], f"{file.name} computes in float64"


def test_the_example_copies_its_parameters(example):
    config = replace(preset("refinedet_eighth_128"), image_size=(64, 64), num_classes=3)
    parameters = initial_parameters(config, 0)
    network = example.network(config, parameters)
    images = np.ones((1, 3, 64, 64), np.float32)
    before = network.heads(images)
    for parameter in parameters.values():
        parameter[...] = 7
    assert all(map(np.array_equal, before, network.heads(images)))


def entry_points_of(text):
    """The section of the backends. TOML as flat as this reads as INI, which 3.10 can."""
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return {n: v.strip('"') for n, v in parser['project.entry-points."refinedet.backends"'].items()}


def test_the_example_is_registered_under_its_own_name(example):
    points = entry_points_of((EXAMPLE / "pyproject.toml").read_text("utf-8"))
    assert points == {example.name: "refinedet_numpy32:NumPyFloat32"}


# The page


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_first_backend_fails_as_the_page_shows():
    checks = select(["operations"], "box_iou")
    ran = outcomes(module(FAULTY).MyBackend(), checks)
    assert {one.state for one in ran} == {FAILED}
    text = as_text(Report("default", 0, tuple(ran)))
    (shown,) = TEXT
    for part in shown.split("\n\n"):
        assert part.rstrip("\n") in text


def test_the_first_backend_repaired_passes():
    assert REPAIRED != FAULTY
    ran = outcomes(module(REPAIRED).MyBackend(), select(["operations"]))
    passed = {one.check for one in ran if one.state == PASSED}
    assert passed == {check.name for check in select(["operations"], "box_iou")}
    assert {one.state for one in ran} == {PASSED, NOT_IMPLEMENTED}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_declared_limitation_is_strict():
    checks = [check for check in select() if check.name == "box_iou.range"]
    (one,) = outcomes(module(FAULTY, DECLARED).MyBackend(), checks)
    assert (one.state, one.reason) == (
        LIMITED,
        "the vendor's kernel divides 0 by 0 (their issue 1234)",
    )
    (one,) = outcomes(module(REPAIRED, DECLARED).MyBackend(), checks)
    assert one.state == FAILED
    assert "declared as a limitation" in one.failure.message


@pytest.mark.parametrize(
    ("block", "shown", "protocol"),
    [
        (MEMBERS, "MyNetwork", "Network"),
        (MEMBERS, "MyTrainer", "Trainer"),
        (MEMBERS, "MyBackend", "Backend"),
        (HALF, "MyTrainer", "HalfTrainer"),
        (HALF, "MyBackend", "Backend"),
    ],
)
def test_the_members_on_the_page_are_those_of_the_interface(block, shown, protocol):
    made, expected = getattr(module(block), shown), getattr(interface, protocol)
    expected_names = {n for n, m in vars(expected).items() if inspect.isfunction(m) and n[0] != "_"}
    if shown == "MyBackend":
        made, expected_names = made.__mro__[1], {"trainer", "network"}
    if block is HALF:
        expected_names -= {"network"}
    names = {name for name in vars(made) if inspect.isfunction(vars(made)[name])} - {"__init__"}
    assert names == expected_names
    for name in names:
        own, theirs = (inspect.signature(getattr(c, name)).parameters for c in (made, expected))
        expected_ones = [(p.name, p.default) for p in theirs.values()]
        if block is MEMBERS and name == "trainer":  # in float32 it may be missing
            assert expected_ones.pop() == ("loss_scale", None)
        assert [(p.name, p.default) for p in own.values()] == expected_ones


def test_the_precisions_on_the_page_are_those_of_the_specification():
    assert module(HALF).MyBackend.precisions == PRECISIONS


def without_variables(line):
    return [word for word in shlex.split(line) if "=" not in word]


def test_every_command_on_the_page_is_one():
    """Options and their values are those that the commands know."""
    program = typer.Typer(add_completion=False)
    program.command()(conformance)
    command = typer.main.get_command(program)
    for line in COMMANDS:
        words = without_variables(line)
        if words[:2] == ["refinedet", "conformance"]:
            if words[2:] != ["--help"]:
                command.make_context("conformance", words[2:])
        elif words[0] == "pytest":
            assert words[1:3] == ["--pyargs", "refinedet.conformance"]
        else:
            assert words[:2] == ["pip", "install"]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "-k box_iou" in line])
def test_the_commands_of_the_first_operation_run(tmp_path, line):
    (tmp_path / "my_backend.py").write_text(REPAIRED, "utf-8")
    (metadata := tmp_path / "my_backend-0.1.dist-info").mkdir()  # as `pip install` leaves it
    (metadata / "METADATA").write_text("Name: my-backend\nVersion: 0.1\n", "utf-8")
    lines = [f"{name} = {value}" for name, value in entry_points_of(TOML[0]).items()]
    group = f"[{registry.GROUP}]\n"
    (metadata / "entry_points.txt").write_text(group + "\n".join(lines), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *without_variables(line)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"operations +3 +3 +0 +0 +0 ", done.stdout), done.stdout


def test_the_page_names_every_operation_and_only_what_exists():
    for name in OPERATIONS:
        assert f"`{name}`" in PAGE
    for dotted in re.findall(r"`(?:python -m pydoc )?(refinedet(?:\.\w+)+)", PAGE):
        if not dotted.endswith("backends"):  # the entry points' group
            assert pydoc.locate(dotted) is not None, dotted
    for link in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_every_block_of_the_page_is_used_here():
    kinds = re.findall(rf"^{FENCE}(\w+)$", PAGE, re.M)
    assert len(kinds) == len([*TOML, *TEXT, *SHELL, FAULTY, REMEDY, MEMBERS, HALF, DECLARED])
    assert len(TOML) == len(TEXT) == 1
