"""ResNet101's weights: of the authors, of ImageNet's classifiers, of the model zoo in and out."""

import math

import numpy as np
import pytest
from helpers import refused as refused_command
from safetensors.numpy import load_file

from refinedet.errors import CheckpointError, UsageError
from refinedet.models.checkpoint import load_checkpoint, write_checkpoint
from refinedet.models.foreign import modelzoo, resnet
from refinedet.models.foreign.import_weights import import_weights, renamed, with_backbone
from refinedet.models.foreign.mindspore_ckpt import read_ckpt
from refinedet.models.foreign.weights_file import read_weights
from refinedet.settings import resolve
from refinedet.spec.config import replace
from refinedet.spec.network import forward, initial_parameters, parameter_table
from refinedet.spec.presets import preset

from . import zoo
from .resnet import (
    PAPER,
    ZOO,
    caffe_forward,
    caffe_layers,
    drawn,
    torchvision_state,
    torchvision_trunk,
    zoo_forward,
    zoo_state,
)
from .test_commands import Still
from .test_damage import cannot_read
from .writers import SMALL, caffemodel, random_parameters, write_zip
from .writers import caffe_layers as vgg_layers

NAMES = ("a", "b", "c")
SET = [part for text in SMALL for part in ("--set", text)]
ZOO_SMALL = ["model.network.width=0.03125", "model.image_size=[64, 64]"]
ZOO_SET = [part for text in ZOO_SMALL for part in ("--set", text)]
WANTED = drawn(PAPER)
ZOO_WANTED = drawn(ZOO)
STATE = zoo_state(ZOO_WANTED)
AT_3X3 = "model.network.bottleneck_stride=3x3"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-2, 2, (2, 3, 64, 64)).astype(np.float32)


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
        assert actual[name].dtype == np.float32


def hollow(config):
    """Arrays of the genuine shapes that take no memory."""
    return {p.name: np.broadcast_to(np.float32(0), p.shape) for p in parameter_table(config)}


def classifier(parameters):
    """The trunk's layers that an ImageNet classifier has."""
    extra = ("backbone.res6_1", "arm", "odm", "tcb")
    return {n: v for n, v in parameters.items() if not n.startswith(extra) and "l2" not in n}


def trained(state, statistics):
    return sum(math.prod(np.shape(v)) for n, v in state.items() if not n.endswith(statistics))


# ---- names at full size -----------------------------------------------------------------


@pytest.mark.parametrize("size", [320, 512])
def test_every_name_of_the_authors_network(size):
    full = hollow(preset(f"refinedet_resnet101_{size}"))
    assert resnet.CAFFE.names.keys() == full.keys()
    layers = caffe_layers(full)
    kinds = [kind for *_, kind in layers]
    heads = 16
    assert kinds.count("BatchNorm") == kinds.count("Scale") == 104 + 4 + 15 + 8 * 4
    assert kinds.count("Convolution") == kinds.count("BatchNorm") + heads
    blobs = {}
    for name, arrays, kind in layers:
        arrays = arrays[:2] if kind == "BatchNorm" else arrays
        blobs |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
    assert set(resnet.CAFFE.names.values()) == blobs.keys()
    statistics = {f"{name}/{i}" for name, _, kind in layers if kind == "BatchNorm" for i in (0, 1)}
    assert trained(blobs, tuple(statistics)) == 82_451_588
    assert blobs["resres4b22_relu_inter_branch1/0"].shape == (1024, 1024, 1, 1)
    assert blobs["resP3_inter_mbox_conf/0"].shape == (243, 1024, 3, 3)


def test_every_name_of_torchvisions():
    full = classifier(hollow(preset("refinedet_resnet101_320")))
    assert resnet.TORCHVISION.names.keys() == full.keys()
    state = torchvision_state(full, classes=1000)
    assert len(state) == 626
    ignored = {name for name in state if resnet.TORCHVISION.is_ignored(name)}
    assert len(ignored) == 104 + 2
    assert set(resnet.TORCHVISION.names.values()) == state.keys() - ignored
    assert trained(state, ("running_mean", "running_var", "num_batches_tracked")) == 44_549_160


