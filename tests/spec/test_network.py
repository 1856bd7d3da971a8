"""The network: published figures, and a second opinion on the whole."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.architecture import sources
from refinedet.spec.config import replace
from refinedet.spec.network import (
    Parameter,
    check_parameters,
    forward,
    forward_and_backward,
    initial_parameters,
    parameter_count,
    parameter_table,
    trained_parameters,
)
from refinedet.spec.presets import preset

from .strategies import refused, slopes, tiny

VGG = preset("refinedet_vgg16_320")
NAMES = ("arm_offsets", "arm_logits", "odm_offsets", "odm_logits")


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# The table of parameters


@pytest.mark.parametrize(("classes", "count"), [(81, 36_100_484), (21, 34_440_884)])
def test_published_parameter_counts(classes, count):
    """Counted from the authors' released VGG16 models; they do not depend on the input's size."""
    for name in ("refinedet_vgg16_320", "refinedet_vgg16_512"):
        assert parameter_count(replace(preset(name), num_classes=classes)) == count


def listed(config, wide, inside, heads):
    """The layers from the published tables, in order: name, weight's shape.

    VGG16: arXiv:1409.1556, table 1, D. fc6, fc7, conv6_1, conv6_2, 2x2 upsampling, one 3x3
    convolution a head: the authors' release.
    """
    inputs = 3
    for block, (outputs, count) in enumerate(
        zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True), start=1
    ):
        for layer in range(1, count + 1):
            yield f"backbone.conv{block}_{layer}", (wide(outputs), inputs, 3, 3)
            inputs = wide(outputs)
    yield "backbone.fc6", (wide(1024), wide(512), 3, 3)
    yield "backbone.fc7", (wide(1024), wide(1024), 1, 1)
    yield "backbone.conv6_1", (wide(256), wide(1024), 1, 1)
    yield "backbone.conv6_2", (wide(512), wide(256), 3, 3)
    yield "backbone.conv4_3.l2_scale", (wide(512),)
    yield "backbone.conv5_3.l2_scale", (wide(512),)
    sources = [wide(512), wide(512), wide(1024), wide(512)]
    for level, source in enumerate(sources):
        yield f"tcb.{level}.lateral1", (inside, source, 3, 3)
        yield f"tcb.{level}.lateral2", (inside, inside, 3, 3)
        yield f"tcb.{level}.output", (inside, inside, 3, 3)
        if level < 3:
            yield f"tcb.{level}.upsample", (inside, inside, 2, 2)
    for module, channels in (("arm", sources), ("odm", [inside] * 4)):
        for level in range(4):
            yield f"{module}.{level}.offsets", (heads * 4, channels[level], 3, 3)
            classes = 2 if module == "arm" else config.num_classes
            yield f"{module}.{level}.logits", (heads * classes, channels[level], 3, 3)


def rows(config, layers):
    """Every parameter of the listed layers: name, shape, group, initialiser."""
    for name, shape in layers:
        plain = name.endswith((".offsets", ".logits", ".upsample"))
        if name.endswith(".l2_scale"):
            yield name, shape, "decay", {"conv4_3": 10.0, "conv5_3": 8.0}[name.split(".")[1]]
            continue
        yield f"{name}.weight", shape, "decay", "xavier"
        one = (shape[0],)
        if config.network.batch_norm and not plain:
            yield f"{name}.gamma", one, "no_decay", 1.0
            yield f"{name}.beta", one, "no_decay", 0.0
            yield f"{name}.moving_mean", one, "statistic", 0.0
            yield f"{name}.moving_variance", one, "statistic", 1.0
        else:
            yield f"{name}.bias", one, "bias", 0.0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_table_lists_the_published_layers_in_order(batch_norm):
    config = replace(VGG, network={"batch_norm": batch_norm})
    table = parameter_table(config)
    assert all(isinstance(row, Parameter) for row in table)
    assert [tuple(row) for row in table] == list(rows(config, listed(config, int, 256, 3)))


def test_width_narrows_every_layer_but_the_heads():
    config = replace(VGG, network={"width": 0.25}, num_classes=5, anchors={"aspect_ratios": (1.0,)})
    want = rows(config, listed(config, lambda c: c // 4, 64, 1))
    assert [tuple(row) for row in parameter_table(config)] == list(want)
    assert [source.outputs for source in sources(config)] == [128, 128, 256, 128]
    config = replace(VGG, network={"tcb_channels": 128})
    want = rows(config, listed(config, int, 128, 3))
    assert [tuple(row) for row in parameter_table(config)] == list(want)


def test_running_statistics_are_not_counted():
    config = tiny(network={"width": 1 / 64, "batch_norm": True})
    trained = [p for p in parameter_table(config) if p.group != "statistic"]
    assert parameter_count(config) == sum(math.prod(p.shape) for p in trained)
    assert len(trained) < len(parameter_table(config))


def test_the_l2_scales_are_those_of_the_config():
    config = tiny(network={"width": 1 / 64, "batch_norm": False, "l2_scales": (3.0, 5.0)})
    parameters = initial_parameters(config, 0)
    assert set(parameters["backbone.conv4_3.l2_scale"].tolist()) == {3.0}
    assert set(parameters["backbone.conv5_3.l2_scale"].tolist()) == {5.0}


# Initial parameters


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initial_parameters(batch_norm):
    config = tiny(network={"width": 0.25, "batch_norm": batch_norm})
    parameters = initial_parameters(config, 0)
    table = parameter_table(config)
    assert list(parameters) == [p.name for p in table]
    for p in table:
        values = parameters[p.name]
        assert values.dtype == np.float32
        assert values.shape == p.shape
        if p.initialiser == "xavier":
            # Uniform from -b to b; each output adds up inputs * kernel numbers, and an
            # upsampled pixel one number an input.
            count = p.shape[0] if "upsample" in p.name else math.prod(p.shape[1:])
            bound = math.sqrt(3 / count)
            assert abs(values).max() <= bound
            assert abs(values).max() > 0.9 * bound
            assert abs(values.mean()) < 0.2 * bound
            assert abs((values < 0).mean() - 0.5) < 0.2
        else:
            assert (values == p.initialiser).all()
    check_parameters(parameters, config)


def test_the_seed_decides():
    config = tiny()
    a, b, c = (initial_parameters(config, seed) for seed in (1, 1, 2))
    assert all((a[name] == b[name]).all() for name in a)
    assert all((a[name] != c[name]).any() for name in a if name.endswith(".weight"))


# Checks of parameters


def test_parameters_are_those_of_the_table():
    config = tiny()
    good = initial_parameters(config, 0)
    check_parameters(good, config)
    first = "backbone.conv1_1.weight"
    without = {k: v for k, v in good.items() if k != first}
    with refused(f"parameters: {first} is missing"):
        check_parameters(without, config)
    with refused("parameters: zebra is unknown"):
        check_parameters({**good, "zebra": np.zeros(1, np.float32)}, config)
    with refused(f"parameters: {first} has shape (3, 3, 3), expected (1, 3, 3, 3)"):
        check_parameters({**good, first: good[first][0]}, config)
    with refused(f"{first}: not finite at (0, 0, 0, 0)"):
        check_parameters({**good, first: good[first] * np.nan}, config)
    with refused(f"parameters: {first} is missing; zebra is unknown"):
        check_parameters({**without, "zebra": np.zeros(1, np.float32)}, config)


@pytest.mark.parametrize(("extra", "more"), [(5, ""), (6, ", and 1 more"), (9, ", and 4 more")])
def test_five_faults_are_shown_in_order(extra, more):
    config = tiny()
    unknown = {f"x{i}": np.zeros(1, np.float32) for i in reversed(range(extra))}
    shown = "; ".join(f"x{i} is unknown" for i in range(5))
    with refused(f"parameters: {shown}{more}"):
        check_parameters({**initial_parameters(config, 0), **unknown}, config)


# The whole


def positive(x):
    return x * (x > 0)


def pool(x):
    return np.maximum(
        np.maximum(x[:, :, ::2, ::2], x[:, :, 1::2, ::2]),
        np.maximum(x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]),
    )


class SecondOpinion:
    """The network once more, written down layer by layer from the publications alone.

    arXiv:1711.06897, figures 1 and 2; the authors' release for what they leave open.
    """

    def __init__(self, parameters, config, training=False):
        self.parameters, self.config, self.training = parameters, config, training
        self.statistics = {}

    def outputs(self, images):
        sources = self.sources(images)
        refined = self.tcbs(sources)
        return (
            self.heads("arm", "offsets", sources, 4),
            self.heads("arm", "logits", sources, 2),
            self.heads("odm", "offsets", refined, 4),
            self.heads("odm", "logits", refined, self.config.num_classes),
        )

    def conv(self, name, x, kernel=3, stride=1, dilation=1):
        pad = dilation * (kernel // 2)
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        reach = dilation * (kernel - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride, ::dilation, ::dilation]
        y = np.tensordot(windows, self.parameters[f"{name}.weight"], ((1, 4, 5), (1, 2, 3)))
        if f"{name}.bias" in self.parameters:  # y is (N, rows, columns, outputs)
            return np.moveaxis(y + self.parameters[f"{name}.bias"], 3, 1)
        return np.moveaxis(self.batch_norm(name, y), 3, 1)

    def batch_norm(self, name, y):
        mean, variance, gamma, beta = (
            self.parameters[f"{name}.{part}"]
            for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        if self.training:
            flat = y.reshape(-1, y.shape[3])
            m = self.config.network.batch_norm_momentum
            fresh = flat.var(axis=0, ddof=1) if len(flat) > 1 else flat.var(axis=0)
            self.statistics[f"{name}.moving_mean"] = m * mean + (1 - m) * flat.mean(axis=0)
            self.statistics[f"{name}.moving_variance"] = m * variance + (1 - m) * fresh
            mean, variance = flat.mean(axis=0), flat.var(axis=0)
        y = (y - mean) / np.sqrt(variance + self.config.network.batch_norm_eps)
        return y * gamma + beta

    def unit(self, name, x):
        scale = self.parameters[f"{name}.l2_scale"][:, None, None]
        return scale * x / np.sqrt((x * x).sum(axis=1)[:, None] + self.config.network.l2_eps)

    def sources(self, x):
        sources = []
        for block, layers in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
            for layer in range(1, layers + 1):
                x = positive(self.conv(f"backbone.conv{block}_{layer}", x))
            if block > 3:
                sources.append(self.unit(f"backbone.conv{block}_3", x))
            x = pool(x)
        x = positive(self.conv("backbone.fc6", x, dilation=3))
        x = positive(self.conv("backbone.fc7", x, kernel=1))
        sources.append(x)
        x = positive(self.conv("backbone.conv6_1", x, kernel=1))
        x = positive(self.conv("backbone.conv6_2", x, stride=2))
        return [*sources, x]

    def tcbs(self, sources):
        refined = [None] * 4
        for level in (3, 2, 1, 0):
            x = positive(self.conv(f"tcb.{level}.lateral1", sources[level]))
            x = self.conv(f"tcb.{level}.lateral2", x)
            if level < 3:
                deeper = refined[level + 1]
                w = self.parameters[f"tcb.{level}.upsample.weight"]
                up = np.zeros((*x.shape[:2], 2 * deeper.shape[2], 2 * deeper.shape[3]))
                for i in (0, 1):
                    for j in (0, 1):
                        up[:, :, i::2, j::2] = np.einsum("ncrs,cd->ndrs", deeper, w[:, :, i, j])
                x = x + up + self.parameters[f"tcb.{level}.upsample.bias"][:, None, None]
            x = positive(x)  # after the sum
            refined[level] = positive(self.conv(f"tcb.{level}.output", x))
        return refined

    def heads(self, module, kind, features, numbers_an_anchor):
        out = []
        for level, x in enumerate(features):
            y = self.conv(f"{module}.{level}.{kind}", x)
            n, c, r, s = y.shape
            y = y.reshape(n, c // numbers_an_anchor, numbers_an_anchor, r, s)
            out.append(y.transpose(0, 3, 4, 1, 2).reshape(n, -1, numbers_an_anchor))
        return np.concatenate(out, axis=1)


def lively(config, seed):
    """Parameters in float64 of which none is at rest: biases, scales and statistics, too."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, value in initial_parameters(config, seed).items():
        noise = rng.uniform(0.5, 1.5, value.shape)
        if name.endswith((".bias", ".beta", ".moving_mean")):
            parameters[name] = noise - 0.8
        else:
            parameters[name] = value * noise
    return parameters


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_the_whole_against_a_second_opinion(batch_norm, training, size):
    config = tiny(
        image_size=size,
        num_classes=5,
        network={
            "width": 1 / 16,
            "batch_norm": batch_norm,
            **({"batch_norm_eps": 0.01, "batch_norm_momentum": 0.8} if batch_norm else {}),
            "l2_eps": 0.1,
        },
        anchors={"aspect_ratios": (1.0, 2.0, 0.5)},
    )
    parameters, images = lively(config, 3), numbers(4, 2, 3, *size)
    actual, statistics = forward(parameters, images, config, training=training)
    opinion = SecondOpinion(parameters, config, training)
    expected, running = opinion.outputs(images), opinion.statistics
    assert actual._fields == NAMES
    for name, mine, theirs in zip(NAMES, actual, expected, strict=True):
        assert mine.std() > 0.01, name  # it is alive
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
    assert set(statistics) == set(running)
    assert bool(statistics) == (batch_norm and training)
    for name in running:
        assert_allclose(statistics[name], running[name], rtol=1e-9, err_msg=name)


