"""Damaged and hostile files: one line, nothing run, nothing written, no memory spent."""

import json
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
from helpers import raises_line
from safetensors.numpy import save_file

from refinedet.errors import CheckpointError
from refinedet.models.foreign.import_weights import import_weights
from refinedet.models.foreign.weights_file import read_weights

from .writers import (
    SMALL,
    Pickle,
    caffe_layers,
    caffemodel,
    field,
    port_state,
    random_parameters,
    varint,
    write_legacy,
    write_safetensors,
    write_zip,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def cannot_read(path, message="."):
    with raises_line(CheckpointError, match=message, path=path) as caught:
        read_weights(path)
    assert len(str(caught.value)) < 600


@pytest.fixture(autouse=True)
def little_memory():
    """A file of 1 MB that makes its reader want 4 GB fails."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        used = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


CONTAINERS = {
    "caffe": lambda path: path.write_bytes(caffemodel(caffe_layers(random_parameters()))),
    "caffe-v1": lambda path: path.write_bytes(caffemodel(caffe_layers(random_parameters()), True)),
    "zip": lambda path: write_zip(path, port_state(random_parameters())),
    "legacy": lambda path: write_legacy(path, port_state(random_parameters())),
    "safetensors": lambda path: write_safetensors(path, random_parameters()),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_cut_off_anywhere(path, kind):
    CONTAINERS[kind](path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [0, 1, 2, 4, 8, 9, len(whole) - 1, *rng.integers(0, len(whole), 25)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            actual = read_weights(path).parameters
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:  # cut between two layers of a caffemodel, which has no end of its own
            assert kind.startswith("caffe")
            assert len(actual) < len(random_parameters())


@pytest.mark.parametrize("kind", CONTAINERS)
def test_bits_turned_anywhere(path, kind):
    """A line or a file that still reads: never another exception."""
    CONTAINERS[kind](path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(0, 120), *rng.integers(0, len(whole), 120)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            _ = read_weights(path).parameters
        except CheckpointError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs",
        b"\0" * 600,
        os.urandom(4096),
    ],
    ids=["empty", "byte", "page", "pointer", "zeros", "noise"],
)
def test_other_files(path, content):
    path.write_bytes(content)
    cannot_read(path)


def test_no_file_at_all(path, tmp_path):
    cannot_read(path, "cannot read: No such file")
    path.mkdir()
    cannot_read(path, "not a file")
    os.mkfifo(tmp_path / "pipe")
    cannot_read(tmp_path / "pipe", "not a file")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate((2 << 30) + 1)  # sparse
    cannot_read(tmp_path / "huge", "larger than")


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_not_run(path, tmp_path, protocol):
    target = tmp_path / "ran"
    hostile = pickle.dumps({"a.weight": Evil(target)}, protocol)
    write_zip(path, {}, hostile)
    cannot_read(path, "nothing of it was run")
    if protocol > 1:
        path.write_bytes(hostile)
        cannot_read(path, "names (posix|os).system, which is no part of a tensor; nothing of it")
    legacy = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."
    path.write_bytes(legacy + hostile)
    cannot_read(path, "nothing of it was run")
    assert not target.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cbuiltins\neval\nX\x04\x00\x00\x001+1\n\x85R.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02(i__main__\nx\n.",
        b"\x80\x02ccollections\nOrderedDict\n)R}b\x81.",
        b"\x80\x02ccollections\nOrderedDict.__init__\n.",
        b"\x80\x02Vos\nVsystem\n\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\x00\x00abc.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02}(]]u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02u.",
        b"\x80\x02.",
        b"\x80\x02N",
        b"\x80\x02h\x07.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02K\x00" + b"\x85" * 100_000 + b".",
        b"\x80\x02)" + b"2\x86" * 60 + b"Ns.",
        b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00Ns.",
    ],
    ids=range(25),
)
def test_pickles_that_are_no_state_dict(path, code):
    write_zip(path, {"a": np.zeros(1, "<f4")}, code)
    cannot_read(path)
    path.write_bytes(code)
    cannot_read(path)


def one_tensor(array, shape=None, strides=None, size=None):
    """A pickle of one tensor that says what it likes of its storage."""
    made = Pickle()
    made.ordered()
    made.out += b"("
    made.text("vgg.0.weight")

    class Claim:
        dtype, itemsize = array.dtype, array.itemsize

    claim = Claim()
    claim.size = array.size if size is None else size
    claim.shape = array.shape if shape is None else shape
    made.tensor("0", claim, array.strides if strides is None else strides)
    made.out += b"u"
    return made.done()


@pytest.mark.parametrize(
    "claims",
    [
        {"shape": (65535, 65535), "strides": (0, 0)},
        {"shape": (2, 4), "strides": (4, 2)},
        {"shape": (9,), "strides": (1,)},
        {"shape": (8,), "strides": (65535,)},
        {"shape": (8,), "strides": (1, 1)},
        {"shape": (8,), "strides": (1,), "size": 7},
        {"shape": (8,), "strides": (1,), "size": 2**31 - 1},
        {"shape": (1,) * 40, "strides": (1,) * 40},
    ],
    ids=str,
)
def test_a_tensor_stays_inside_its_storage(path, claims):
    array = np.arange(8, dtype="<f4")
    write_zip(path, {"x": array}, one_tensor(array, (8,), (1,)))
    np.testing.assert_array_equal(read_weights(path).tensors["vgg.0.weight"], array)
    write_zip(path, {"x": array}, one_tensor(array, **claims))
    cannot_read(path, "not inside its storage")


def test_zip_archives_that_are_not_of_pytorch(path):
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    cannot_read(path.with_suffix(".npz"), "not of PyTorch")
    state = {"vgg.0.weight": np.zeros(10**6, "<f4")}
    write_zip(path, state, compression=zipfile.ZIP_DEFLATED)
    cannot_read(path, "compressed, which PyTorch never does")
    write_zip(path, {}, Pickle().state(state).done())
    cannot_read(path, "there is no archive/data/0 in it")
    write_zip(path, state, b"\0" * (5 << 20))
    cannot_read(path, "more than 4194304 bytes")
    write_zip(path, state)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"little", b"bigend"))
    cannot_read(path)


def test_entries_that_lie_over_one_another(path):
    """One megabyte that claims to be a hundred: the directory's sizes are not believed."""
    state = {f"vgg.{i}.weight": np.zeros(1000, "<f4") for i in range(50)}
    write_zip(path, state)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        struct.pack_into("<II", data, at + 20, 50_000, 50_000)
        at += 4
    path.write_bytes(data)
    cannot_read(path, "larger than the file|corrupt")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (field(7, field(1, varint(2**62) + varint(4))) + field(5, b"\0" * 16), "its shape is"),
        (field(7, field(1, varint(2**40) + varint(0))) + field(5, b""), None),
        (field(1, 2**63) + field(5, b"\0" * 16), "it holds 4 numbers"),
        (field(7, field(1, b"\1" * 5000)) + field(5, b"\0" * 4), "its shape is"),
        (field(7, field(1, varint(3))), "its shape is 3, it holds 0 numbers"),
        (field(7, field(1, varint(1))) + field(5, b"\0" * 5), "holds 1 numbers"),
        (varint(5 << 3 | 2) + varint(2**60) + b"abc", "cut off: a field of"),
        (varint(5 << 3 | 3), "an unknown kind of field"),
        (b"\xff" * 12, "more than 64 bits"),
        (b"\x00\x01", "a field without a number|expected|no such"),
        (field(5, 7), "a number where a message should be"),
        (field(7, field(1, b"\xff")), "cut off in a number"),
    ],
    ids=range(12),
)
def test_blobs_that_claim_too_much(path, blob, message):
    layer = field(1, b"conv1_1") + field(7, blob)
    path.write_bytes(field(1, b"net") + field(100, layer))
    if message is None:  # an empty array is an array
        assert read_weights(path).tensors["conv1_1/0"].size == 0
    else:
        cannot_read(path, message)


