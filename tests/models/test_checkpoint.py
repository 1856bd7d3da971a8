"""Checkpoints: whole or not there, verified, and none is lost."""

import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import raises_line
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from refinedet.errors import CheckpointError, WriteError
from refinedet.models import checkpoint as module
from refinedet.models.checkpoint import (
    FORMAT,
    Checkpoint,
    _digest,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    require_match,
    save_checkpoint,
    write_checkpoint,
)
from refinedet.settings import resolve
from refinedet.spec.config import replace
from refinedet.spec.network import initial_parameters, parameter_table
from refinedet.spec.optimizer import LossScale
from refinedet.support import files

SETTINGS = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "b"))


def checkpoint_of(step, seed=0):
    parameters = initial_parameters(SETTINGS.model, seed)
    momentum_buffers = {
        p.name: np.full(p.shape, seed, np.float32)
        for p in parameter_table(SETTINGS.model)
        if p.group != "statistic"
    }
    return Checkpoint(SETTINGS, parameters, momentum_buffers, step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path):
    expected = checkpoint_of(7, seed=3)
    actual = load_checkpoint(save_checkpoint(tmp_path, expected, keep=1))
    assert (actual.settings, actual.steps_done) == (SETTINGS, 7)
    for mine, other in (
        (actual.parameters, expected.parameters),
        (actual.momentum_buffers, expected.momentum_buffers),
    ):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, other[name])
    weights = dataclasses.replace(expected, momentum_buffers=None)
    write_checkpoint(tmp_path / "weights.safetensors", weights)
    assert load_checkpoint(tmp_path / "weights.safetensors").momentum_buffers is None


def test_the_loss_scale_is_kept(tmp_path):
    for scale in (LossScale(0.1 + 0.2, 7), LossScale(2.0**24), None):
        expected = dataclasses.replace(checkpoint_of(1), loss_scale=scale)
        assert load_checkpoint(save_checkpoint(tmp_path, expected, keep=1)).loss_scale == scale


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_scale": "nan"}, "loss scale: expected a number above 0, got nan"),
        ({"loss_scale": "much"}, "could not convert string to float"),
        ({"good_steps": "-1"}, "good steps: want a whole number from 0, got -1"),
        ({"good_steps": None}, "its metadata has no 'good_steps'"),
    ],
)
def test_a_loss_scale_that_is_none_is_refused(tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, dataclasses.replace(checkpoint_of(1), loss_scale=LossScale(8.0, 1)))
    with safe_open(path, "numpy") as stored:
        metadata = stored.metadata() | change
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = load_file(path)
    metadata["sha256"] = _digest(metadata, ((n, tensors[n]) for n in sorted(tensors)))
    save_file(tensors, path, metadata)
    cannot_load(path, message)


def test_a_loss_scale_of_1_and_none_are_the_same_training():
    """Older programs wrote 1.0 where null stands for it."""
    model = replace(SETTINGS.model, optimizer={"loss_scale": 1.0})
    old = dataclasses.replace(checkpoint_of(1), settings=dataclasses.replace(SETTINGS, model=model))
    require_match(old, SETTINGS)
    model = replace(SETTINGS.model, optimizer={"loss_scale": 8.0})
    with pytest.raises(CheckpointError, match=r"has model\.optimizer\.loss_scale=None, .* 8"):
        require_match(checkpoint_of(1), dataclasses.replace(SETTINGS, model=model))


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 3):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    assert names(tmp_path) == ["step-00000003.safetensors", "step-00000010.safetensors"]
    assert newest_checkpoint(tmp_path).steps_done == 10
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_one_just_written_always_stays(tmp_path):
    damaged = save_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    damaged.write_bytes(b"")
    for step in (8, 9):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=1)
        lines = []
        assert newest_checkpoint(tmp_path, lines.append).steps_done == step


def test_another_memory_layout_is_the_same_checkpoint(tmp_path):
    expected = checkpoint_of(1, seed=1)
    turned = {name: np.asfortranarray(p) for name, p in expected.parameters.items()}
    path = save_checkpoint(tmp_path, dataclasses.replace(expected, parameters=turned), keep=1)
    for name, value in load_checkpoint(path).parameters.items():
        np.testing.assert_array_equal(value, expected.parameters[name])