def test_every_name_of_the_zoos():
    full = hollow(preset("modelzoo_resnet101_320"))
    state = zoo_state(full)
    assert len(state) == 672
    assert modelzoo.RESNET101.names.keys() == full.keys()
    assert set(modelzoo.RESNET101.names.values()) == state.keys()
    assert trained(state, ("moving_mean", "moving_variance")) == 60_803_844
    assert state["network.tcb.tcb1.0.weight"].shape == (1024,)
    assert state["network.backbone.extra.conv2.weight"].shape == (32, 32, 3, 3)


# ---- the authors' detector --------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 999.98236])
def test_a_detector_computes_what_it_computed_in_caffe(path, images, factor):
    """Mean and variance are stored times a factor."""
    layers = caffe_layers(WANTED, factor)
    path.write_bytes(caffemodel(layers))
    checkpoint, line = import_weights(path, None, NAMES, SMALL)
    count = len(parameter_table(PAPER))
    assert line == (
        f"RefineDet or ResNet101 of Caffe, 3 classes, 64x64: {count} of {count} tensors from {path}"
    )
    assert checkpoint.settings == resolve("refinedet_resnet101_320", None, SMALL, NAMES)
    assert checkpoint.parameters.keys() == WANTED.keys()
    for name, value in checkpoint.parameters.items():
        np.testing.assert_allclose(value, WANTED[name], rtol=3e-7, err_msg=name)
    actual = forward(checkpoint.parameters, images, checkpoint.config)[0]
    for mine, theirs in zip(actual, caffe_forward(layers, images), strict=True):
        assert theirs.std() > 1e-2
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_a_factor_of_0_means_that_nothing_was_seen(path):
    path.write_bytes(caffemodel(caffe_layers(WANTED, 0.0)))
    actual = import_weights(path, None, NAMES, SMALL)[0].parameters
    same(actual, {n: v * ("moving" not in n) for n, v in WANTED.items()})


def test_the_preset_of_512_and_the_classes_of_coco(path, run, tmp_path):
    path.write_bytes(caffemodel(caffe_layers(drawn(replace(PAPER, num_classes=81)))))
    output = tmp_path / "coco.safetensors"
    arguments = ("--output", output, "--preset", "refinedet_resnet101_512")
    assert run("weights", "import", path, *arguments, *SET)[0] == 0
    settings = load_checkpoint(output).settings
    assert settings.class_names[0] == "person"
    assert settings.model.schedule.milestones == (400_000, 480_000)
    assert (settings.model.image.channels, settings.model.image.mean[0]) == ("BGR", 104.0)
    refused_command(
        run("weights", "import", path, *arguments[:3], "refinedet_vgg16_320", *SET), "misfits"
    )
    plain = tmp_path / "plain.safetensors"
    assert run("weights", "export", "--model", output, "--output", plain)[0] == 0
    same(load_file(plain), load_checkpoint(output).parameters)
    again = tmp_path / "again.safetensors"
    assert run("weights", "import", plain, "--output", again)[0] == 0
    assert again.read_bytes() == output.read_bytes()
    refused_command(
        run("weights", "export", "--model", output, "--output", plain, "--names", "port"),
        "--names: RefineDet of the PyTorch port has no ",
    )


def changed(layers, name, change):
    return [(n, change(blobs) if n == name else blobs, kind) for n, blobs, kind in layers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blobs: blobs[:2], "'bn_conv1': 2 blobs, expected 3: mean, variance, their factor"),
        (lambda blobs: [*blobs, *blobs], "'bn_conv1': 6 blobs, expected 3"),
        (lambda blobs: [*blobs[:2], np.zeros(2, "<f4")], "'bn_conv1': its factor .* 2 numbers"),
        (lambda blobs: [*blobs[:2], np.zeros(0, "<f4")], "'bn_conv1': its factor .* 0 numbers"),
        (lambda blobs: [*blobs[:2], np.full(1, -1, "<f4")], "'bn_conv1': its factor is -1"),
        (lambda blobs: [*blobs[:2], np.full(1, np.nan, "<f4")], "'bn_conv1': its factor is nan"),
        (lambda blobs: [*blobs[:2], np.full(1, np.inf, "<f4")], "'bn_conv1': its factor is inf"),
    ],
    ids=range(7),
)
def test_factors_that_are_none(path, change, message):
    path.write_bytes(caffemodel(changed(caffe_layers(WANTED), "bn_conv1", change)))
    cannot_read(path, message)


