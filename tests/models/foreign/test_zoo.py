"""Checkpoints of the MindSpore model zoo: in, the same network, out, the same tensors."""

import zlib

import numpy as np
import pytest
from helpers import refused as refused_command

from refinedet.errors import CheckpointError, UsageError
from refinedet.models.checkpoint import load_checkpoint
from refinedet.models.foreign.import_weights import import_weights, renamed, with_backbone
from refinedet.models.foreign.mindspore_ckpt import read_ckpt, written_ckpt
from refinedet.models.foreign.modelzoo import VGG16 as ZOO
from refinedet.models.foreign.weights_file import read_weights
from refinedet.models.open import open_model
from refinedet.settings import resolve
from refinedet.spec.config import replace
from refinedet.spec.network import forward, initial_parameters, parameter_table
from refinedet.spec.presets import PRESETS, preset

from .test_damage import cannot_read
from .writers import SMALL, field, random_parameters, varint, write_safetensors
from .zoo import CONFIG, ORDER, ckpt, proto, training, value, zoo_forward, zoo_state

PRESET = "modelzoo_vgg16_320"
SET = [part for text in SMALL for part in ("--set", text)]
NAMES = ("a", "b", "c")


def parameters(config=CONFIG):
    """Drawn; variances above 0."""
    drawn = random_parameters(config)
    return {n: abs(v) + 0.5 if n.endswith("variance") else v for n, v in drawn.items()}


WANTED = parameters()
STATE = zoo_state(WANTED)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "refinedet.ckpt"


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


def test_every_name_at_the_genuine_count_and_size():
    config = preset(PRESET)
    shapes = {p.name: np.broadcast_to(np.float32(0), p.shape) for p in parameter_table(config)}
    assert len(STATE) == 149
    assert ZOO.names.keys() == shapes.keys()
    assert set(ZOO.names.values()) == STATE.keys()
    full = {name: array.shape for name, array in zoo_state(shapes).items()}
    for head in ("arm.multi_box.multi_loc_layers", "odm.multi_box.multi_cls_layers"):
        assert full[f"network.{head}.0.0.weight"][1:] == (1, 3, 3)
    assert full["network.tcb.tcb0.0.weight"] == (512,)
    assert full["network.backbone.fc6.weight"] == (1024, 512, 3, 3)
    assert full["network.odm.multi_box.multi_cls_layers.3.3.weight"] == (243, 256, 1, 1)