def test_other_programs_can_read_it(tmp_path):
    expected = checkpoint_of(5)
    path = save_checkpoint(tmp_path, expected, keep=1)
    tensors = load_file(path)
    assert len(tensors) == len(expected.parameters) + len(expected.momentum_buffers)
    name = "backbone.conv1_1.weight"
    np.testing.assert_array_equal(tensors[f"parameter/{name}"], expected.parameters[name])
    with safe_open(path, "numpy") as stored:
        metadata = stored.metadata()
    assert metadata["steps_done"] == "5"
    assert "numpy" in metadata["versions"]


HERE = Path(__file__).parent
PATHS = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
"""The environment of a process that imports this module."""


def cannot_load(path, message="."):
    """Loading gives one line that names the file and says this."""
    with raises_line(CheckpointError, match=message, path=path):
        load_checkpoint(path)


def test_every_corruption_is_one_line_and_the_one_before_is_taken(tmp_path):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=5)
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=5)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    damaged = [b"", b"hello", b"\xff" * 100, b"\xff" * 7 + b"\x7f" + whole[8:], whole + b"x"]
    edges = [1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1]
    damaged += [whole[:n] for n in [*edges, *rng.integers(0, len(whole), 20)]]
    start = whole.index(b"__metadata__")  # every field of it, then tables, then numbers
    places = [*range(0, 8), *range(start, start + 4000, 53)]
    places += [*rng.integers(0, header, 30), *rng.integers(header, len(whole), 10)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        cannot_load(path)
    for data in (b"", whole[:7], whole[: header - 1], b"\xff" * 100):
        path.write_bytes(data)
        cannot_load(path, "cut off, or not a safetensors file")
    path.write_bytes(whole[:-1])
    cannot_load(path, "corrupt or cut off")
    path.unlink()
    cannot_load(path, "cannot read: No such file")
    path.mkdir()
    cannot_load(path, "not a file")
    lines = []
    assert newest_checkpoint(tmp_path, lines.append).steps_done == 1
    assert len(lines) == 1
    assert str(path) in lines[0]


def test_nothing_usable_is_an_error_and_not_a_fresh_start(tmp_path, capsys):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1).write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"none of its 1 checkpoints can be used, the newest: .*corrupt or cut off",
    ):
        newest_checkpoint(tmp_path)
    assert capsys.readouterr().err == ""  # one error, one line


