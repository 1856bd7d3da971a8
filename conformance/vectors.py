"""Test vectors: the specification's inputs and outputs as files, for programs in any language.

A folder of vectors holds one safetensors file for each operation, one for a small network, and
``manifest.json``, which describes each tensor and the tolerance of a result. A program writes its
outputs under the same names, and ``check_results`` checks them. ``docs/vectors.md`` describes the
formats.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from refinedet.backends.operations import OPERATIONS
from refinedet.conformance import inputs
from refinedet.conformance.comparison import leaves
from refinedet.conformance.tolerances import TOLERANCES
from refinedet.errors import DataError
from refinedet.spec.anchors import anchors
from refinedet.spec.boxes import box_iou, corners_to_centres
from refinedet.spec.config import Config, DetectionConfig, ImageConfig, replace
from refinedet.spec.detection import detections, scored_boxes
from refinedet.spec.network import forward, trained_parameters
from refinedet.spec.presets import preset
from refinedet.spec.types import Array
from refinedet.support.files import require_regular_file, write_atomically, write_json

FORMAT, VERSION = "refinedet vectors", 1
MANIFEST = "manifest.json"
DTYPES = {"bool": "BOOL", "uint8": "U8", "int64": "I64", "float32": "F32", "float64": "F64"}
"""NumPy's name of each dtype that occurs, and the name in safetensors."""


# Writing


class Case(NamedTuple):
    """One call of an operation: its inputs and expected outputs."""

    name: str
    """As ``box_iou/pinned-03``: the operation is before the slash."""
    file: str
    defined_in: str
    """The module of the specification that defines the operation."""
    tolerance: str
    """Row of the table of tolerances."""
    values: dict[str, Any]
    """Arguments without arrays, as JSON."""
    inputs: dict[str, Array]
    """By the tensor's name in the file."""
    outputs: dict[str, Array]


class _Numbers(NamedTuple):
    """Random numbers for the seeded cases, drawn in this order."""

    image: Array
    flags: Array
    classes: Array
    module: list[Array]
    ranks: Array
    offsets: list[Array]
    cascade: list[Array]
    softmax: list[Array]
    entropy: tuple[Array, Array]
    smooth: list[Array]
    mining: list[Array]


def _numbers(crowd: int, anchor_count: int) -> _Numbers:
    rng = np.random.default_rng(20)

    def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> list[Array]:
        return [rng.normal(0, scale, shape).astype(np.float32) for shape in shapes]

    return _Numbers(
        image=rng.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        flags=rng.random((4, 40)) < 0.25,
        classes=rng.integers(0, 4, (3, 30)) * (rng.random((3, 30)) < 0.3),
        module=[
            *normal((3, 30, 4), (3, 30, 4)),
            *normal((3, 30, 4), scale=2),
            rng.random((3, 30)) < 0.8,
        ],
        ranks=rng.permutation(crowd * 4).reshape(crowd, 4),
        offsets=normal((12, 4), (12, 4)),
        cascade=normal((anchor_count, 4), (anchor_count, 4), scale=0.5),
        softmax=normal((12, 21), (2, 5, 4), scale=3),
        entropy=(normal((12, 21), scale=3)[0], rng.integers(0, 21, 12)),
        smooth=normal((12, 4), (12, 4)),
        mining=normal((40,), (40,)),
    )