@pytest.mark.parametrize("size", [320, 512])
def test_a_detector_computes_what_it_computed_in_the_zoo(path, size):
    path.write_bytes(ckpt(STATE))
    checkpoint, line = import_weights(path, f"modelzoo_vgg16_{size}", NAMES, SMALL)
    assert line.startswith("RefineDet of the MindSpore model zoo, 3 classes, 64x64: 149 of 149")
    assert "dropped" not in line
    same(checkpoint.parameters, WANTED)
    images = np.random.default_rng(1).uniform(-2, 2, (2, 3, 64, 64)).astype(np.float32)
    expected = zoo_forward(STATE, images)
    actual = forward(checkpoint.parameters, images, checkpoint.config)[0]
    for part in (actual.arm_offsets, actual.odm_offsets, actual.odm_logits):
        assert part.std() > 1e-3
    for mine, theirs in zip(actual, expected, strict=True):
        theirs = (
            theirs[..., list(ORDER)] if theirs.shape[-1] == 4 and mine is not actual[3] else theirs
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    settings = resolve(f"modelzoo_vgg16_{size}", None, SMALL, NAMES)
    assert checkpoint.settings == settings


def test_the_preset_is_the_zoos_if_none_is_given(path):
    path.write_bytes(ckpt(STATE))
    checkpoint, _ = import_weights(path, None, NAMES, SMALL)
    assert checkpoint.settings == resolve(PRESET, None, SMALL, NAMES)
    with pytest.raises(CheckpointError, match=r"misfits: .*; nothing was loaded"):
        import_weights(path, "refinedet_vgg16_320", NAMES, SMALL)


def test_the_classes_of_coco(path):
    expected = parameters(replace(CONFIG, num_classes=81))
    path.write_bytes(ckpt(zoo_state(expected)))
    settings = import_weights(path, None, (), SMALL)[0].settings
    assert len(settings.class_names) == 80
    assert settings.class_names[0] == "person"


def test_eval_takes_it_as_it_is(path):
    """At its genuine size; nothing is computed."""
    config = preset(PRESET)
    zeros = {p.name: np.broadcast_to(np.float32(0), p.shape) for p in parameter_table(config)}
    path.write_bytes(ckpt(zoo_state(zeros)))

    class Keeps:
        def network(self, *arguments):
            return arguments

    made = open_model(Keeps(), path)
    assert made.network[0] == config
    for name, zero in zeros.items():
        assert made.network[1][name].shape == zero.shape
    assert len(made.class_names) == 80


def test_names_of_other_versions(path):
    """With the trunk inside the ARM, and without the training's ``network.``."""
    inside = {n.replace("network.backbone", "network.arm.backbone"): v for n, v in STATE.items()}
    for state in (STATE, inside):
        for prefix in ("network.", ""):
            path.write_bytes(
                ckpt({prefix + n.removeprefix("network."): a for n, a in state.items()})
            )
            same(import_weights(path, None, NAMES, SMALL)[0].parameters, WANTED)
    both = {**STATE, "backbone.fc6.weight": STATE["network.backbone.fc6.weight"]}
    path.write_bytes(ckpt(both))
    cannot_read(path, r"network.backbone.fc6.weight and backbone.fc6.weight are both backbone.fc6")
    path.write_bytes(ckpt({f"network.{n}": a for n, a in STATE.items()}))
    cannot_read(path, "of an unknown network")


def test_what_the_optimizer_left_is_dropped_and_counted(path):
    path.write_bytes(ckpt(training(STATE)))
    checkpoint, line = import_weights(path, None, NAMES, SMALL)
    assert line.endswith("; 120 others, which a detector does not need, are dropped")
    same(checkpoint.parameters, WANTED)
    for name in ("momentums", "network.moments.x", "epoch_num", "moment"):
        path.write_bytes(ckpt({**training(STATE), name: np.zeros(1, "<f4")}))
        with pytest.raises(CheckpointError, match=rf"1 misfit: {name} is unexpected"):
            import_weights(path, None, NAMES, SMALL)


def test_misfits_are_listed_by_name(path):
    lost = {n: a for n, a in STATE.items() if n != "network.tcb.p3.2.weight"}
    path.write_bytes(ckpt(lost))
    with pytest.raises(CheckpointError, match=r"1 misfit: tcb\.3\.output\.weight is missing"):
        import_weights(path, None, NAMES, SMALL)
    head = "network.arm.multi_box.multi_loc_layers.0.3.bias"
    for bad in (np.zeros(11, "<f4"), np.float32(1), np.zeros((12, 1), "<f4")):
        path.write_bytes(ckpt({**STATE, head: bad}))
        with pytest.raises(CheckpointError, match=r"arm\.0\.offsets\.bias has shape"):
            import_weights(path, None, NAMES, SMALL)


def test_the_trunk_alone(path):
    path.write_bytes(ckpt(training(STATE)))
    settings = resolve(PRESET, None, SMALL, ("x",))
    actual, line = with_backbone(path, settings)
    assert "19 of 19 tensors of the backbone" in line
    for name, array in actual.items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(array, WANTED[name])


def test_slices_halves_and_single_numbers(path):
    path.write_bytes(ckpt(STATE, most=5))
    assert len(path.read_bytes()) > len(ckpt(STATE))
    same(read_weights(path).parameters, WANTED)
    halves = {n: a.astype("<f2") for n, a in STATE.items()}
    path.write_bytes(ckpt(halves))
    actual = read_weights(path).parameters
    np.testing.assert_array_equal(
        actual["backbone.fc6.weight"], halves["network.backbone.fc6.weight"]
    )
    one = read_ckpt(
        memoryview(value("a", proto(np.float32(3), [0])) + value("b", proto(np.zeros(0, "<f4"))))
    )
    assert (one["a"].shape, one["a"].item(), one["b"].shape) == ((), 3, (0,))


def test_a_checksum_is_checked(path):
    data = ckpt(STATE)
    path.write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    same(read_weights(path).parameters, WANTED)
    path.write_bytes(data + b"crc_num" + (zlib.crc32(data) ^ 1).to_bytes(10, "big"))
    cannot_read(path, "a MindSpore checkpoint: its content does not match its checksum")


def test_mindspore_and_this_program_read_each_other(run, tmp_path, path):
    """Both ways, with and without a checksum; what is written is what MindSpore writes."""
    import mindspore

    first, out = tmp_path / "first.safetensors", tmp_path / "out.ckpt"
    saved = [{"name": n, "data": mindspore.Tensor(a)} for n, a in training(STATE).items()]
    for crc in (False, True):
        mindspore.save_checkpoint(saved, str(path), crc_check=crc)
        status, printed, err = run(
            *("weights", "import", path, "--output", first, "--preset", PRESET, *SET),
            *("--classes", "a,b,c"),
        )
        assert (status, err) == (0, "")
        assert "149 of 149 tensors" in printed
        same(load_checkpoint(first).parameters, WANTED)
    arguments = ("--model", first, "--output", out, "--names", "modelzoo")
    assert run("weights", "export", *arguments)[:2] == (
        0,
        f"wrote {out}: 149 tensors, modelzoo names\n",
    )
    loaded = {n: p.asnumpy() for n, p in mindspore.load_checkpoint(str(out)).items()}
    same(loaded, STATE)
    genuine = tmp_path / "genuine.ckpt"
    mindspore.save_checkpoint(
        [{"name": n, "data": mindspore.Tensor(loaded[n])} for n in loaded], str(genuine)
    )
    assert genuine.read_bytes() == out.read_bytes()
    safe = tmp_path / "zoo.safetensors"
    mindspore.save_checkpoint(saved, str(safe).removesuffix(".safetensors"), format="safetensors")
    same(import_weights(safe, None, NAMES, SMALL)[0].parameters, WANTED)


def test_mindspores_transposed_convolution_has_our_layout():
    """(inputs, outputs, rows, columns): 256 x 256 would hide a mistake."""
    import mindspore

    from refinedet.spec.layers import upsample2x2

    layer = mindspore.nn.Conv2dTranspose(3, 5, 2, stride=2, pad_mode="pad", padding=0)
    assert layer.weight.shape == (3, 5, 2, 2)
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    actual = layer(mindspore.Tensor(x)).asnumpy()
    np.testing.assert_allclose(actual, upsample2x2(x, layer.weight.asnumpy()), rtol=1e-4, atol=1e-5)


def test_export_and_again(run, tmp_path, path):
    path.write_bytes(ckpt(STATE))
    first, out = tmp_path / "first.safetensors", tmp_path / "out.ckpt"
    common = ("--preset", "modelzoo_vgg16_512", *SET, "--classes", "a,b,c")
    assert run("weights", "import", path, "--output", first, *common)[0] == 0
    export = ("weights", "export", "--model", first, "--names", "modelzoo", "--output")
    assert run(*export, out)[0] == 0
    same(read_ckpt(memoryview(out.read_bytes())), STATE)
    again, twice = tmp_path / "again.safetensors", tmp_path / "twice.ckpt"
    assert run("weights", "import", out, "--output", again, *common)[0] == 0
    assert again.read_bytes() == first.read_bytes()
    assert run(*export, twice)[0] == 0
    assert twice.read_bytes() == out.read_bytes()
    refused_command(run(*export, tmp_path / "x.safetensors"), "reads only .ckpt files")
    plain = tmp_path / "plain.safetensors"
    canonical = ("weights", "export", "--model", first, "--output", plain)
    assert run(*canonical)[0] == 0
    assert run("weights", "import", plain, "--output", again)[0] == 0
    assert again.read_bytes() == first.read_bytes()
    write_safetensors(plain, WANTED)
    assert run("weights", "import", plain, "--output", again, *common)[0] == 0
    same(load_checkpoint(again).parameters, WANTED)
    refused_command(
        run(*canonical, "--names", "port"), "--names: RefineDet of the PyTorch port has no "
    )


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("modelzoo")])
def test_other_detectors_are_not_written_under_the_zoos_names(name):
    config = replace(preset(name), network={"width": 1 / 64})
    with pytest.raises(UsageError, match="model zoo has no "):
        renamed(initial_parameters(config, 0), "modelzoo")
    short = {n: a for n, a in WANTED.items() if ".output2" not in n}
    with pytest.raises(UsageError, match=r"has tcb\.0\.output2\.weight, which this detector lacks"):
        renamed(short, "modelzoo")


