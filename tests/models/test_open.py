"""Models are read and verified once, and identified by their digest."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import raises_line

from refinedet.backends.interface import Backend
from refinedet.errors import BackendError, CheckpointError
from refinedet.models import checkpoint as checkpoint_module
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.models.embedded_settings import settings_file, with_settings
from refinedet.models.foreign import weights_file
from refinedet.models.foreign.protobuf import written_field
from refinedet.models.open import open_model, open_network, read_model
from refinedet.settings import resolve, to_yaml
from refinedet.spec.config import replace
from refinedet.spec.network import initial_parameters

SETTINGS = resolve("refinedet_eighth_128", None, (), ("a", "b"))
BODY = written_field(1, b"a graph" * 1000)
"""Of a MindIR, as far as its fields are read."""


class Fake(Backend):
    """A backend whose networks are the arguments that it was called with."""

    name = "fake"
    capabilities = frozenset({"network", "load"})

    def missing(self):
        return None

    def network(self, config, parameters):
        return SimpleNamespace(config=config, parameters=parameters)

    def load(self, file):
        return SimpleNamespace(config=file.settings.model, file=file)


@pytest.fixture
def mindir(tmp_path):
    """An exported file without settings beside it."""
    path = tmp_path / "detector.mindir"
    path.write_bytes(with_settings(BODY, SETTINGS))
    return path


@pytest.fixture
def run_folder(tmp_path):
    """A run with two checkpoints."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for seed, step in enumerate((5, 10)):
        parameters = initial_parameters(SETTINGS.model, seed)
        written = Checkpoint(SETTINGS, parameters, None, step)
        write_checkpoint(folder / f"step-{step:08d}.safetensors", written)
    return folder.parent


@pytest.fixture
def hashed(monkeypatch):
    """Numbers of bytes that were hashed, one entry a call."""
    counts = []
    sha256 = hashlib.sha256

    class Counting:
        def __init__(self, data=b""):
            self.inner = sha256()
            self.update(data)

        def update(self, data):
            counts.append(memoryview(data).nbytes)
            self.inner.update(data)

        def digest(self):
            return self.inner.digest()

        def hexdigest(self):
            return self.inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counting)
    return counts


