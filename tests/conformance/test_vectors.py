"""Test vectors: complete, reproducible, self-contained, and checked strictly."""

import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from refinedet.backends.operations import OPERATIONS
from refinedet.conformance import vectors
from refinedet.conformance.margin import MARGIN, TRIES, perturbed
from refinedet.conformance.vectors import check_results, write_vectors
from refinedet.conformance.vectors_cli import app
from refinedet.errors import DataError
from refinedet.spec.config import Config
from refinedet.spec.detection import detections, scored_boxes
from refinedet.spec.network import Heads, forward

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of vectors; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("written") / "vectors"
    write_vectors(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(written):
    return json.loads((written / "manifest.json").read_text())


@pytest.fixture(scope="module")
def tensors(written):
    return {path.name: load_file(path) for path in written.glob("*.safetensors")}


@pytest.fixture
def results(tmp_path, manifest, tensors):
    """Results without a fault."""
    return store(tmp_path / "results", outputs_of(manifest, tensors))


def outputs_of(manifest, tensors):
    files = {}
    for case in manifest["cases"]:
        for t in outputs(case):
            files.setdefault(t["file"], {})[t["name"]] = tensors[t["file"]][t["name"]].copy()
    return files


def outputs(case):
    return [t for t in case["tensors"] if t["role"] == "output"]


def store(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        save_file(content, folder / name)
    return folder


def change(results, file, name, value):
    """Replace one tensor of the results; None removes it."""
    content = load_file(results / file)
    if value is None:
        del content[name]
    else:
        content[name] = value
    save_file(content, results / file)


def refused(message, call, *arguments):
    with pytest.raises(DataError, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


# Writing


def test_every_operation_and_the_network_have_several_cases(manifest):
    counts, edges = {}, set()
    for case in manifest["cases"]:
        assert case["case"].startswith(f"{case['operation']}/")
        counts[case["operation"]] = counts.get(case["operation"], 0) + 1
        if "/pinned" in case["case"]:
            edges.add(case["operation"])
    small = {"network_heads", "network_scored_boxes", "network_detections"}
    assert counts.keys() == OPERATIONS.keys() | small
    assert min(counts[name] for name in OPERATIONS) >= 2
    assert edges == OPERATIONS.keys() - {"scored_boxes"}
    names = [case["case"] for case in manifest["cases"]]
    assert len(set(names)) == len(names)


def test_the_manifest_describes_every_tensor_of_every_file(manifest, tensors):
    described = {}
    for case in manifest["cases"]:
        for t in case["tensors"]:
            array = tensors[t["file"]][t["name"]]
            assert vectors.DTYPES[array.dtype.name] == t["dtype"]
            assert list(array.shape) == t["shape"]
            assert np.isfinite(array).all()
            if t["role"] == "output":
                exact = array.dtype.kind in "biu"
                assert (t["atol"] == 0 and t["rtol"] == 0) == exact, t["name"]
            described.setdefault(t["file"], set()).add(t["name"])
    assert described == {file: set(content) for file, content in tensors.items()}
    assert manifest["files"].keys() == described.keys()


def test_a_number_alone_is_a_float64_of_no_dimension(tensors):
    rate = tensors["learning_rate.safetensors"]["pinned-00/output/result"]
    assert (rate.dtype, rate.shape, float(rate)) == (np.float64, (), 0.125)


def test_the_bytes_are_the_same_in_another_process(written, tmp_path):
    code = (
        "import sys, pathlib; from refinedet.conformance.vectors import write_vectors as w;"
        "w(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "again"], check=True, cwd=tmp_path)
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (written, tmp_path / "again")
    )
    assert first == second


def configuration(kind, value):
    """A configuration from its JSON."""
    if isinstance(value, list):
        return tuple(value)
    if not dataclasses.is_dataclass(kind):
        return value
    kinds = typing.get_type_hints(kind)
    return kind(**{name: configuration(kinds[name], part) for name, part in value.items()})


def argument(tensors, prefix):
    """One argument: an array, a list, heads, or parameters."""
    if prefix in tensors:
        return tensors[prefix]
    parts = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(prefix)}
    if set(parts) == set(Heads._fields):
        return Heads(**parts)
    return [parts[str(i)] for i in range(len(parts))] if "0" in parts else parts


def test_the_files_alone_are_enough_to_compute_every_output(manifest, tensors):
    for case in manifest["cases"]:
        inputs, expected = (
            {t["name"]: tensors[t["file"]][t["name"]] for t in case["tensors"] if t["role"] == role}
            for role in ("input", "output")
        )
        short = case["case"].partition("/")[2]
        if case["operation"] in OPERATIONS:
            function = OPERATIONS[case["operation"]]
            assert function.__module__ == case["defined_in"]
            kinds = typing.get_type_hints(function)
            arguments = [
                configuration(kinds[name], case["values"][name])
                if name in case["values"]
                else argument(inputs, f"{short}/input/{name}")
                for name in inspect.signature(function).parameters
            ]
            actual = list(vectors.leaves(function(*arguments)))
            if case["operation"] == "momentum_step":  # the file is in the order of the names
                actual = sorted(actual)
            for (_, a), e in zip(actual, expected.values(), strict=True):
                np.testing.assert_array_equal(a, e, strict=False)
            continue
        config = configuration(Config, case["values"]["config"])
        assert config == vectors.NETWORK
        parameters = argument(inputs, "small/input/parameters")
        heads = forward(parameters, argument(inputs, "small/input/images"), config)[0]
        result = {
            "network_heads": heads,
            "network_scored_boxes": scored_boxes(heads, config),
            "network_detections": detections(heads, config),
        }[case["operation"]]
        for (_, a), e in zip(vectors.leaves(result), expected.values(), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
            assert a.dtype == e.dtype


def test_the_network_is_small_and_finds_objects_of_several_classes(manifest, tensors):
    network = tensors["network.safetensors"]
    assert network["small/input/images"].shape == (2, 3, 64, 128)
    labels = network["small/output/detections.0.labels"]
    assert len(labels) > 10
    assert len(set(labels.tolist())) > 1
    filtered = (network["small/output/scored_boxes.1"] == 0).all(axis=2).mean()
    assert 0.1 < filtered < 0.9


def near(value, seed):
    """A value with all its float32 numbers perturbed by the margin, several times."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return list(perturbed(value, seed))
    if isinstance(value, list):
        return [list(parts) for parts in zip(*(near(v, seed) for v in value), strict=True)]
    if isinstance(value, Heads):
        return list(perturbed(value, seed))
    return [value] * TRIES


def same_decisions(one, other):
    """Integers are equal; others differ no more than perturbed inputs explain."""
    for (path, a), (_, b) in zip(vectors.leaves(one), vectors.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, path
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=0.01, atol=1000 * MARGIN, err_msg=path)
        else:
            np.testing.assert_array_equal(a, b, err_msg=path)


DISCRETE = (
    "detect",
    "detector_loss",
    "hard_negatives",
    "match",
    "module_loss",
    "nms",
    "scored_boxes",
    "targets",
)


@pytest.mark.parametrize("operation", DISCRETE)
def test_no_seeded_decision_depends_on_the_last_digits(operation):
    groups = vectors.seeded_arguments()[operation]
    if operation == "detector_loss":
        groups += vectors._pinned(operation)  # its pinned cases are seeded as well
    assert groups
    for arguments in groups:
        expected = OPERATIONS[operation](*arguments)
        for others in zip(*(near(a, i) for i, a in enumerate(arguments)), strict=True):
            same_decisions(expected, OPERATIONS[operation](*others))


def test_no_detection_of_the_network_depends_on_the_last_digits():
    parameters, images = vectors.network_arguments()
    heads = forward(parameters, images, vectors.NETWORK)[0]
    expected = detections(heads, vectors.NETWORK), scored_boxes(heads, vectors.NETWORK)
    for other in perturbed(heads, 0):
        actual = detections(other, vectors.NETWORK), scored_boxes(other, vectors.NETWORK)
        same_decisions(expected, actual)


# The folder


def test_vectors_are_replaced_by_vectors(written, tmp_path):
    folder = tmp_path / "vectors"
    shutil.copytree(written, folder)
    old = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(old | {"version": 0}))
    (folder / "nms.safetensors").unlink()
    write_vectors(folder)
    assert {p.name for p in folder.iterdir()} == {p.name for p in written.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["vectors"]


def test_an_empty_folder_and_a_new_path_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    write_vectors(tmp_path / "empty")
    write_vectors(tmp_path / "a" / "b")
    assert (tmp_path / "empty" / "manifest.json").exists()
    assert (tmp_path / "a" / "b" / "manifest.json").exists()


@pytest.mark.parametrize(
    "content", [b"precious", b"{", b"[]", b'{"format": "other"}', b'{"files": 1}']
)
def test_other_folders_are_kept(tmp_path, content):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "manifest.json").write_bytes(content)
    refused("not empty", write_vectors, tmp_path / "folder")
    assert (tmp_path / "folder" / "manifest.json").read_bytes() == content


def test_a_foreign_file_among_vectors_is_kept(written, tmp_path):
    shutil.copytree(written, tmp_path / "vectors")
    (tmp_path / "vectors" / "notes.txt").write_text("mine")
    refused("holds notes.txt", write_vectors, tmp_path / "vectors")
    assert (tmp_path / "vectors" / "notes.txt").exists()


def test_a_file_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    refused("is a file", write_vectors, tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused("current folder", write_vectors, Path())
    refused("current folder", write_vectors, tmp_path)


@pytest.mark.parametrize("when", ["write_json", "rename"])
def test_a_failed_writing_leaves_the_old_vectors_and_nothing_else(
    written, tmp_path, monkeypatch, when
):
    shutil.copytree(written, tmp_path / "vectors")
    before = {p.name: p.read_bytes() for p in (tmp_path / "vectors").iterdir()}
    rename = Path.rename

    def fail(*_):
        raise OSError(28, "No space left on device")

    def fail_on_draft(path, goal):
        if Path(goal).name == "vectors" and not path.name.endswith(".old"):
            fail()
        return rename(path, goal)

    if when == "rename":
        monkeypatch.setattr(Path, "rename", fail_on_draft)
    else:
        monkeypatch.setattr(vectors, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        write_vectors(tmp_path / "vectors")
    assert {p.name: p.read_bytes() for p in (tmp_path / "vectors").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["vectors"]


# Checking


def test_the_outputs_of_the_specification_pass(written, results):
    checked = check_results(written, results)
    assert {v.state for v in checked} == {"passed"}
    assert max(v.worst for v in checked) == 0
    done = CliRunner().invoke(app, ["check", str(written), str(results)])
    assert done.exit_code == 0, done.output
    assert f"{len(checked)} cases: {len(checked)} passed, 0 failed" in done.output


def wrong(array, entry):
    """The array with its last number just outside the tolerance."""
    other = array.copy()
    if other.dtype == bool:
        other.flat[-1] = not other.flat[-1]
    elif other.dtype.kind == "i":
        other.flat[-1] += 1
    else:
        allowed = entry["atol"] + entry["rtol"] * abs(float(other.flat[-1]))
        other.flat[-1] += other.dtype.type(1.5 * allowed)
    return other


def test_every_output_is_compared_to_its_last_number(written, manifest, results):
    clean = {path.name: load_file(path) for path in results.iterdir()}
    changed = 0
    for number in (*range(8), -1):  # many cases at a time: one output of each
        files = {file: dict(content) for file, content in clean.items()}
        spoilt = {}
        for case in manifest["cases"]:
            entry = outputs(case)[min(number, len(outputs(case)) - 1)]
            array = clean[entry["file"]][entry["name"]]
            if array.size:
                files[entry["file"]][entry["name"]] = wrong(array, entry)
                spoilt[case["case"]] = entry["name"], [n - 1 for n in array.shape]
        store(results, files)
        failed = {v.case: v.message for v in check_results(written, results) if v.state == "failed"}
        assert failed.keys() == spoilt.keys()
        for case, (name, last) in spoilt.items():
            place = f" at {last}" if last else ""
            assert failed[case].startswith(f"{name.split('/')[-1]} differs{place}: actual ")
        changed += len(spoilt)
    assert changed > 800


def test_an_error_within_the_tolerance_passes_and_is_measured(written, results, manifest):
    content = load_file(results / "encode.safetensors")
    name = "seeded-00/output/result"
    entry = next(t for c in manifest["cases"] for t in c["tensors"] if t["name"] == name)
    first = content[name].flat[0]
    allowed = entry["atol"] + entry["rtol"] * abs(first)
    other = content[name].copy()
    other.flat[0] = first + np.float32(0.5 * allowed)
    change(results, "encode.safetensors", name, other)
    result = next(v for v in check_results(written, results) if v.case == "encode/seeded-00")
    assert result.state == "passed"
    assert 0.2 < result.worst < 0.9


def failure(written, results, case):
    checked = {v.case: v for v in check_results(written, results) if v.state == "failed"}
    assert list(checked) == [case]
    assert "\n" not in checked[case].message
    return checked[case].message


def test_a_failure_names_the_index_the_values_and_the_error(written, results):
    iou = load_file(results / "box_iou.safetensors")["pinned-03/output/result"]
    iou[2, 1] += 0.25
    iou[4, 5] = 9
    change(results, "box_iou.safetensors", "pinned-03/output/result", iou)
    message = failure(written, results, "box_iou/pinned-03")
    assert message.startswith("result differs at [2, 1]: actual 0.25, expected 0.0, error 0.25, ")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((5, 6)), "result has dtype F64, not F32"),
        (np.zeros((6, 5), np.float32), r"result has shape [6, 5], not [5, 6]"),
        (np.zeros(30, np.float16), "result has dtype F16, not F32"),
        (np.full((5, 6), np.nan, np.float32), "result is not finite at [0, 0]"),
        (np.full((5, 6), -np.inf, np.float32), "result is not finite at [0, 0]"),
    ],
)
def test_dtype_shape_and_finiteness_are_checked(written, results, other, message):
    change(results, "box_iou.safetensors", "pinned-03/output/result", other)
    assert message in failure(written, results, "box_iou/pinned-03")


def test_a_dtype_unknown_to_numpy_is_a_failure(written, results):
    text = json.dumps(
        {"pinned-00/output/result": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}}
    ).encode()
    data = len(text).to_bytes(8, "little") + text + b"\0\0"
    (results / "learning_rate.safetensors").write_bytes(data)
    message = failure(written, results, "learning_rate/pinned-00")
    assert message == "result has dtype BF16, not F64"


def test_a_bool_is_a_byte_of_0_or_1(written, results):
    path = results / "hard_negatives.safetensors"
    data = bytearray(path.read_bytes())
    assert data[-1] in (0, 1)
    data[-1] = 2
    path.write_bytes(data)
    failed = [v for v in check_results(written, results) if v.state == "failed"]
    assert [v.operation for v in failed] == ["hard_negatives"]


def test_a_missing_case_is_not_implemented_and_a_partial_one_fails(written, results):
    (results / "nms.safetensors").unlink()
    for name in ("result.0", "result.1"):
        change(results, "cross_entropy.safetensors", f"pinned-01/output/{name}", None)
    change(results, "cross_entropy.safetensors", "pinned-02/output/result.1", None)
    checked = {v.case: v for v in check_results(written, results)}
    missing = {name for name, v in checked.items() if v.state == "not implemented"}
    assert missing == {n for n in checked if n.startswith("nms/")} | {"cross_entropy/pinned-01"}
    assert checked["cross_entropy/pinned-02"].message == "result.1 is missing"
    done = CliRunner().invoke(app, ["check", str(written), str(results)])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0] == "FAILED cross_entropy/pinned-02: result.1 is missing"
    row = next(line.split() for line in lines if line.startswith("cross_entropy"))
    assert row[1:4] == ["2", "1", "1"]
    row = next(line.split() for line in lines if line.startswith("nms"))
    assert row[1:3] == ["0", "0"]
    assert int(row[3]) > 4
    assert row[4] == "-"


# User errors


def test_results_that_cannot_be_read_are_one_line(written, results, tmp_path):
    refused("no such folder", check_results, written, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds no safetensors file", check_results, written, tmp_path / "empty")
    path = results / "nms.safetensors"
    good = path.read_bytes()
    for bad in (b"", b"\xff" * 40, good[:-1], good[:100], b"\0" * 8 + good[8:]):
        path.write_bytes(bad)
        refused(r"nms\.safetensors: cannot read", check_results, written, results)
    path.unlink()
    path.mkdir()
    refused(r"nms\.safetensors: cannot read: not a file", check_results, written, results)


def test_names_that_are_not_in_the_vectors_are_refused(written, results):
    zero = np.zeros(1, np.float32)
    change(results, "nms.safetensors", "pinned-00/output/results", zero)
    refused("'pinned-00/output/results' is no output", check_results, written, results)
    change(results, "nms.safetensors", "pinned-00/output/results", None)
    change(results, "nms.safetensors", "pinned-00/input/boxes", zero)
    refused("'pinned-00/input/boxes' is no output", check_results, written, results)
    change(results, "nms.safetensors", "pinned-00/input/boxes", None)
    save_file({"a": zero}, results / "nns.safetensors")
    refused(r"nns\.safetensors: the vectors have no file", check_results, written, results)


def test_damaged_vectors_are_refused(written, results, tmp_path):
    folder = tmp_path / "vectors"
    shutil.copytree(written, folder)
    data = bytearray((folder / "nms.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "nms.safetensors").write_bytes(data)
    refused(r"nms\.safetensors: damaged or changed", check_results, folder, results)
    (folder / "nms.safetensors").unlink()
    refused(r"nms\.safetensors: cannot read: No such file", check_results, folder, results)
    (folder / "manifest.json").unlink()
    refused("manifest.json: cannot read", check_results, folder, results)


def test_another_manifest_is_refused(written, manifest, results, tmp_path):
    folder = tmp_path / "vectors"
    shutil.copytree(written, folder)
    path = folder / "manifest.json"

    def edited(change):
        other = json.loads(json.dumps(manifest))
        change(other)
        path.write_text(json.dumps(other))

    path.write_bytes(b'{"format": ')
    refused("not JSON", check_results, folder, results)
    path.write_bytes(b"\xff\xfe")
    refused("not JSON", check_results, folder, results)
    path.write_text("[" * 100_000)
    refused("not JSON", check_results, folder, results)
    path.write_text('{"format": "other"}')
    refused("not a manifest", check_results, folder, results)
    edited(lambda m: m.update(version=2))
    refused("version 2, expected 1", check_results, folder, results)
    output = manifest["cases"][0]["tensors"].index(outputs(manifest["cases"][0])[0])
    for damage in (
        lambda m: m.pop("cases"),
        lambda m: m.update(cases=3),
        lambda m: m.update(files=[]),
        lambda m: m["files"].update({"../x": {"sha256": ""}}),
        lambda m: m["cases"][0].pop("operation"),
        lambda m: m["cases"][0].update(tensors=[]),
        lambda m: m["cases"][0]["tensors"][output].update(atol=float("nan")),
        lambda m: m["cases"][0]["tensors"][output].update(rtol=-1),
        lambda m: m["cases"][0]["tensors"][output].update(file="nowhere"),
        lambda m: m["cases"][0]["tensors"][output].update(shape=[1]),
        lambda m: m["cases"][0]["tensors"][output].update(dtype="F64"),
        lambda m: m["cases"][0]["tensors"][output].update(name="nothing"),
        lambda m: m["cases"][0]["tensors"][output].pop("dtype"),
    ):
        edited(damage)
        refused(r"manifest\.json: damaged|is no output", check_results, folder, results)


# Without Python


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The reader in C, compiled."""
    assert shutil.which("cc"), "this test needs a C compiler called cc"
    program = tmp_path_factory.mktemp("reader") / "vectors_reader"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-o"]
    subprocess.run(["cc", *flags, program, DOCS / "vectors_reader.c"], check=True)
    return program


def read_in_c(reader, path):
    return subprocess.run([reader, path], capture_output=True, text=True, timeout=20)


def test_the_reader_in_c_prints_what_numpy_reads(reader, written, tensors):
    for file, content in tensors.items():
        done = read_in_c(reader, written / file)
        assert done.returncode == 0, done.stderr
        printed = {}
        for line in done.stdout.splitlines():
            name, dtype, shape, values = re.fullmatch(r"(\S+) (\S+) \[(.*?)\](.*)", line).groups()
            printed[name] = dtype, [int(n) for n in shape.split(",") if n], values.split()
        assert printed.keys() == content.keys()
        for name, array in content.items():
            dtype, shape, values = printed[name]
            assert dtype == vectors.DTYPES[array.dtype.name]
            assert shape == list(array.shape)
            numbers = np.array(values, dtype=float).astype(array.dtype)
            np.testing.assert_array_equal(numbers, array.ravel()[:6])


def test_the_reader_in_c_reads_other_safetensors_files(reader, tmp_path):
    save_file({"a b": np.array([[-1, 2]])}, tmp_path / "a", metadata={"format": 'x "quoted" {'})
    assert read_in_c(reader, tmp_path / "a").stdout == "a b I64 [1, 2] -1 2\n"


def test_the_reader_in_c_stops_at_a_file_cut_off(reader, written, tmp_path):
    data = (written / "softmax.safetensors").read_bytes()
    cut = tmp_path / "cut"
    for length in (*range(12), 100, 500, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        done = read_in_c(reader, cut)
        assert done.returncode == 1, length
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    huge = json.dumps({"a": {"dtype": "F64", "shape": [2**61], "data_offsets": [0, 0]}}).encode()
    cut.write_bytes(len(huge).to_bytes(8, "little") + huge)
    assert read_in_c(reader, cut).returncode == 1
    for other in (tmp_path / "nowhere", tmp_path):
        assert read_in_c(reader, other).returncode == 1


def test_the_reader_in_c_is_under_a_hundred_lines():
    assert len((DOCS / "vectors_reader.c").read_text().splitlines()) < 100


# The page


def test_the_page_lists_the_manifests_fields(manifest):
    fields = set()

    def collect(value, path):
        for key, part in value.items():
            fields.add(f"{path}{key}")
            if key == "files":
                for file in part.values():
                    collect(file, "files.")
            elif key in ("cases", "tensors"):
                for entry in part:
                    collect(entry, f"{path}{key}.")

    collect(manifest, "")
    page = (DOCS / "vectors.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE)) == fields


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, manifest, tensors):
    page = (DOCS / "vectors.md").read_text()
    commands = re.findall(r"^    ((?:refinedet|cc|\./).*)$", page, re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["refinedet", "refinedet", "cc", "./vectors_reader"]
    (tmp_path / "docs").symlink_to(DOCS)
    store(tmp_path / "results", outputs_of(manifest, tensors))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        name, *arguments = command.split()
        if name == "refinedet":
            assert arguments[0] == "vectors"
            done = CliRunner().invoke(app, arguments[1:])
            assert done.exit_code == 0, done.output
        else:
            subprocess.run(command.split(), check=True, capture_output=True)


def test_the_results_in_c_of_the_page_are_checked(written, tmp_path):
    page = (DOCS / "vectors.md").read_text()
    body = re.search(r"(?:^    .*\n)*    fwrite\(&rate.*\n", page, re.MULTILINE).group()
    results = tmp_path / "results"
    results.mkdir()
    for rate in ("0.125", "0.25"):
        program = (
            "#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
            f'int main(void) {{ FILE *file = fopen("results/learning_rate.safetensors", "wb");\n'
            f"{body.replace('0.125', rate)} return fclose(file); }}"
        )
        (tmp_path / "writer.c").write_text(program)
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-o", "writer"]
        subprocess.run(["cc", *flags, "writer.c"], check=True, cwd=tmp_path)
        subprocess.run(["./writer"], check=True, cwd=tmp_path)
        done = CliRunner().invoke(app, ["check", str(written), str(results)])
        assert done.exit_code == (0 if rate == "0.125" else 1), done.output
        assert f"{1 if rate == '0.125' else 0} passed" in done.output
    shown = re.search(r"^    (FAILED .*, allowed) .*$", page, re.MULTILINE).group(1)
    assert shown in done.output


def test_every_command_has_help_and_a_user_error_is_a_data_error(written, tmp_path):
    for arguments in (["--help"], ["write", "--help"], ["check", "--help"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    done = CliRunner().invoke(app, ["check", str(written), str(tmp_path / "nowhere")])
    assert isinstance(done.exception, DataError)