def test_show(run, path):
    path.write_bytes(ckpt({**training(STATE), "tail": np.zeros(2, "<f4")}))
    status, out, _ = run("weights", "show", path)
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert out.startswith(f"{path}: a MindSpore checkpoint; RefineDet of the MindSpore model zoo\n")
    head = "multi_box.multi_cls_layers.3.1.moving_variance"
    assert [
        f"network.arm.{head}",
        "float32",
        "8",
        "arm.3.logits.depthwise.moving_variance",
    ] in lines
    assert ["momentum", "float32", "()", "(not", "used)"] in lines
    assert ["global_step", "int32", "1", "(not", "used)"] in lines
    assert ["tail", "float32", "2", "(unexpected)"] in lines
    assert lines[-1] == ["270", "tensors,", "149", "known", "here"]


# ---- damaged and hostile files ----------------------------------------------------------


def test_cut_off_anywhere(path):
    whole = ckpt(STATE)
    rng = np.random.default_rng(0)
    for cut in [0, 1, 2, 4, 8, 40, len(whole) - 1, *rng.integers(0, len(whole), 40)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError) as caught:
            import_weights(path, None, NAMES, SMALL)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 800
    path.write_bytes(whole[:-1])
    cannot_read(path, "a MindSpore checkpoint: cut off: a field of")