def seeded_arguments() -> dict[str, list[tuple[Any, ...]]]:
    """Ordinary arguments for every operation, no edge cases; the same on every run.

    No discrete result depends on the last digits of these numbers.
    """
    config = inputs.SMALL
    rows = anchors(config)
    (objects,), (labels,) = inputs.seeded_objects(config, (6,), 232)
    (twelve,), _ = inputs.seeded_objects(config, (12,), 1)
    (others,), _ = inputs.seeded_objects(config, (12,), 2)
    variances = config.anchors.variances
    # A third of the boxes are close to others, so that some are suppressed.
    crowd = np.concatenate([twelve, twelve[:6] + np.float32(0.01), others])
    numbers = _numbers(len(crowd), len(rows))
    scaled = ImageConfig("RGB", (123.5, 116.25, 103.5), (58.0, 57.0, 57.5))
    schedules = [preset(name).schedule for name in ("refinedet_vgg16_320", "refinedet_eighth_128")]
    return {
        "normalise": [(numbers.image, ImageConfig()), (numbers.image, scaled)],
        "anchors": [(config,), (replace(config, image_size=(192, 64)),)],
        "corners_to_centres": [(twelve,)],
        "centres_to_corners": [(corners_to_centres(twelve),)],
        "box_iou": [(twelve, objects), (rows[::5].copy(), objects)],
        "clip_boxes": [(twelve * np.float32(2) - np.float32(0.5),)],
        "encode": [(twelve, others, variances)],
        "decode": [
            (numbers.offsets[0], others, variances),
            (numbers.offsets[1], others, (0.25, 0.5)),
        ],
        "cascaded_decode": [(*numbers.cascade, rows, variances)],
        "match": [(box_iou(rows, objects), config.matching)],
        "targets": [(rows, objects, labels, config)],
        **_seeded_losses(numbers),
        **_seeded_detection(numbers, crowd),
        "learning_rate": [
            (step, schedule)
            for schedule in schedules
            for step in (0, schedule.steps // 3, schedule.steps - 1)
        ],
        "momentum_step": [],  # its pinned cases are seeded
    }


def _seeded_losses(numbers: _Numbers) -> dict[str, list[tuple[Any, ...]]]:
    rng = np.random.default_rng(21)
    wide = rng.normal(0, 3, (12, 5)).astype(np.float32)
    focus = rng.integers(0, 6, 12)  # class 5 has no column
    batches = [inputs.seeded_objects(inputs.SMALL, counts, 3) for counts in ((3,), (2, 0, 4))]
    offsets, expected, logits, eligible = numbers.module
    flags, losses = numbers.flags, [one.clip(0) for one in numbers.mining]
    return {
        "softmax": [(logits,) for logits in numbers.softmax],
        "sigmoid": [(wide,)],
        "focal": [(wide, focus, 0.75, 2.0), (wide, focus, 0.25, 1.5)],
        "cross_entropy": [numbers.entropy],
        "smooth_l1": [tuple(numbers.smooth)],
        "hard_negatives": [
            (losses[0], flags[0], ~flags[1], 3.0),
            (losses[1], flags[2], ~flags[3], 1.5),
        ],
        "module_loss": [(offsets, logits, expected, numbers.classes, eligible, 3.0)],
        "detector_loss": [
            (inputs.seeded_heads(inputs.SMALL, len(boxes), seed), boxes, kinds, inputs.SMALL)
            for seed, (boxes, kinds) in enumerate(batches)
        ],
    }


def _seeded_detection(numbers: _Numbers, crowd: Array) -> dict[str, list[tuple[Any, ...]]]:
    scores = ((numbers.ranks + 1) / (numbers.ranks.size + 1)).astype(np.float32)
    filtering = replace(inputs.SMALL, loss={"objectness": 0.3})
    few = DetectionConfig(0.3, 40, 15, 0.4, 6, 12)
    return {
        "scored_boxes": [
            (inputs.seeded_heads(filtering, 1, 0), filtering),
            (inputs.seeded_heads(inputs.SMALL, 2, 1), inputs.SMALL),
        ],
        "nms": [(crowd, scores[:, 1].copy(), 0.45), (crowd, scores[:, 2].copy(), 0.1)],
        "detect": [(crowd, scores, few), (crowd, scores, DetectionConfig(0.05))],
    }


def _pinned(name: str) -> list[tuple[Any, ...]]:
    """The arguments of the pinned cases of the suite's check of the operation."""
    from refinedet.conformance.checks.operations import loss_arguments
    from refinedet.conformance.registry import CHECKS

    pinned = CHECKS[f"{name}.parity"].pinned if f"{name}.parity" in CHECKS else ()
    if name == "detector_loss":  # pinned are the objects of each image, and a seed
        return [loss_arguments(*case) for case in pinned]
    if name == "momentum_step":  # a seed, and the options of the update
        return [_update(*case) for case in pinned]
    return list(pinned) if name != "scored_boxes" else []


def _update(seed: int, config: Config) -> tuple[Any, ...]:
    """Arguments of ``momentum_step``."""
    rng = np.random.default_rng(seed)
    gradients, momentum_buffers = (
        {p.name: rng.normal(0, 0.1, p.shape).astype(np.float32) for p in trained_parameters(config)}
        for _ in range(2)
    )
    return inputs.seeded_parameters(config, seed), gradients, momentum_buffers, 0.25, config


def _named(value: object, root: str) -> dict[str, Array]:
    """The arrays in a value, by dotted paths as ``heads.arm_offsets`` or ``boxes.0``."""
    return {
        root + re.sub(r"\[(?:'(.*?)'|(\d+))\]", r".\1\2", path): np.asarray(leaf)
        for path, leaf in leaves(value)
    }


def _case(operation: str, name: str, arguments: Sequence[Any]) -> Case:
    """One call, with the specification's result."""
    function = OPERATIONS[operation]
    values: dict[str, Any] = {}
    tensors: dict[str, Array] = {}
    bound = inspect.signature(function).bind(*arguments)
    bound.apply_defaults()
    for parameter, value in bound.arguments.items():
        if any(isinstance(leaf, np.ndarray) for _, leaf in leaves(value)):
            tensors |= _named(value, f"{name}/input/{parameter}")
        else:
            values[parameter] = (
                dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
            )
    outputs = _named(function(*arguments), f"{name}/output/result")
    file = f"{operation}.safetensors"
    return Case(
        f"{operation}/{name}", file, function.__module__, operation, values, tensors, outputs
    )


NETWORK = replace(
    preset("refinedet_eighth_128"),
    image_size=(64, 128),
    num_classes=4,
    loss={"objectness": 0.2},
    detection={"score": 0.45, "top_before_nms": 100, "nms_iou": 0.3, "top": 40},
)
"""The small network: 603,264 parameters, 510 anchors."""


def network_arguments() -> tuple[dict[str, Array], Array]:
    """Its parameters, with class logits that make scores far apart; and images."""
    parameters = inputs.seeded_parameters(NETWORK, 0)
    for name in parameters:
        if "logits" in name:
            parameters[name] = parameters[name] * np.float32(6)
    return parameters, inputs.seeded_images(NETWORK, 2, 0)


def _network_cases() -> list[Case]:
    """The network's heads, scored boxes and detections, as three operations.

    Computed in float64 and rounded once, so that the reference adds no error of its own,
    and the bytes do not depend on a processor's order of additions.
    """
    parameters, images = network_arguments()
    exact = {name: p.astype(np.float64) for name, p in parameters.items()}
    heads = forward(exact, images.astype(np.float64), NETWORK)[0]
    given = _named(parameters, "small/input/parameters")
    given |= _named(images, "small/input/images")
    values = {"config": dataclasses.asdict(NETWORK)}
    parts = {
        "network_heads": ("heads", forward, heads),
        "network_scored_boxes": (
            "network.scored_boxes",
            scored_boxes,
            scored_boxes(heads, NETWORK),
        ),
        "network_detections": ("detections", detections, detections(heads, NETWORK)),
    }
    cases = []
    for operation, (tolerance, function, result) in parts.items():
        outputs = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array
            for name, array in _named(result, f"small/output/{operation[8:]}").items()
        }
        module = function.__module__
        case = (f"{operation}/small", "network.safetensors", module, tolerance, values)
        cases.append(Case(*case, given, outputs))
    return cases