def test_float32_comes_out_of_float32():
    config = tiny(network={"width": 1 / 16, "batch_norm": True})
    parameters = {k: v.astype(np.float32) for k, v in lively(config, 0).items()}
    images = numbers(1, 2, 3, 64, 128).astype(np.float32)
    for training in (False, True):
        actual, statistics = forward(parameters, images, config, training=training)
        fine = {k: v.astype(np.float64) for k, v in parameters.items()}
        want, _ = forward(fine, images.astype(np.float64), config, training=training)
        assert {a.dtype for a in [*actual, *statistics.values()]} == {np.dtype(np.float32)}
        for mine, theirs in zip(actual, want, strict=True):
            assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.parametrize(("name", "count"), [("320", 6375), ("512", 16320)])
def test_published_shapes(name, count):
    # 40, 20, 10, 5 or 64, 32, 16, 8 cells a side, three anchors a cell: arXiv:1711.06897.
    config = replace(preset(f"refinedet_vgg16_{name}"), network={"width": 1 / 64})
    side = int(name)
    images = np.zeros((1, 3, side, side), np.float32)
    actual, statistics = forward(initial_parameters(config, 0), images, config)
    assert [a.shape for a in actual] == [(1, count, n) for n in (4, 2, 4, 81)]
    assert statistics == {}