def test_a_layer_twice(path):
    layer = ("conv1_1", [np.zeros(3)])
    path.write_bytes(caffemodel([layer, layer]))
    cannot_read(path, "layer 'conv1_1' is there twice")
    path.write_bytes(caffemodel([("data", []), ("data", []), layer]))
    assert list(read_weights(path).tensors) == ["conv1_1/0"]
    path.write_bytes(field(1, b"net"))
    cannot_read(path, "no layers in it")
    path.write_bytes(caffemodel([("a\nb" * 500, [np.zeros(3)])]))
    cannot_read(path, "of an unknown network")


def test_a_safetensors_header_that_lies(path):
    path.write_bytes(struct.pack("<Q", 100) + b'{"a": ')
    cannot_read(path, "corrupt or cut off")
    path.write_bytes(struct.pack("<Q", 2**62) + b'{"a": ')
    cannot_read(path)
    for dtype, shape in (("BF16", [1]), ("F32", [0, 2**40, 2**40]), ("F32", [0, *[1] * 70])):
        size = 2 if dtype == "BF16" else 0
        row = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
        head = json.dumps({"a": row}).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))
        cannot_read(path)


def test_weights_are_floats(path):
    state = random_parameters()
    for dtype in (np.complex64, np.int64, bool):
        save_file(state | {"tcb.0.output.bias": state["tcb.0.output.bias"].astype(dtype)}, path)
        with pytest.raises(
            CheckpointError, match=r"tcb\.0\.output\.bias has the type .*, expected floats"
        ):
            import_weights(path, None, ("a", "b", "c"), SMALL)