def test_misfits_are_listed(path):
    layers = caffe_layers(WANTED)

    def attempt(changed_layers, message):
        path.write_bytes(caffemodel(changed_layers))
        with pytest.raises(CheckpointError, match=message) as caught:
            import_weights(path, None, NAMES, SMALL)
        assert "\n" not in str(caught.value)

    attempt([row for row in layers if row[0] != "bnP4_inter_branch1"], r"2 misfits: .*odm\.1\.sha")
    small = changed(layers, "bn_conv1", lambda blobs: [blobs[0][:0], *blobs[1:]])
    attempt(small, r"1 misfit: backbone\.conv1\.moving_mean has shape \(0,\), expected \(1,\)")
    for little in (np.full(1, 1e-45, "<f4"), np.full(1, 1e-300)):
        tiny = changed(layers, "bn_conv1", lambda blobs, factor=little: [*blobs[:2], factor])
        attempt(tiny, r"2 misfits: backbone\.conv1\.moving_mean is not finite")
    biased = changed(layers, "conv1", lambda blobs: [*blobs, np.zeros(1, "<f4")])
    attempt(biased, r"1 misfit: conv1/1 is unexpected")
    path.write_bytes(caffemodel(caffe_layers(WANTED)))
    with pytest.raises(CheckpointError, match=r"misfits: .*nothing was loaded"):
        import_weights(path, "refinedet_vgg16_320", NAMES, SMALL)


def test_damage_anywhere(path):
    """A line or a file that still reads: never another exception."""
    whole = caffemodel(caffe_layers(WANTED, 999.98236))
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        turned = bytearray(whole)
        turned[place] ^= 1 << int(rng.integers(8))
        for content in (bytes(turned), whole[:place]):
            path.write_bytes(content)
            try:
                _ = read_weights(path).parameters
            except CheckpointError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 600


def test_show(run, path):
    path.write_bytes(caffemodel(caffe_layers(WANTED, 4.0)))
    lines = [line.split() for line in run("weights", "show", path)[1].splitlines()]
    assert ["bn4b22_branch2c/1", "float32", "16", "backbone.res4_23.conv3.moving_variance"] in lines
    assert not [line for line in lines if line[0].endswith("/2")]
    count = str(len(parameter_table(PAPER)))
    assert lines[-1] == [count, "tensors,", count, "known", "here"]


# ---- a classifier's trunk ---------------------------------------------------------------


def fresh_settings(*more, name="refinedet_resnet101_320"):
    return resolve(name, None, [*SMALL, *more], ("a",))


def test_the_classifier_of_caffe_gives_its_layers_to_the_trunk(path):
    path.write_bytes(caffemodel(caffe_layers(classifier(WANTED), 1.0, classifier=True)))
    settings = fresh_settings()
    actual, line = with_backbone(path, settings)
    fresh = initial_parameters(settings.model, settings.input.seed)
    same(actual, {**fresh, **classifier(WANTED)})
    assert line == (
        f"520 of 540 tensors of the backbone are from {path} (RefineDet or ResNet101 of Caffe); "
        f"newly initialised: {', '.join(sorted(n for n in fresh if 'res6_1' in n)[:8])}, ..."
    )
    path.write_bytes(caffemodel(caffe_layers(classifier(WANTED), 1.0, classifier=True)[:-4]))
    with pytest.raises(CheckpointError, match=r"res5_3\.conv3\.weight is missing"):
        with_backbone(path, settings)


def test_the_trunk_of_a_detector(path):
    path.write_bytes(caffemodel(caffe_layers(WANTED)))
    actual, line = with_backbone(path, fresh_settings())
    assert "540 of 540 tensors of the backbone" in line
    assert "trained with" not in line
    for name, value in actual.items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(value, WANTED[name])