def test_metadata_is_part_of_the_checkpoint(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    tensors = load_file(path)
    with safe_open(path, "numpy") as stored:
        metadata = stored.metadata()
    for key in metadata:
        save_file(tensors, path, {k: v for k, v in metadata.items() if k != key})
        cannot_load(path, "expected the format|does not match its digest")
    save_file(tensors, path, {**metadata, "steps_done": "3"})
    cannot_load(path, "does not match its digest")
    save_file(tensors, path, {**metadata, "format": "refinedet checkpoint 99"})
    cannot_load(path, f"expected the format '{FORMAT}', got 'refinedet checkpoint 99'")
    save_file(tensors, path)
    cannot_load(path, "expected the format .* got None")


def signed(path, tensors, metadata):
    """A file with a digest that is right: what is wrong in it is not an accident."""
    tensors = dict(sorted(tensors.items()))
    metadata = {**metadata, "sha256": module._digest(metadata, tensors.items())}
    save_file(tensors, path, metadata)


def test_what_another_program_wrote_is_checked_against_the_network(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    tensors = load_file(path)
    with safe_open(path, "numpy") as stored:
        metadata = stored.metadata()
    name = "parameter/backbone.conv1_1.weight"
    signed(path, tensors, metadata)
    assert load_checkpoint(path).steps_done == 2
    for value, message in (
        (tensors[name][:1], "has shape"),
        (tensors[name] * np.float32(np.nan), "not finite"),
        (tensors[name].astype(np.float64), "float32"),
        (tensors[name].astype(np.int32), "float32"),
    ):
        signed(path, {**tensors, name: np.ascontiguousarray(value)}, metadata)
        cannot_load(path, message)
    signed(path, {k: v for k, v in tensors.items() if k != name}, metadata)
    cannot_load(path, "conv1_1.weight is missing")
    signed(path, tensors, {**metadata, "settings": "model: {colour: 1}"})
    cannot_load(path, "written by refinedet .* unknown key 'model.colour'")
    signed(path, tensors, {**metadata, "steps_done": "many"})
    cannot_load(path, "many")
    signed(path, tensors, {k: v for k, v in metadata.items() if k != "steps_done"})
    cannot_load(path, "no 'steps_done'")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    for part in ("parameters", "momentum_buffers"):
        bad = checkpoint_of(2)
        next(iter(getattr(bad, part).values())).flat[0] = np.nan
        with pytest.raises(CheckpointError, match=r"conv1_1\.weight: not finite"):
            save_checkpoint(tmp_path, bad, keep=1)
    assert names(tmp_path) == ["step-00000001.safetensors"]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_other_momentum_buffers_are_not_saved(tmp_path, change):
    bad = checkpoint_of(1)
    name = "backbone.conv1_1.weight"
    if change == "missing":
        del bad.momentum_buffers[name]
    elif change == "unknown":
        bad.momentum_buffers["x"] = np.zeros(1, np.float32)
    elif change == "shape":
        bad.momentum_buffers[name] = np.zeros(1, np.float32)
    else:
        bad.momentum_buffers[name] = bad.momentum_buffers[name].astype(np.float64)
    with pytest.raises(CheckpointError, match="not written: momentum buffer "):
        save_checkpoint(tmp_path, bad, keep=1)
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_the_old_ones(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    def full(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(WriteError, match="free some space") as caught:
        save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).count("step-") == 1
    assert names(tmp_path) == ["step-00000001.safetensors"]


def test_a_write_that_the_system_stops_leaves_the_old_ones(tmp_path):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(WriteError, match=os.strerror(errno.EFBIG)):
            save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001.safetensors"]


@pytest.mark.parametrize("call", ["_force_to_disk", "replace"])
def test_a_failure_after_writing_leaves_the_old_ones(tmp_path, monkeypatch, call):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path if call == "replace" else files, call, fail)
    with pytest.raises(WriteError, match="Input/output error"):
        save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert names(tmp_path) == ["step-00000001.safetensors"]


def test_what_was_read_back_is_compared(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    write = module._write

    def forgetful(path, tensors, metadata):
        name = min(tensors)
        write(path, {**tensors, name: tensors[name] + 1}, metadata)

    monkeypatch.setattr(module, "_write", forgetful)
    with pytest.raises(CheckpointError, match="the file differs from what was written"):
        save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert names(tmp_path) == ["step-00000001.safetensors"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = textwrap.dedent(
        """
        import os, pathlib, signal, sys, test_checkpoint as t
        def half(path, tensors, metadata):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        t.module._write = half
        t.save_checkpoint(pathlib.Path(sys.argv[1]), t.checkpoint_of(2), keep=2)
        """
    )
    save_checkpoint(tmp_path, checkpoint_of(1), keep=2)
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, env=PATHS).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert newest_checkpoint(tmp_path).steps_done == 1
    save_checkpoint(tmp_path, checkpoint_of(3), keep=1)
    assert names(tmp_path) == ["step-00000003.safetensors"]


def test_nothing_is_written_beside_the_draft(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "_force_to_disk", lambda _: seen.append(names(tmp_path)))
    path = save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(".step-")
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_killed_while_saving_nothing_is_lost(tmp_path):
    code = textwrap.dedent(
        """
        import itertools, pathlib, sys, test_checkpoint as t
        checkpoint = t.checkpoint_of(1)
        for step in itertools.count(int(sys.argv[2])):
            later = t.dataclasses.replace(checkpoint, steps_done=step)
            t.save_checkpoint(pathlib.Path(sys.argv[1]), later, keep=2)
            print(step, flush=True)
        """
    )
    rng = np.random.default_rng(0)
    last = 0
    for _ in range(10):
        command = [sys.executable, "-c", code, str(tmp_path), str(last + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=PATHS)
        first = process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        last = int([first, *process.communicate()[0].split()][-1])
        found = newest_checkpoint(tmp_path).steps_done
        assert found >= last
        last = found
    save_checkpoint(tmp_path, checkpoint_of(10**7), keep=2)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert len(names(tmp_path)) == 2


def test_only_the_same_training_goes_on():
    checkpoint = checkpoint_of(1)
    same = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, keep=9))
    require_match(checkpoint, same)
    require_match(
        checkpoint,
        dataclasses.replace(SETTINGS, input=dataclasses.replace(SETTINGS.input, workers=2)),
    )
    other = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "c"))
    with pytest.raises(CheckpointError, match=r"class_names=\('a', 'b'\)"):
        require_match(checkpoint, other)
    more = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "b", "c"))
    with pytest.raises(CheckpointError, match=r"num_classes=3.*4"):
        require_match(checkpoint, more)


def test_parameters_of_another_network_are_refused(tmp_path):
    wrong = dataclasses.replace(checkpoint_of(1), parameters={})
    with pytest.raises(CheckpointError, match="missing"):
        write_checkpoint(tmp_path / "x.safetensors", wrong)
    assert checkpoints(tmp_path) == []