@pytest.fixture
def opened(monkeypatch):
    """Files that were opened by Python, one entry a time."""
    paths = []
    open_file = Path.open

    def counting(self, *arguments, **options):
        paths.append(self)
        return open_file(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    return paths


def write_beside(path, settings):
    settings_file(path).write_text(to_yaml(settings))


# Once


@pytest.mark.parametrize("beside", [False, True])
def test_an_exported_file_is_read_and_hashed_once(mindir, hashed, opened, beside):
    if beside:
        write_beside(mindir, SETTINGS)
    size = mindir.stat().st_size
    opened.clear()
    hashed.clear()
    model = open_model(Fake(), mindir)
    assert model.digest == model.file.digest
    assert model.class_names == ("a", "b")
    assert opened.count(mindir) == 1
    assert sum(hashed) < 1.5 * size
    assert hashed.count(len(BODY)) == 1


def test_a_checkpoint_is_read_and_hashed_once(run_folder, hashed, monkeypatch):
    read = []
    safe_open = checkpoint_module.safe_open

    class Counting:
        def __init__(self, *arguments):
            self.context = safe_open(*arguments)

        def __enter__(self):
            stored = self.context.__enter__()

            def get_tensor(name):
                read.append(name)
                return stored.get_tensor(name)

            return SimpleNamespace(
                metadata=stored.metadata, keys=stored.keys, get_tensor=get_tensor
            )

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    for module in (checkpoint_module, weights_file):
        monkeypatch.setattr(module, "safe_open", Counting)
    newest = run_folder / "checkpoints" / "step-00000010.safetensors"
    digests = set()
    for path in (run_folder, newest):
        read.clear()
        hashed.clear()
        model = open_model(Fake(), path)
        digests.add(model.digest)
        assert len(read) == len(set(read)) == len(model.network.parameters)
        assert sum(hashed) < newest.stat().st_size
    assert len(digests) == 1


# Digests


def test_the_digest_of_a_run_is_that_of_its_newest_checkpoint(run_folder):
    older, newest = sorted((run_folder / "checkpoints").iterdir())
    assert read_model(run_folder).digest == read_model(newest).digest
    assert read_model(older).digest != read_model(newest).digest
    newest.unlink()
    assert read_model(run_folder).digest == read_model(older).digest


def test_digests_of_exported_files_differ_by_content_and_settings(tmp_path):
    def digest(name, content, settings):
        path = tmp_path / name
        path.write_bytes(content)
        write_beside(path, settings)
        return read_model(path).digest

    other = replace(SETTINGS.model, detection={"score": 0.5})
    first = digest("a.bin", b"1", SETTINGS)
    assert digest("b.bin", b"1", SETTINGS) == first
    assert digest("c.bin", b"2", SETTINGS) != first
    changed = resolve("refinedet_eighth_128", None, ["model.detection.score=0.5"], ("a", "b"))
    assert changed.model == other
    assert digest("d.bin", b"1", changed) != first


def test_weights_without_a_digest_are_identified_by_their_numbers():
    made = [Checkpoint(SETTINGS, initial_parameters(SETTINGS.model, n), None, 0) for n in (0, 0, 1)]
    assert made[0].digest == made[1].digest != made[2].digest


# Settings without a backend


def test_a_model_is_read_without_a_backend(run_folder, mindir):
    for path, capability in ((run_folder, "network"), (mindir, "load")):
        file = read_model(path)
        assert file.settings == SETTINGS
        assert file.class_names == ("a", "b")
        assert file.capability == capability


def test_a_network_is_rebuilt_for_another_size_with_its_parameters(run_folder):
    model = open_model(Fake(), run_folder)
    config = replace(SETTINGS.model, image_size=(64, 128))
    assert model.rebuild(config).config == config
    assert model.rebuild(config).parameters is model.network.parameters


def test_an_exported_detector_has_one_size(mindir):
    model = open_model(Fake(), mindir)
    with pytest.raises(BackendError, match="takes only 128x128 pixels"):
        model.rebuild(SETTINGS.model)


def test_a_backend_that_cannot_load_is_refused(mindir, monkeypatch):
    monkeypatch.setattr(Fake, "capabilities", frozenset({"network"}))
    with pytest.raises(BackendError, match="backend fake reads no exported detectors") as caught:
        open_network(Fake(), read_model(mindir))
    assert caught.value.path == mindir


# Refused


def cannot_read(path, message, kind=BackendError):
    with raises_line(kind, match=re.escape(message), path=path):
        read_model(path)


def test_settings_in_a_file_are_those_beside_it(mindir):
    write_beside(mindir, SETTINGS)
    assert read_model(mindir).content.embedded
    write_beside(mindir, resolve("refinedet_eighth_128", None, (), ("b", "a")))
    cannot_read(mindir, "class_names is ('a', 'b') in it, and ('b', 'a') in detector.mindir.yaml")


def test_a_file_of_another_program_has_the_settings_beside_it(mindir):
    mindir.write_bytes(BODY)
    cannot_read(mindir, "no detector.mindir.yaml beside it, and no settings", CheckpointError)
    write_beside(mindir, SETTINGS)
    assert not read_model(mindir).content.embedded


def test_a_changed_or_damaged_file_is_refused(mindir):
    whole = mindir.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-1], b"rubbish"):
        mindir.write_bytes(data)
        cannot_read(mindir, "not a whole MindIR: ")
    mindir.write_bytes(whole.replace(b"a graph", b"a grape", 1))
    cannot_read(mindir, "was damaged after it was exported; export again")
    mindir.write_bytes(BODY + written_field(1000, b"model: {depth: 3}"))
    cannot_read(mindir, "its settings are not usable here: ")


def test_a_missing_file_is_refused(tmp_path):
    for name in ("none.mindir", "none.onnx", "none.safetensors"):
        cannot_read(tmp_path / name, "cannot read: No such file", CheckpointError)
    write_beside(tmp_path / "none.mindir", SETTINGS)
    cannot_read(tmp_path / "none.mindir", "cannot read: No such file", CheckpointError)


def test_a_folder_without_checkpoints_is_no_run(tmp_path):
    cannot_read(tmp_path, "no checkpoint in it", CheckpointError)
