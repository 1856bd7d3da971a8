"""Foreign weights: what Caffe, PyTorch and we ourselves wrote becomes the same network."""

import numpy as np
import pytest
from helpers import raises_line

from refinedet.errors import CheckpointError, UsageError
from refinedet.models.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from refinedet.models.foreign.import_weights import import_weights, with_backbone, with_detector
from refinedet.models.foreign.vgg16 import CAFFE, PORT
from refinedet.models.foreign.weights_file import read_weights
from refinedet.settings import resolve
from refinedet.spec.config import replace
from refinedet.spec.network import forward

from .writers import (
    CONFIG,
    SMALL,
    Pickle,
    blob,
    caffe_layers,
    caffemodel,
    port_forward,
    port_state,
    random_parameters,
    reduced_state,
    write_legacy,
    write_safetensors,
    write_zip,
)


def write_caffe(path, parameters, **options):
    path.write_bytes(caffemodel(caffe_layers(parameters), **options))


WRITERS = {
    "caffe": write_caffe,
    "caffe-v1": lambda path, p: write_caffe(path, p, old=True),
    "caffe-unpacked": lambda path, p: write_caffe(path, p, blob=lambda b: blob(b, unpacked=True)),
    "port-zip": lambda path, p: write_zip(path, port_state(p)),
    "port-legacy": lambda path, p: write_legacy(path, port_state(p)),
    "port-safetensors": lambda path, p: write_safetensors(path, port_state(p)),
    "canonical": write_safetensors,
}


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
        assert actual[name].dtype == np.float32


