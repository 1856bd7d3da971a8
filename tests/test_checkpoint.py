"""Checkpoints: whole or not there, verified, and none is lost."""

import dataclasses
import errno
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from refinedet import checkpoint as module
from refinedet.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    require_match,
    save_checkpoint,
    write_checkpoint,
)
from refinedet.settings import resolve
from refinedet.spec.network import initial_parameters, parameter_table

SETTINGS = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "b"))


def checkpoint_of(step, seed=0):
    parameters = initial_parameters(SETTINGS.model, seed)
    velocities = {
        p.name: np.full(p.shape, seed, np.float32)
        for p in parameter_table(SETTINGS.model)
        if p.group != "statistic"
    }
    return Checkpoint(SETTINGS, parameters, velocities, step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path):
    wanted = checkpoint_of(7, seed=3)
    got = load_checkpoint(save_checkpoint(tmp_path, wanted, keep=1))
    assert (got.settings, got.steps_done) == (SETTINGS, 7)
    for mine, other in ((got.parameters, wanted.parameters), (got.velocities, wanted.velocities)):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, other[name])
    weights = dataclasses.replace(wanted, velocities=None)
    write_checkpoint(tmp_path / "weights.safetensors", weights)
    assert load_checkpoint(tmp_path / "weights.safetensors").velocities is None


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 3):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    assert names(tmp_path) == ["step-00000003.safetensors", "step-00000010.safetensors"]
    assert newest_checkpoint(tmp_path).steps_done == 10
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_every_corruption_is_one_line_and_the_one_before_is_taken(tmp_path):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=5)
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=5)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"hello", b"\xff" * 100, whole[:-1], whole + b"x"]
    damaged += [whole[:n] for n in rng.integers(0, len(whole), 40)]
    for place in rng.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        told = []
        assert newest_checkpoint(tmp_path, told.append).steps_done == 1
        assert len(told) == 1


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    for part in ("parameters", "velocities"):
        bad = checkpoint_of(2)
        next(iter(getattr(bad, part).values())).flat[0] = np.nan
        with pytest.raises(CheckpointError, match="finite"):
            save_checkpoint(tmp_path, bad, keep=1)
    assert names(tmp_path) == ["step-00000001.safetensors"]


def test_a_full_disk_leaves_the_old_ones(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert names(tmp_path) == ["step-00000001.safetensors"]


def test_killed_while_saving_nothing_is_lost(tmp_path):
    code = textwrap.dedent(
        """
        import itertools, pathlib, sys, test_checkpoint as t
        for step in itertools.count(1):
            t.save_checkpoint(pathlib.Path(sys.argv[1]), t.checkpoint_of(step), keep=2)
            print(step, flush=True)
        """
    )
    rng = np.random.default_rng(0)
    here = str(module_folder())
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=here
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        seen = process.communicate()[0].split()
        last = int(seen[-1]) if seen else 1
        assert newest_checkpoint(tmp_path).steps_done >= last
    save_checkpoint(tmp_path, checkpoint_of(10**7), keep=2)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def module_folder():
    from pathlib import Path

    return Path(__file__).parent


def test_only_the_same_training_goes_on():
    checkpoint = checkpoint_of(1)
    same = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, keep=9))
    require_match(checkpoint, same)
    require_match(
        checkpoint,
        dataclasses.replace(SETTINGS, input=dataclasses.replace(SETTINGS.input, workers=2)),
    )
    other = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "c"))
    with pytest.raises(CheckpointError, match=r"class_names=\['a', 'b'\]"):
        require_match(checkpoint, other)
    more = resolve("refinedet_eighth_128", None, ["model.network.width=0.03125"], ("a", "b", "c"))
    with pytest.raises(CheckpointError, match=r"num_classes=3.*4"):
        require_match(checkpoint, more)


def test_parameters_of_another_network_are_refused(tmp_path):
    wrong = dataclasses.replace(checkpoint_of(1), parameters={})
    with pytest.raises(CheckpointError, match="missing"):
        write_checkpoint(tmp_path / "x.safetensors", wrong)
    assert checkpoints(tmp_path) == []
