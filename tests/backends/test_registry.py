"""A backend declares what it implements; the registry refuses one that does not keep to it."""

import re
import sys
from types import ModuleType

import pytest

from refinedet.backends.interface import CAPABILITIES, Backend
from refinedet.backends.process_group import ALONE
from refinedet.backends.reference import SpecBackend
from refinedet.backends.registry import (
    backend_names,
    find_backend,
    lacking,
    profiler_of,
    require_precision,
)
from refinedet.errors import BackendError, UsageError
from refinedet.spec.config import replace
from refinedet.spec.presets import preset


class Least(Backend):
    name = "least"

    def missing(self):
        return None


@pytest.fixture
def backends(monkeypatch):
    """A module whose attributes ``find_backend`` reaches as ``backends:NAME``."""
    module = ModuleType("backends")
    module.Least = Least
    monkeypatch.setitem(sys.modules, "backends", module)
    return module


def refused(backends, kind, *needs, name="Kind", **options):
    setattr(backends, name, kind)
    with pytest.raises((BackendError, UsageError)) as error:
        find_backend(f"backends:{name}", *needs, **options)
    return str(error.value)


def test_a_backend_needs_a_name_and_missing_alone(backends):
    backend = find_backend("backends:Least")
    assert backend.capabilities == frozenset()
    assert backend.describe() == "ready"
    assert (backend.limitations, backend.environment) == ((), {})
    assert (backend.precisions, backend.group) == (("float32",), ALONE)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_is_not_declared_is_refused_by_name(backends, capability):
    expected = f"backend least: has no {capability}; use another backend"
    assert refused(backends, Least, capability) == expected


@pytest.mark.parametrize(
    ("capability", "call"),
    [
        ("operations", lambda b: b.operations),
        ("network", lambda b: b.network(None, None)),
        ("trainer", lambda b: b.trainer(None, None)),
        ("batches", lambda b: b.batches(None, None, None, None)),
        ("profiler", lambda b: b.profiler(None)),
        ("export", lambda b: b.export(None, None, None)),
        ("load", lambda b: b.load(None)),
    ],
)
def test_what_is_not_implemented_raises(capability, call):
    with pytest.raises(BackendError, match=rf"^backend least: has no {capability}; use another"):
        call(Least())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_class_that_declares_what_it_does_not_implement_is_refused(backends, capability):
    class Boasts(Least):
        capabilities = frozenset({capability})

    member = "export" if capability == "export_heads" else capability
    expected = f"backend backends:Kind: declares {capability} and does not implement {member}"
    assert refused(backends, Boasts) == expected


def test_a_capability_that_does_not_exist_is_refused(backends):
    class Slip(Least):
        capabilities = frozenset({"trainr"})

    assert "declares 'trainr'; the capabilities are operations, network" in refused(backends, Slip)


def test_a_class_without_name_or_missing_is_refused(backends):
    class Nameless(Least):
        name = ""

    class NoMissing(Backend):
        name = "x"

    assert refused(backends, Nameless) == "backend backends:Kind: has no name"
    assert refused(backends, NoMissing) == "backend backends:Kind: has no method missing"


def test_only_a_subclass_of_backend_is_one(backends):
    class Alike:
        name = "alike"

        def missing(self):
            return None

    for kind in (Alike, Alike(), Least(), 3, None):
        assert "is no backend: that is a subclass of" in refused(backends, kind)


def test_a_capability_may_be_inherited_and_taken_back(backends):
    class Detects(SpecBackend):
        capabilities = SpecBackend.capabilities - {"trainer"}

    backends.Detects = Detects
    assert find_backend("backends:Detects", "network", "operations").name == "spec"
    assert "has no trainer" in refused(backends, Detects, "network", "trainer")


def test_why_it_cannot_run_here(backends):
    class Absent(Least):
        def missing(self):
            return "no such device"

    assert refused(backends, Absent) == "backend backends:Kind: no such device"
    assert lacking("backends:Kind") == "no such device"
    assert lacking("backends:Least") is None


def test_an_option_that_the_class_does_not_take(backends):
    class Numbered(Least):
        def __init__(self, device_id=0):
            self.device_id = device_id

    backends.Numbered = Numbered
    assert find_backend("backends:Numbered", device_id=3).device_id == 3
    expected = "streams: backend backends:Kind does not take it; leave it out"
    assert refused(backends, Numbered, streams=2) == expected


def test_the_precision_of_the_config_is_required():
    half = replace(preset("refinedet_eighth_128"), optimizer={"precision": "float16"})
    require_precision(SpecBackend(), half)
    with pytest.raises(BackendError, match=r"^backend least: trains in float32 only; set model"):
        require_precision(Least(), half)


def test_a_profiler_needs_a_backend_that_has_one_and_an_empty_folder(tmp_path):
    class Profiles(Least):
        capabilities = frozenset({"profiler"})

        def profiler(self, folder):
            return folder

    with pytest.raises(UsageError, match=r"^profile: backend least has no profiler"):
        profiler_of(Least(), tmp_path)
    assert profiler_of(Profiles(), tmp_path) == tmp_path
    assert profiler_of(Profiles(), tmp_path / "new") == tmp_path / "new"
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="is not empty; choose another folder"):
            profiler_of(Profiles(), folder)


@pytest.mark.parametrize("name", backend_names())
def test_every_registered_class_implements_what_it_declares(name):
    reason = lacking(name) or ""
    assert not re.match("is no backend|declares|has no (name|method)", reason), reason