@pytest.mark.parametrize("kind", WRITERS)
def test_a_detector_computes_what_it_computed_where_it_comes_from(tmp_path, kind):
    """Any name of the file will do: the format is recognised by the content."""
    expected = random_parameters()
    path = tmp_path / "weights.bin"
    WRITERS[kind](path, expected)
    checkpoint, _ = import_weights(path, None, ("a", "b", "c"), SMALL)
    same(checkpoint.parameters, expected)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    actual = forward(checkpoint.parameters, images, checkpoint.config)[0]
    assert actual.odm_logits.std() > 1e-3
    for mine, theirs in zip(actual, port_forward(port_state(expected), images), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_images_are_prepared_as_the_weights_want_them(tmp_path):
    path = tmp_path / "x"
    WRITERS["caffe"](path, random_parameters())
    image = import_weights(path, None, (), SMALL)[0].config.image
    assert (image.channels, image.mean) == ("BGR", (104.0, 117.0, 123.0))
    WRITERS["port-zip"](path, random_parameters())
    image = import_weights(path, None, (), SMALL)[0].config.image
    assert (image.channels, image.mean) == ("RGB", (123.0, 117.0, 104.0))
    mine = import_weights(path, None, (), [*SMALL, "model.image.channels=BGR"])[0]
    assert mine.config.image.channels == "BGR"


@pytest.mark.parametrize(
    ("count", "first"), [(21, "aeroplane"), (81, "person"), (4, "class 1"), (2, "class 1")]
)
def test_classes_are_counted_by_the_heads(tmp_path, count, first):
    path = tmp_path / "x"
    WRITERS["caffe"](path, random_parameters(replace(CONFIG, num_classes=count)))
    settings = import_weights(path, None, (), SMALL)[0].settings
    assert settings.model.num_classes == count
    assert len(settings.class_names) == count - 1
    assert settings.class_names[0] == first
    if count == 4:
        with pytest.raises(ValueError, match=r"class_names: has 2 names, but .* detects 3 classes"):
            import_weights(path, None, ("a", "b"), SMALL)


def test_names_are_the_same_for_full_size():
    """The tables know every tensor of the full detectors, and nothing else."""
    expected = set(random_parameters())
    assert CAFFE.names.keys() == expected
    assert PORT.names.keys() == expected
    full = {n: np.zeros(0) for n in expected}
    assert set(PORT.names.values()) == port_state(full).keys()
    theirs = {f"{name}/{i}" for name, blobs in caffe_layers(full) for i in range(len(blobs))}
    assert set(CAFFE.names.values()) == theirs


def test_other_forms_of_a_state_dict(tmp_path):
    expected = random_parameters()
    state = port_state(expected)
    path = tmp_path / "x.pth"
    write_zip(path, {f"module.{n}": v for n, v in state.items()}, folder="RefineDet320_VOC_final")
    same(read_weights(path).parameters, expected)
    wrapped = Pickle()
    wrapped.out += b"}("
    wrapped.text("epoch")
    wrapped.number(7)
    wrapped.text("state_dict")
    wrapped.state(state)
    wrapped.out += b"u"
    write_zip(path, state, wrapped.done())
    same(read_weights(path).parameters, expected)
    old = Pickle().state(state, version="_rebuild_tensor").done()
    write_zip(path, state, old)
    same(read_weights(path).parameters, expected)


def test_double_half_and_turned_tensors(tmp_path):
    expected = random_parameters()
    state = port_state(expected)
    name = "tcb0.0.weight"
    halves = {n: v.astype("<f2") for n, v in state.items()}
    write_zip(tmp_path / "h", halves)
    actual = read_weights(tmp_path / "h")
    assert actual.tensors[name].dtype == np.float16
    np.testing.assert_array_equal(actual.parameters["tcb.0.lateral1.weight"], halves[name])
    doubles = {n: v.astype("<f8") for n, v in state.items()}
    write_zip(tmp_path / "d", doubles)
    same(read_weights(tmp_path / "d").parameters, expected)
    write_caffe(tmp_path / "c", {n: v.astype("<f8") for n, v in expected.items()})
    same(read_weights(tmp_path / "c").parameters, expected)
    turned = dict(state)
    turned[name] = np.ascontiguousarray(state[name].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned[name].flags.c_contiguous
    stored = {n: np.ascontiguousarray(v.transpose(0, 2, 3, 1)) if n == name else v
              for n, v in state.items()}  # fmt: skip
    write_zip(tmp_path / "t", stored, Pickle().state(turned).done())
    same(read_weights(tmp_path / "t").parameters, expected)


def classifier_files():
    """Files of an ImageNet classifier, of the same trunk."""
    parameters = random_parameters()
    reduced = reduced_state(parameters)
    layers = [(n, b) for n, b in caffe_layers(parameters) if n[:3] in ("con", "fc6", "fc7")]
    layers = [(n, b) for n, b in layers if "mbox" not in n and "6_" not in n and "norm" not in n]
    assert len(layers) == 15
    layers.append(("fc8", [np.zeros((10, 16, 1, 1)), np.zeros(10)]))
    return {
        "caffe": lambda path: path.write_bytes(caffemodel(layers)),
        "caffe-v1": lambda path: path.write_bytes(caffemodel(layers, old=True)),
        "reduced-legacy": lambda path: write_legacy(path, reduced),
        "reduced-zip": lambda path: write_zip(path, reduced),
    }


@pytest.mark.parametrize("kind", ["caffe", "caffe-v1", "reduced-legacy", "reduced-zip"])
def test_a_classifier_gives_its_layers_to_the_trunk(tmp_path, kind):
    classifier_files()[kind](tmp_path / "x")
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    actual, line = with_backbone(tmp_path / "x", settings)
    source = random_parameters()
    for name, value in actual.items():
        layer = name.rpartition(".")[0]
        from_file = layer.startswith("backbone.") and "6_" not in layer and "l2" not in name
        assert np.array_equal(value, source[name]) == from_file, name
    assert "30 of 36 tensors of the backbone" in line
    assert (
        "newly initialised: backbone.conv4_3.l2_scale, backbone.conv5_3.l2_scale, backbone.conv6_1"
        in line
    )


def test_a_classifier_is_no_detector(tmp_path):
    for kind, write in classifier_files().items():
        write(tmp_path / kind)
        with pytest.raises(
            CheckpointError, match="has no heads; only a training can begin with it"
        ):
            import_weights(tmp_path / kind)


def test_a_trunk_is_taken_from_a_detector_with_other_blocks(tmp_path):
    """The zoo's way has no biases in its blocks, and others in its heads."""
    own = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    expected = random_parameters(own.model)
    write_checkpoint(tmp_path / "own", Checkpoint(own, expected, None, 3))
    fields = ("tcb=relu_sum_conv_conv", "heads=separable")
    other = [*SMALL, *(f"model.network.{field}" for field in fields)]
    settings = resolve("refinedet_vgg16_320", None, other, ("a",))
    actual, line = with_backbone(tmp_path / "own", settings)
    assert "36 of 36" in line
    assert all(
        np.array_equal(actual[n], expected[n]) for n in expected if n.startswith("backbone.")
    )


def test_torchvision_is_thinned(tmp_path):
    rng = np.random.default_rng(0)
    reduced = reduced_state(random_parameters())
    state = {f"features.{n}": v for n, v in reduced.items() if not n.startswith("3")}
    inputs, outputs = 8, 16
    fc6 = rng.uniform(-1, 1, (4 * outputs, inputs * 49)).astype(np.float32)
    fc7 = rng.uniform(-1, 1, (4 * outputs, 4 * outputs)).astype(np.float32)
    bias = rng.uniform(-1, 1, 4 * outputs).astype(np.float32)
    state |= {"classifier.0.weight": fc6, "classifier.0.bias": bias}
    state |= {"classifier.3.weight": fc7, "classifier.3.bias": bias[::-1].copy()}
    state |= {"classifier.6.weight": np.zeros((10, 64), np.float32)}
    state |= {"classifier.6.bias": np.zeros(10, np.float32)}
    write_zip(tmp_path / "vgg16.pth", state)
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    actual, line = with_backbone(tmp_path / "vgg16.pth", settings)
    thin = actual["backbone.fc6.weight"]
    assert thin.shape == (outputs, inputs, 3, 3)
    # Output 4 o, channel c, row 3 r, column 3 k of the 7 x 7.
    assert thin[2, 5, 1, 2] == fc6[8, 5 * 49 + 3 * 7 + 6]
    assert actual["backbone.fc7.weight"][3, 7, 0, 0] == fc7[12, 28]
    np.testing.assert_array_equal(actual["backbone.fc6.bias"], bias[::4])
    np.testing.assert_array_equal(actual["backbone.conv1_1.weight"], state["features.0.weight"])
    assert "model.image.channels=RGB model.image.mean=[123.675, 116.28, 103.53]" in line


def test_the_trunk_of_a_detector_whatever_its_classes(tmp_path):
    expected = random_parameters()
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    for kind in WRITERS:
        WRITERS[kind](tmp_path / kind, expected)
        actual, line = with_backbone(tmp_path / kind, settings)
        assert "36 of 36" in line
        for name, value in actual.items():
            assert np.array_equal(value, expected[name]) == name.startswith("backbone."), name
    names = resolve("refinedet_vgg16_320", None, SMALL, ("x", "y", "z"))
    write_checkpoint(tmp_path / "own", Checkpoint(names, expected, None, 3))
    actual, _ = with_backbone(tmp_path / "own", settings)
    np.testing.assert_array_equal(actual["backbone.fc6.weight"], expected["backbone.fc6.weight"])


def cannot_import(call, message):
    with raises_line(CheckpointError, match=message):
        call()


def test_misfits_are_listed_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "x"
    state = port_state(random_parameters())

    def attempt(partial=(), **changes):
        changed = {**state, **changes}
        write_zip(path, {n: v for n, v in changed.items() if v is not None})
        return import_weights(path, None, ("a", "b", "c"), SMALL, partial)

    lost = {"extras.0.weight": None, "extras.0.bias": None}
    cannot_import(
        lambda: attempt(**lost),
        r"x: RefineDet of the PyTorch port: 2 misfits: backbone\.conv6_1\.weight is missing; "
        r"backbone\.conv6_1\.bias is missing; nothing was loaded",
    )
    cannot_import(lambda: attempt(tail=np.zeros(1, "<f4")), r"1 misfit: tail is unexpected")
    cannot_import(
        lambda: attempt(**{"vgg.0.bias": np.zeros(2, "<f4")}),
        r"backbone\.conv1_1\.bias has shape \(2,\), expected \(1,\)",
    )
    cannot_import(
        lambda: attempt(**{"vgg.0.bias": np.full(1, np.nan, "<f4")}), "conv1_1.bias is not finite"
    )
    cannot_import(
        lambda: attempt(**{"vgg.0.bias": np.full(1, 1e300)}), "conv1_1.bias is not finite"
    )
    gone = dict.fromkeys([n for n in state if n.startswith("odm")])
    cannot_import(lambda: attempt(**gone), r"16 misfits: .*; and 11 more; nothing was loaded")
    cannot_import(lambda: attempt(["odm.0"], **gone), "12 misfits")
    with pytest.raises(UsageError, match="matches none of the tensors that are loaded"):
        attempt(["odm.9"], **gone)
    checkpoint, line = attempt(["odm"], **gone)
    assert f"{len(state) - len(gone)} of {len(state)} tensors from" in line
    np.testing.assert_array_equal(
        checkpoint.parameters["arm.0.offsets.weight"], state["arm_loc.0.weight"]
    )
    attempt(["odm.*.weight", "odm.?.*.bias"], **gone)
    attempt(["backbone.conv6_1"], **lost)
    attempt(["backbone.conv1_1.bias"], **{"vgg.0.bias": np.zeros(2, "<f4")})
    cannot_import(lambda: attempt(["odm"], **lost), "2 misfits")


def test_a_trunk_with_a_gap_is_not_loaded(tmp_path):
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    state = reduced_state(random_parameters())
    del state["31.weight"]
    write_legacy(tmp_path / "x", state)
    cannot_import(
        lambda: with_backbone(tmp_path / "x", settings), r"1 misfit: .*fc6\.weight is missing"
    )
    with_backbone(tmp_path / "x", settings, ["backbone.fc6"])
    wider = resolve("refinedet_vgg16_320", None, ["model.network.width=0.03125"], ("a",))
    write_legacy(tmp_path / "x", reduced_state(random_parameters()))
    cannot_import(lambda: with_backbone(tmp_path / "x", wider), r"30 misfits: .*; and 25 more")
    scratch = resolve("refinedet_quarter_320", None, ["model.network.width=0.015625"], ("a",))
    cannot_import(lambda: with_backbone(tmp_path / "x", scratch), r"unexpected.*; and \d+ more")
    detector = port_state(random_parameters())
    del detector["extras.1.bias"]
    write_zip(tmp_path / "x", detector)
    cannot_import(lambda: with_backbone(tmp_path / "x", settings), r"conv6_2\.bias is missing")


def test_networks_that_are_not_known(tmp_path):
    write_zip(tmp_path / "x", {"layer1.0.conv4.weight": np.zeros((2, 2), "<f4")})
    cannot_import(lambda: read_weights(tmp_path / "x"), r"x: .*1 tensors of an unknown network")
    (tmp_path / "y").write_bytes(caffemodel([("res2a_branch3", [np.zeros((2, 2))])]))
    cannot_import(lambda: read_weights(tmp_path / "y"), r"a caffemodel with 1 tensors of")


def test_what_was_imported_is_a_checkpoint(tmp_path):
    WRITERS["caffe"](tmp_path / "x", random_parameters())
    checkpoint, _ = import_weights(tmp_path / "x", None, (), SMALL)
    write_checkpoint(tmp_path / "y.safetensors", checkpoint)
    back = load_checkpoint(tmp_path / "y.safetensors")
    same(back.parameters, random_parameters())
    assert back.momentum_buffers is None


def test_a_whole_detector_begins_a_run_whatever_its_classes(tmp_path):
    """COCO to VOC: all but the class logits, which are of another shape."""
    expected = random_parameters()
    settings = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    for kind in WRITERS:
        path = tmp_path / kind
        WRITERS[kind](path, expected)
        cannot_import(lambda path=path: with_detector(path, settings), r"8 misfits: odm\.0\.logits")
        actual, line = with_detector(path, settings, ["odm.*.logits"])
        assert "90 of 98 tensors of the detector are from" in line
        assert "newly initialised: odm.0.logits.bias, odm.0.logits.weight" in line
        for name, value in actual.items():
            assert np.array_equal(value, expected[name]) != ("odm" in name and "logits" in name)
    names = resolve("refinedet_vgg16_320", None, SMALL, ("x", "y", "z"))
    write_checkpoint(tmp_path / "own", Checkpoint(names, expected, None, 3))
    same(with_detector(tmp_path / "own", names)[0], expected)