def all_cases() -> list[Case]:
    """Every case, in the order of the operations; the network last."""
    seeded = seeded_arguments()
    cases = [
        _case(operation, f"{kind}-{number:02}", arguments)
        for operation in OPERATIONS
        for kind, group in (("pinned", _pinned(operation)), ("seeded", seeded.get(operation, [])))
        for number, arguments in enumerate(group)
    ]
    return cases + _network_cases()


def _entry(case: Case, name: str, role: str, array: Array) -> dict[str, Any]:
    """The manifest's entry for one tensor."""
    entry: dict[str, Any] = {
        "name": name,
        "role": role,
        "dtype": DTYPES[array.dtype.name],
        "shape": list(array.shape),
        "file": case.file,
    }
    if role == "output":
        exact = array.dtype.kind in "biu"
        row = None if exact else TOLERANCES[case.tolerance, "float32"]
        entry |= {"atol": row.atol if row else 0.0, "rtol": row.rtol if row else 0.0}
    return entry


def write_vectors(folder: Path) -> int:
    """Write the folder of vectors, whole or not at all.

    Returns:
        The number of cases.
    Raises:
        DataError: the folder holds other files.
        OSError: it cannot be written.
    """
    goal = folder.resolve()
    _require_replaceable(folder, goal)
    cases = all_cases()
    files: dict[str, dict[str, Array]] = {}
    for case in cases:
        files.setdefault(case.file, {}).update(case.inputs | case.outputs)
    with _fresh_folder(goal) as draft:
        digests = {}
        for file, tensors in files.items():
            content = save({name: t.copy() for name, t in tensors.items()})
            digests[file] = hashlib.sha256(content).hexdigest()
            write_atomically(draft / file, content)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "files": {file: {"sha256": digest} for file, digest in digests.items()},
            "cases": [
                {
                    "case": case.name,
                    "operation": case.name.partition("/")[0],
                    "defined_in": case.defined_in,
                    "values": case.values,
                    "tensors": [
                        *(_entry(case, name, "input", t) for name, t in case.inputs.items()),
                        *(_entry(case, name, "output", t) for name, t in case.outputs.items()),
                    ],
                }
                for case in cases
            ],
        }
        write_json(draft / MANIFEST, manifest)
    return len(cases)