def test_rows_are_level_by_level_cell_by_cell_anchor_by_anchor():
    # All weights are 0, so each head outputs its bias: its channel's number and its level.
    config = tiny(anchors={"aspect_ratios": (1.0, 2.0, 0.5)})
    parameters = {k: v * 0 for k, v in initial_parameters(config, 0).items()}
    for module in ("arm", "odm"):
        for level in range(4):
            for kind in ("offsets", "logits"):
                bias = parameters[f"{module}.{level}.{kind}.bias"]
                bias += np.arange(len(bias)) + 100 * (level + 1)
    heads, _ = forward(parameters, numbers(0, 1, 3, 64, 128).astype(np.float32), config)
    cells = (8 * 16, 4 * 8, 2 * 4, 1 * 2)
    for name, size in zip(NAMES, (4, 2, 4, 4), strict=True):
        want = [
            [100 * (level + 1) + anchor * size + n for n in range(size)]
            for level in range(4)
            for _ in range(cells[level])
            for anchor in range(3)
        ]
        assert getattr(heads, name)[0].tolist() == want


@pytest.mark.parametrize(("y", "x"), [(12, 396), (44, 100)])
def test_a_pixel_changes_the_rows_of_the_cells_near_it(y, x):
    # conv4_3 sees 92 pixels, its head 16 more: cells whose centre is within 54 pixels.
    # conv5_3 sees 196, its head 32 more: 114 pixels.
    config = tiny(image_size=(64, 512), network={"width": 1 / 16, "batch_norm": False})
    parameters, images = lively(config, 0), numbers(1, 1, 3, 64, 512)
    before, _ = forward(parameters, images, config)
    images[0, :, y, x] += 100
    after, _ = forward(parameters, images, config)
    changed = (before.arm_offsets != after.arm_offsets)[0].any(axis=1)
    first = 0
    for stride, reach in ((8, 54), (16, 114)):
        rows, columns = 64 // stride, 512 // stride
        cells = changed[first : first + rows * columns].reshape(rows, columns)
        hit = np.flatnonzero(cells.any(axis=0)) * stride + stride / 2
        assert hit.size
        assert (abs(hit - x - 0.5) <= reach).all()
        assert cells[:, x // stride].any()
        first += rows * columns
    # The ODM hears of it from the coarsest level, all over.
    odm = (before.odm_offsets != after.odm_offsets)[0].any(axis=1)
    assert odm[: 8 * 64].reshape(8, 64).any(axis=0).sum() > 40


def test_images_of_a_batch_do_not_meet_outside_training():
    config = tiny(network={"width": 1 / 16, "batch_norm": True})
    parameters, images = lively(config, 0), numbers(1, 3, 3, 64, 128)
    whole, _ = forward(parameters, images, config)
    for n in range(3):
        alone, _ = forward(parameters, images[n : n + 1], config)
        for a, b in zip(alone, whole, strict=True):
            assert_allclose(a[0], b[n], atol=1e-12)


def test_running_statistics_by_hand():
    # The image is 1 everywhere and conv1_1 the identity of its middle: its outputs are 0 at
    # no border, so mean 1 and variance 0. 0.9 * 0 + 0.1 * 1 = 0.1; 0.9 * 1 + 0.1 * 0 = 0.9.
    config = tiny(network={"width": 1 / 64, "batch_norm": True})
    parameters = initial_parameters(config, 0)
    parameters["backbone.conv1_1.weight"][...] = 0
    parameters["backbone.conv1_1.weight"][0, 0, 1, 1] = 1
    kept = {k: v.copy() for k, v in parameters.items()}
    images = np.ones((1, 3, 64, 128), np.float32)
    _, statistics = forward(parameters, images, config, training=True)
    assert_allclose(statistics["backbone.conv1_1.moving_mean"], 0.1, rtol=1e-6)
    assert_allclose(statistics["backbone.conv1_1.moving_variance"], 0.9, rtol=1e-6)
    # Half of the pixels 0, half 2: mean 1, variance 1 by M, M / (M - 1) by M - 1; M = 8192.
    images[:, :, :32], images[:, :, 32:] = 0, 2
    fine = {k: v.astype(np.float64) for k, v in parameters.items()}
    _, statistics = forward(fine, images.astype(np.float64), config, training=True)
    want = 0.9 + 0.1 * 8192 / 8191
    assert_allclose(statistics["backbone.conv1_1.moving_variance"], want, rtol=1e-12)
    assert all((parameters[k] == kept[k]).all() for k in kept)  # the arguments stay


def test_one_number_a_channel_has_no_variance():
    # conv6_2 of one image of 64 x 64 is one pixel.
    config = tiny(image_size=(64, 64), network={"width": 1 / 64, "batch_norm": True})
    parameters = initial_parameters(config, 0)
    images = numbers(0, 1, 3, 64, 64).astype(np.float32)
    heads, statistics = forward(parameters, images, config, training=True)
    assert_allclose(statistics["backbone.conv6_2.moving_variance"], 0.9, rtol=1e-6)
    assert all(np.isfinite(head).all() for head in heads)


def test_two_numbers_a_channel_have_a_variance_divided_by_one():
    # conv6_2 of two images of 64 x 64 is two pixels.
    config = tiny(image_size=(64, 64), network={"width": 1 / 64, "batch_norm": True})
    parameters, images = lively(config, 0), numbers(1, 2, 3, 64, 64)
    _, statistics = forward(parameters, images, config, training=True)
    opinion = SecondOpinion(parameters, config, training=True)
    opinion.outputs(images)
    name = "backbone.conv6_2.moving_variance"
    assert_allclose(statistics[name], opinion.statistics[name], rtol=1e-9)


def test_what_the_network_refuses():
    config = tiny()
    parameters = initial_parameters(config, 0)
    images = np.zeros((1, 3, 64, 128), np.float32)
    with refused("images: expected shape (any, 3, 64, 128), got (1, 3, 128, 64)"):
        forward(parameters, images.transpose(0, 1, 3, 2), config)
    with refused("images: expected shape (any, 3, 64, 128), got (3, 64, 128)"):
        forward(parameters, images[0], config)
    with refused("images: expected at least one, got none"):
        forward(parameters, images[:0], config)
    with refused("images, weight: expected one dtype, got ['float32', 'float64']"):
        forward(parameters, images.astype(np.float64), config)
    with refused("images: expected a float32 or float64 array, got uint8"):
        forward(parameters, images.astype(np.uint8), config)
    with refused("parameters: backbone.conv1_1.bias is missing"):
        forward(
            {k: v for k, v in parameters.items() if k != "backbone.conv1_1.bias"}, images, config
        )


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_backward_pass_is_the_slope_of_the_forward_pass(batch_norm):
    """For each part, along a random direction, against central differences in float64."""
    config = tiny(network={"width": 1 / 64, "batch_norm": batch_norm})
    parameters = lively(config, 0)
    images = numbers(1, 2, 3, 64, 128)
    heads, statistics, backward = forward_and_backward(parameters, images, config)
    want, running = forward(parameters, images, config, training=True)
    for actual, expected in zip(heads, want, strict=True):
        assert_array_equal(actual, expected)
    assert {n: a.tolist() for n, a in statistics.items()} == {
        n: a.tolist() for n, a in running.items()
    }
    assert list(backward(heads)) == [p.name for p in trained_parameters(config)]
    for part, slope, expected in slopes(parameters, images, config):
        assert abs(slope - expected) < 1e-4 * (abs(expected) + 1), part


def test_the_backward_pass_keeps_float32():
    config = tiny(network={"width": 1 / 64, "batch_norm": True})
    parameters = {name: p.astype(np.float32) for name, p in lively(config, 0).items()}
    images = numbers(1, 1, 3, 64, 128).astype(np.float32)
    heads, _, backward = forward_and_backward(parameters, images, config)
    assert {g.dtype for g in backward(heads).values()} == {np.dtype(np.float32)}