def test_a_classifier_in_the_zoos_network(path):
    """Its L2 scales stay fresh too; and its layers are another's."""
    path.write_bytes(caffemodel(caffe_layers(classifier(WANTED), 1.0, classifier=True)))
    settings = fresh_settings("model.network.extra_width=64", name="modelzoo_resnet101_320")
    line = with_backbone(path, settings)[1]
    assert "520 of 542 tensors of the backbone" in line
    assert (
        "; newly initialised: backbone.res3_4.l2_scale, backbone.res4_23.l2_scale, backbone.res6_1"
        in line
    )
    assert line.endswith(
        "; they were trained with other settings: model.image.channels=BGR "
        "model.image.mean=[104.0, 117.0, 123.0] model.image.std=[1.0, 1.0, 1.0] "
        "model.network.bottleneck_stride=1x1 model.network.same_padding=false "
        "model.network.batch_norm_eps=1e-05"
    )


def test_torchvisions_trunk_and_its_settings(path, images):
    """With the settings in the line, it computes what torchvision computes."""
    state = torchvision_state(classifier(WANTED))
    write_zip(path, state)
    _, line = with_backbone(path, fresh_settings())
    note = line.partition("; they were trained with other settings: ")[2]
    assert note == (
        "model.image.channels=RGB model.image.mean=[123.675, 116.28, 103.53] "
        "model.image.std=[58.395, 57.12, 57.375] "
        "model.network.bottleneck_stride=3x3 model.network.pool_centred=true"
    )
    assignments = [part.replace(",", ", ") for part in note.replace(", ", ",").split(" ")]
    settings = fresh_settings(*assignments)
    actual, line = with_backbone(path, settings)
    assert "520 of 540 tensors of the backbone" in line
    assert "trained with" not in line
    lively = {**drawn(replace(PAPER, num_classes=2), 5), **classifier(actual)}
    outputs = forward(lively, images, settings.model)[0]
    expected = caffe_forward(caffe_layers(lively), images, torchvision_trunk(state, images))
    for mine, theirs in zip(outputs, expected, strict=True):
        assert theirs.std() > 1e-2
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_training_from_torchvisions_trunk(run, tmp_path, path, noise, monkeypatch):
    """The command of docs/weights.md."""
    backend = Still()
    monkeypatch.setattr("refinedet.backends.registry.find_backend", lambda *_: backend)
    rows = [f"{r.path.name} 2,3,30,40,{r.labels[0]}" for r in noise.records]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    data = ("--layout", "text", "--annotations", tmp_path / "list.txt", "--classes", "a,b")
    data = (*data, "--images", noise.records[0].path.parent, "--run", tmp_path / "run")
    steps = ("--set", "model.schedule.steps=1", "--set", "model.schedule.milestones=[1]")
    state = torchvision_state(classifier(WANTED))
    write_zip(path, state)
    status, out, err = run(
        *("train", "--preset", "refinedet_resnet101_320", "--backbone", path),
        *("--set", "model.image.channels=RGB"),
        *("--set", "model.image.mean=[123.675, 116.28, 103.53]"),
        *("--set", "model.image.std=[58.395, 57.12, 57.375]"),
        *("--set", AT_3X3, "--set", "model.network.pool_centred=true"),
        *(*data, *SET, *steps),
    )
    assert status == 0, err
    assert "520 of 540 tensors of the backbone" in out
    assert "trained with other" not in out
    last = "backbone.res5_3.conv3.moving_variance"
    np.testing.assert_array_equal(backend.began[last], state["layer4.2.bn3.running_var"])


def test_a_trunk_that_was_imported_keeps_its_settings(path, tmp_path):
    """A detector around torchvision's trunk strides as torchvision, whoever reads it."""
    write_zip(path, torchvision_state(classifier(WANTED)))
    partial = ("tcb", "arm", "odm", "backbone.res6_1")
    checkpoint, _ = import_weights(path, None, ("a",), SMALL, partial)
    net = checkpoint.config.network
    assert (net.bottleneck_stride, net.same_padding, net.pool_centred) == ("3x3", False, True)
    own = tmp_path / "own.safetensors"
    write_checkpoint(own, checkpoint)
    _, line = with_backbone(own, fresh_settings())
    assert line.endswith(f"{AT_3X3} model.network.pool_centred=true")