def _require_replaceable(folder: Path, goal: Path) -> None:
    """Raise unless the folder is missing, empty, or holds vectors only."""
    if Path.cwd().is_relative_to(goal):
        raise DataError("is the current folder or contains it; choose a new one", path=folder)
    if not goal.exists():
        return
    if not goal.is_dir():
        raise DataError("is a file; choose a new folder", path=folder)
    there = {path.name for path in goal.iterdir()}
    if not there:
        return
    try:
        ours = {MANIFEST, *_load_manifest(goal).get("files", ())}
    except (DataError, TypeError) as error:
        raise DataError(
            "is not empty and holds no vectors; choose a new folder", path=folder
        ) from error
    if foreign := sorted(there - ours):
        raise DataError(
            f"holds {foreign[0]}, which is not a file of vectors; move it away", path=folder
        )


@contextmanager
def _fresh_folder(goal: Path) -> Iterator[Path]:
    """A folder beside ``goal``, which replaces ``goal`` if the block raises nothing."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    draft = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}")
    old = draft.with_name(f"{draft.name}.old")
    draft.mkdir()
    try:
        yield draft
        if goal.exists():
            goal.rename(old)
        try:
            draft.rename(goal)
        except OSError:
            if old.exists():
                old.rename(goal)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# Checking

STATES = PASSED, FAILED, NOT_IMPLEMENTED = "passed", "failed", "not implemented"


@dataclass(frozen=True)
class CaseResult:
    """The result of one case."""

    case: str
    operation: str
    state: str
    message: str = ""
    """Why it failed."""
    worst: float = 0.0
    """Largest error as a fraction of what is allowed."""


@dataclass
class Row:
    """The results of one operation: counts by state, and the largest error."""

    worst: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))


def summary(results: Sequence[CaseResult]) -> dict[str, Row]:
    """The table by operation, in their order."""
    rows: dict[str, Row] = {}
    for result in results:
        row = rows.setdefault(result.operation, Row())
        row.counts[result.state] += 1
        row.worst = max(row.worst, result.worst)
    return rows


def check_results(folder: Path, results: Path) -> list[CaseResult]:
    """Check the results of any program against a folder of vectors.

    Args:
        results: a folder of files named as the vectors', which hold outputs only.
    Raises:
        DataError: damaged vectors, or results that cannot be read: no such folder, a
            damaged file, names that are not in the manifest.
    """
    manifest = _read_manifest(folder)
    for file, known in manifest["files"].items():
        try:
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", key=folder / file) from error
        if digest != known["sha256"]:
            raise DataError("damaged or changed: write the vectors again", key=folder / file)
    outputs: dict[str, set[str]] = {file: set() for file in manifest["files"]}
    for case in manifest["cases"]:
        for tensor in case["tensors"]:
            if tensor["role"] == "output":
                outputs[tensor["file"]].add(tensor["name"])
    if not results.is_dir():
        raise DataError("no such folder", path=results)
    files = sorted(path for path in results.iterdir() if path.suffix == ".safetensors")
    if not files:
        raise DataError("holds no safetensors file to check", path=results)
    with ExitStack() as stack:
        given = {}
        for path in files:
            if path.name not in outputs:
                raise DataError("the vectors have no file of this name", path=path)
            given[path.name] = stack.enter_context(_opened(path))
            if unknown := sorted(set(given[path.name].keys()) - outputs[path.name]):
                raise DataError(f"{unknown[0]!r} is no output of the vectors", path=path)
        kept = {file: stack.enter_context(_opened(folder / file)) for file in given}
        _require_described(folder, manifest, kept)
        return [_case_result(case, kept, given) for case in manifest["cases"]]


def _require_described(folder: Path, manifest: dict[str, Any], kept: dict[str, Any]) -> None:
    """Raise unless the vectors' outputs are as the manifest describes them."""
    names = {file: set(stored.keys()) for file, stored in kept.items()}
    for case in manifest["cases"]:
        for tensor in case["tensors"]:
            name, file = tensor["name"], tensor["file"]
            if file not in kept:
                continue
            part = kept[file].get_slice(name) if name in names[file] else None
            stored_as = part and (part.get_dtype(), part.get_shape())
            if stored_as != (tensor["dtype"], tensor["shape"]):
                raise DataError(f"damaged: {file} holds no such {name}", key=folder / MANIFEST)