def test_bits_turned_anywhere(path):
    whole = ckpt(STATE)
    rng = np.random.default_rng(0)
    for place in [*range(0, 150), *rng.integers(0, len(whole), 150)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            _ = read_weights(path).parameters
        except CheckpointError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600


TAG = "network.backbone.fc7.weight"
FOUR = field(2, b"Float32") + field(3, b"\0" * 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (value(TAG, field(1, 2**62) + field(1, 4) + FOUR), "its shape is .* it holds 4 numbers"),
        (value(TAG, field(1, 2**64 - 1) + FOUR), "it holds 4 numbers"),
        (value(TAG, field(1, 2**63) + field(1, 0) + field(2, b"Float32")), "it holds 0 numbers"),
        (value(TAG, field(1, 2**40) * 3 + field(1, 0) + field(2, b"Float32")), "0 numbers"),
        (value(TAG, field(1, 4) + field(1, 1) * 5000 + FOUR), "it holds 4 numbers"),
        (value(TAG, field(1, b"\4" + b"\1" * 5000) + FOUR), "it holds 4 numbers"),
        (value(TAG, field(1, b"\xff") + FOUR), "cut off in a number"),
        (value(TAG, field(1, 0) + FOUR), "it holds 4 numbers"),
        (value(TAG, field(1, 4) + field(2, b"Float32") + field(3, b"\0" * 17)), "its shape is 4"),
        (value(TAG, field(1, 4) + field(2, b"str") + field(3, b"\0" * 16)), "has the type 'str'"),
        (value(TAG, field(1, 4) + field(3, b"\0" * 16)), "has the type ''"),
        (value(TAG, field(2, 7)), "a number where a message should be"),
        (value(TAG, varint(3 << 3 | 2) + varint(2**60) + b"abc"), "cut off: a field of"),
        (value(TAG, varint(3 << 3 | 3)), "an unknown kind of field"),
        (field(1, field(1, TAG.encode()) + field(3, b"")), "is not a tensor"),
        (ckpt({"a": STATE[TAG]}) + field(1, field(2, FOUR)), "a value without a tag"),
        (ckpt({"a": STATE[TAG]}) + field(1, 5), "a number where a message should be"),
        (ckpt({TAG: STATE[TAG], "b": STATE[TAG]}) + ckpt({TAG: STATE[TAG]}), "is there twice"),
        (ckpt({TAG: STATE[TAG]}) * 2, "it holds 512 numbers"),
        (ckpt({TAG: STATE[TAG]}) + value(TAG, field(1, 4) + FOUR), "slices do not agree"),
        (varint(0x0A) + varint(2**50) + field(1, TAG.encode()) + b"\x12", "cut off"),
        (ckpt({"a\nb" * 100: STATE[TAG]}), "of an unknown network"),
    ],
    ids=range(22),
)
def test_files_that_claim_too_much(path, content, message):
    path.write_bytes(content)
    cannot_read(path, message)


def test_what_is_written_is_small_and_ordered():
    assert written_ckpt(STATE) == ckpt(STATE)
    turned = {"a": np.arange(6, dtype=">f4").reshape(2, 3).T}
    np.testing.assert_array_equal(read_ckpt(memoryview(written_ckpt(turned)))["a"], turned["a"])