def test_the_trunk_of_another_network_is_refused(path):
    path.write_bytes(caffemodel(caffe_layers(classifier(WANTED), 1.0, classifier=True)))
    vgg = resolve("refinedet_vgg16_320", None, SMALL, ("a",))
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight is unexpected"):
        with_backbone(path, vgg)
    path.write_bytes(caffemodel(vgg_layers(random_parameters())))
    with pytest.raises(CheckpointError, match=r"backbone\.conv1_1\.weight is unexpected"):
        with_backbone(path, fresh_settings())


# ---- the model zoo's --------------------------------------------------------------------


@pytest.mark.parametrize("size", [320, 512])
def test_a_detector_computes_what_it_computed_in_the_zoo(path, images, size):
    path.write_bytes(zoo.ckpt(zoo.training(STATE)))
    name = f"modelzoo_resnet101_{size}"
    checkpoint, line = import_weights(path, None if size == 320 else name, NAMES, ZOO_SMALL)
    assert line.startswith("RefineDet ResNet101 of the MindSpore model zoo, 3 classes, 64x64: 672 ")
    dropped = len(zoo.training(STATE)) - len(STATE)
    assert line.endswith(f"; {dropped} others, which a detector does not need, are dropped")
    same(checkpoint.parameters, ZOO_WANTED)
    assert checkpoint.settings == resolve(name, None, ZOO_SMALL, NAMES)
    actual = forward(checkpoint.parameters, images, checkpoint.config)[0]
    for field, mine, theirs in zip(actual._fields, actual, zoo_forward(STATE, images), strict=True):
        theirs = theirs[..., list(zoo.ORDER)] if field.endswith("offsets") else theirs
        assert theirs.std() > 1e-3
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_the_zoos_names_of_other_versions(path):
    inside = {n.replace("network.backbone", "network.arm.backbone"): v for n, v in STATE.items()}
    for state in (STATE, inside):
        for prefix in ("network.", ""):
            named = {prefix + n.removeprefix("network."): a for n, a in state.items()}
            path.write_bytes(zoo.ckpt(named))
            same(read_weights(path).parameters, ZOO_WANTED)


def test_the_zoos_trunk_alone(path):
    path.write_bytes(zoo.ckpt(STATE))
    settings = resolve("modelzoo_resnet101_320", None, ZOO_SMALL, ("x",))
    actual, line = with_backbone(path, settings)
    assert "542 of 542 tensors of the backbone" in line
    assert "trained with" not in line
    for name, array in actual.items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(array, ZOO_WANTED[name])


def test_out_and_in_again(run, tmp_path, path):
    path.write_bytes(zoo.ckpt(STATE))
    first, out = tmp_path / "first.safetensors", tmp_path / "out.ckpt"
    common = ("--preset", "modelzoo_resnet101_512", *ZOO_SET, "--classes", "a,b,c")
    assert run("weights", "import", path, "--output", first, *common)[0] == 0
    export = ("weights", "export", "--model", first, "--names", "modelzoo", "--output", out)
    assert run(*export)[:2] == (0, f"wrote {out}: 672 tensors, modelzoo names\n")
    assert out.read_bytes() == zoo.ckpt(read_ckpt(memoryview(out.read_bytes())))
    same(read_ckpt(memoryview(out.read_bytes())), STATE)
    again = tmp_path / "again.safetensors"
    assert run("weights", "import", out, "--output", again, *common)[0] == 0
    assert again.read_bytes() == first.read_bytes()


def test_names_that_fit_no_detector_of_the_zoo(tmp_path):
    with pytest.raises(UsageError, match=r"RefineDet ResNet101 of .* has no tcb\."):
        renamed(WANTED, "modelzoo")
    lost = {n: a for n, a in ZOO_WANTED.items() if n != "backbone.res4_23.l2_scale"}
    with pytest.raises(UsageError, match=r"res4_23\.l2_scale, which this detector lacks"):
        renamed(lost, "modelzoo")
    with pytest.raises(UsageError, match="the PyTorch port has no "):
        renamed(ZOO_WANTED, "port")