def _case_result(case: dict[str, Any], kept: dict[str, Any], given: dict[str, Any]) -> CaseResult:
    expected = [t for t in case["tensors"] if t["role"] == "output"]
    names = {file: set(stored.keys()) for file, stored in given.items()}
    present = [t["name"] in names.get(t["file"], ()) for t in expected]
    message, worst = "", 0.0
    if not any(present):
        return CaseResult(case["case"], case["operation"], NOT_IMPLEMENTED)
    for tensor, has in zip(expected, present, strict=True):
        name = tensor["name"]
        file = tensor["file"]
        fault, error = (
            _fault(tensor, kept[file].get_tensor(name), given[file]) if has else ("is missing", 0.0)
        )
        worst = max(worst, error)
        message = message or (fault and f"{name.rpartition('/')[2]} {fault}")
    state = FAILED if message else PASSED
    return CaseResult(case["case"], case["operation"], state, message, worst)


def _fault(tensor: dict[str, Any], expected: Array, stored: Any) -> tuple[str, float]:
    """The fault of one result, or ""; and its error as a fraction of the allowed one."""
    part = stored.get_slice(tensor["name"])
    if part.get_dtype() != tensor["dtype"]:  # not loaded: NumPy does not know some
        return f"has dtype {part.get_dtype()}, not {tensor['dtype']}", 0.0
    if part.get_shape() != tensor["shape"]:
        return f"has shape {part.get_shape()}, not {tensor['shape']}", 0.0
    actual: Array = stored.get_tensor(tensor["name"])
    if actual.dtype == bool:  # other programs may write any byte
        actual, expected = actual.view(np.uint8), expected.view(np.uint8)
    if actual.dtype.kind in "iu":
        wrong, worst, allowed = actual != expected, 0.0, np.zeros(actual.shape)
        error = np.where(wrong, np.abs(actual.astype(float) - expected.astype(float)), 0)
    else:
        if not np.isfinite(actual).all():
            return f"is not finite{_at(~np.isfinite(actual))[0]}", 0.0
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        allowed = tensor["atol"] + tensor["rtol"] * np.abs(expected.astype(np.float64))
        wrong = error > allowed
        worst = float((error / (allowed + 1e-300)).max(initial=0))
    if not wrong.any():
        return "", worst
    place, at = _at(wrong)
    return (
        f"differs{place}: actual {actual[at]}, expected {expected[at]}, "
        f"error {error[at]:.3g}, allowed {allowed[at]:.3g}"
    ), worst


def _at(wrong: Array) -> tuple[str, tuple[int, ...]]:
    """The first index, as text and as a tuple; a scalar has none."""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (f" at {list(at)}" if at else ""), at


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, with its faults as a ``DataError``."""
    try:
        require_regular_file(path)
        stored = safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or f"damaged or cut off ({error})"
        raise DataError(f"cannot read: {reason}", path=path) from error
    with stored as open_file:
        yield open_file


def _load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of this format in any version."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        reason = f"{error.strerror}; `refinedet vectors write` makes such a folder"
        raise DataError(f"cannot read: {reason}", path=path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=path) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"not a manifest of the format {FORMAT!r}", path=path)
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of this version, with every field that is read."""
    path = folder / MANIFEST
    manifest = _load_manifest(folder)
    if manifest.get("version") != VERSION:
        version = repr(manifest.get("version"))[:20]
        raise DataError(
            f"version {version}, expected {VERSION}; write the vectors again", path=path
        )
    try:
        for file, known in manifest["files"].items():
            _require(Path(file).name == file and isinstance(known["sha256"], str), file)
        for case in manifest["cases"]:
            _require(isinstance(case["case"], str), "a case's name")
            _require(isinstance(case["operation"], str), case["case"])
            roles = [tensor["role"] for tensor in case["tensors"]]
            _require("output" in roles, f"{case['case']}: no output")
            for tensor in case["tensors"]:
                _require(tensor["file"] in manifest["files"], f"{case['case']}: its file")
                _require(tensor["dtype"] in DTYPES.values(), f"{case['case']}: its dtype")
                _require(isinstance(tensor["name"], str), f"{case['case']}: a tensor's name")
                _require(isinstance(tensor["shape"], list), f"{case['case']}: a shape")
                for key in ("atol", "rtol") if tensor["role"] == "output" else ():
                    good = math.isfinite(tensor[key]) and tensor[key] >= 0
                    _require(good, f"{tensor['name']}: {key}")
    except (AttributeError, DataError, KeyError, OverflowError, TypeError) as error:
        reason = f"a field is missing: {error}" if isinstance(error, KeyError) else error
        raise DataError(f"damaged: {reason}", path=path) from error
    return manifest


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise DataError(what)
